"""A synthetic area detector: a full backend with real timing and a real stream, and failures on request."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.simulator_images import (
    Prepared,
    SimulatorOptions,
    accepted_settings,
    base_image,
    image_format,
)
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import Streamer, start_metadata
from tangods_receiver import security
from tangods_receiver.errors import ConfigError, HardwareError

log = logging.getLogger(__name__)

STOP_LIMIT = 2.0  # s for the data thread to give up whatever it does
BACK_PRESSURE_LIMIT = 120.0  # s that a frame may wait for the receiver
SOON = 0.02  # s; how often a waiting camera looks whether it is stopped


@dataclass
class Failures:
    """What goes wrong in the next series, on request: how many frames, or at which frame (-1: never).

    `unreachable` stays until it is written back; everything else is used up by one series."""

    drop: int = 0
    repeat: int = 0
    reorder: int = 0
    wrong_shape: int = 0
    stall: int = -1
    die: int = -1
    no_end: bool = False
    refuse_arm: bool = False
    unreachable: bool = False

    def use_up(self) -> Failures:
        """What the series that begins now gets."""
        used = replace(self)
        for name, value in vars(Failures(unreachable=self.unreachable)).items():
            setattr(self, name, value)
        return used


@dataclass
class Edges:
    """The pretended signal generator at the trigger input: `left` edges still to come, `period` s apart.

    With a period the edges come when they come, and those that find the detector busy are ignored, as by hardware;
    without, each waits until the detector is ready. `width` of a gate, s (0: the exposure time)."""

    left: int = 0
    period: float = 0.0
    width: float = 0.0
    next: float = 0.0
    ignored: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fire(self, n: int) -> None:
        with self.lock:
            self.left, self.next = n, time.monotonic()

    def take(self, ready: float, now: float) -> float | None:
        """When the next edge comes that a detector, busy until `ready`, heeds; None: none has come by `now`."""
        with self.lock:
            while self.left:
                at = self.next if self.period else max(self.next, ready)
                if at > now:
                    return None
                self.left -= 1
                self.next = at + self.period if self.period else at
                if at >= ready:
                    return at
                self.ignored += 1
            return None


class Camera(threading.Thread):
    """The hardware's own life: exposes on an absolute schedule and sends what it sees. Owns the streamer.

    `begin` and `halt` wait for it, for a bounded time; everything else is events."""

    def __init__(self, options: SimulatorOptions, port: int, edges: Edges) -> None:
        super().__init__(name="simulated camera", daemon=True)
        self._options, self._port = options, port
        self._edges = edges
        self._orders: queue.Queue[tuple[dict[str, Any], Future[None]] | None] = queue.Queue()
        self._abort = threading.Event()
        self._go = threading.Event()
        self._exposing = threading.Event()  # from then on triggers are heeded
        self._idle = threading.Event()
        self._idle.set()
        self._software: queue.Queue[float] = queue.Queue()
        self._accepted = 0  # software triggers of this series
        self._settings = Settings()
        self._streamer: Streamer | None = None
        self.bound: Future[str] = Future()
        self.status = Status(Phase.IDLE)

    # --- asked from other threads ---

    def begin(self, order: dict[str, Any], limit: float) -> None:
        """Send the start message of a series; HardwareError when that fails."""
        done: Future[None] = Future()
        self._abort.clear()
        self._go.clear()
        self._exposing.clear()
        self._idle.clear()
        self._software, self._accepted = queue.Queue(), 0
        self._settings = order["series"].settings
        self._orders.put((order, done))
        try:
            done.result(limit + STOP_LIMIT)
        except FutureTimeout:
            raise HardwareError(f"the simulated camera did not arm within {limit + STOP_LIMIT:g} s") from None

    def go(self) -> None:
        """Returns when triggers are let through: a client sends the first as soon as it sees RUNNING."""
        self._go.set()
        self._exposing.wait(STOP_LIMIT)

    def software_trigger(self) -> None:
        """Accept one software trigger; HardwareError when there is nothing to trigger, or the last is not finished."""
        status, settings = self.status, self._settings
        if status.phase is not Phase.ACQUIRING or settings.trigger_mode is not TriggerMode.SOFTWARE:
            raise HardwareError(
                f"software trigger refused: the detector is {status.phase.value} in {settings.trigger_mode.value} mode"
            )
        if status.frames < self._accepted * settings.frames_per_start:
            raise HardwareError(
                f"software trigger refused: busy with frame {status.frames}; "
                "send the next one when nFramesAcquired has gone up"
            )
        self._accepted += 1
        self._software.put(time.monotonic())

    def halt(self) -> None:
        """End the series now; the end message is sent. Returns when the camera is idle."""
        self._abort.set()
        if not self._idle.wait(STOP_LIMIT):
            raise HardwareError(f"the simulated camera did not stop within {STOP_LIMIT:g} s")

    def quit(self) -> None:
        self._abort.set()
        self._orders.put(None)
        self.join(STOP_LIMIT)

    @property
    def seen(self) -> Status:
        """With what its own thread does not know yet."""
        blocked = self._streamer is not None and self._streamer.blocked
        return replace(self.status, triggers=max(self.status.triggers, self._accepted), blocked=blocked)

    # --- the thread ---

    def run(self) -> None:
        try:
            o = self._options
            largest = o.width * o.height * 4
            guard = security.guard(o.curve_key, o.curve_clients, o.allow_peers)
            self._streamer = Streamer(o.host, self._port, o.hwm_bytes, largest, self._abort, guard)
        except (ConfigError, HardwareError) as exc:
            self.bound.set_exception(exc)
            return
        self.bound.set_result(self._streamer.endpoint)
        try:
            while (order := self._orders.get()) is not None:
                self._series(*order)
        finally:
            self._streamer.close()

    def _series(self, order: dict[str, Any], started: Future[None]) -> None:
        """One series from the start message to the end message."""
        assert self._streamer is not None
        self.status = Status(Phase.ARMED)
        try:
            self._streamer.begin(**order["begin"])
        except Exception as exc:
            self.status = Status(Phase.IDLE)
            self._idle.set()
            started.set_exception(exc)
            return
        started.set_result(None)
        try:
            failure = self._expose(order["series"], order["images"], order["period"], order["failures"])
        except HardwareError as exc:
            failure = str(exc)
        except Exception as exc:  # outermost loop of this thread: it becomes the status
            log.exception("simulated camera")
            failure = f"the simulated camera failed: {exc!r}"
        self._exposing.set()  # also if it was stopped before: nobody waits in vain
        phase = Phase.IDLE if self._abort.is_set() else Phase.DONE
        if not order["failures"].no_end and not failure:
            self._streamer.end()
        self.status = replace(self.status, phase=Phase.ERROR if failure else phase, message=failure)
        self._idle.set()

    def _expose(self, series: Series, images: list[Prepared], period: float, failures: Failures) -> str:
        """Wait for triggers and send their frames; returns what went wrong on the way, "" when nothing did."""
        while not self._go.wait(SOON):
            if self._abort.is_set():
                return ""
        self.status = replace(self.status, phase=Phase.ACQUIRING)
        self._exposing.set()
        settings = series.settings
        sender = Sender(self._streamer, series, images, self._options, failures)  # type: ignore[arg-type]
        gate = settings.trigger_mode is TriggerMode.EXTERNAL_GATE
        burst = math.inf if series.live else settings.frames_per_start
        total = math.inf if series.live else settings.n_frames
        ready = time.monotonic()
        frame = 0
        while frame < total:
            start = self._next_start(settings.trigger_mode, ready)
            if start is None:
                return ""
            self.status = replace(self.status, triggers=self.status.triggers + 1)
            exposure = (gate and self._edges.width) or settings.exposure_time
            first = frame
            while frame - first < burst:
                if not self._sleep_until(start + (frame - first) * period + exposure):
                    return ""
                if frame == failures.die:
                    return f"the simulated camera died at frame {frame}"
                if frame == failures.stall:
                    self._abort.wait()
                    return ""
                if not sender.send(frame):
                    return ""
                frame += 1
                self.status = replace(self.status, frames=frame)
            ready = start + max((frame - first) * period, exposure + self._options.latency)
        sender.flush()
        return ""

    def _next_start(self, mode: TriggerMode, ready: float) -> float | None:
        """When the next exposure begins; waits for a trigger for as long as it takes. None: stopped."""
        if mode is TriggerMode.INTERNAL:
            return ready
        if mode is TriggerMode.SOFTWARE:
            while not self._abort.is_set():
                try:
                    return max(ready, self._software.get(timeout=SOON))
                except queue.Empty:
                    continue
            return None
        while not self._abort.is_set():
            start = self._edges.take(ready, time.monotonic())
            if start is not None:
                return start
            self._abort.wait(min(0.001, SOON))
        return None

    def _sleep_until(self, due: float) -> bool:
        """False: stopped meanwhile. Late is not early: what is due goes out at once."""
        wait = due - time.monotonic()
        if wait > 0:
            return not self._abort.wait(wait)
        return not self._abort.is_set()


class Sender:
    """Sends the frames of one series, or fails to, as told."""

    def __init__(
        self,
        streamer: Streamer,
        series: Series,
        images: list[Prepared],
        options: SimulatorOptions,
        failures: Failures,
    ) -> None:
        self._streamer, self._images, self._options = streamer, images, options
        self._shape, self._dtype = image_format(options, series.settings)
        total = series.n_frames
        self._drop, self._repeat = _spread(failures.drop, total), _spread(failures.repeat, total)
        self._late, self._wrong_shape = _spread(failures.reorder, total), _spread(failures.wrong_shape, total)
        self._held: int | None = None

    def send(self, frame: int) -> bool:
        """False: stopped meanwhile."""
        if frame in self._drop:
            return True
        if frame in self._late and self._held is None:
            self._held = frame
            return True
        sent = self._put(frame) and (frame not in self._repeat or self._put(frame))
        return sent and self.flush()

    def flush(self) -> bool:
        """Send the frame that was held back."""
        held, self._held = self._held, None
        return held is None or self._put(held)

    def _put(self, frame: int) -> bool:
        payload, shape = self._images[frame % len(self._images)].payload(frame), self._shape
        if frame in self._wrong_shape:
            shape = (self._shape[0] + 1, self._shape[1])
        return self._streamer.frame(
            frame,
            payload,
            shape=shape,
            dtype=self._dtype,
            codec=self._options.codec,
            limit=BACK_PRESSURE_LIMIT,
        )


def _spread(n: int, total: int | None) -> frozenset[int]:
    """`n` frame numbers, evenly over a series."""
    total = total or 100
    return frozenset((i + 1) * total // (n + 1) for i in range(min(n, total)))


# --- expert knobs ---------------------------------------------------------------------------------------------------


def _failure(name: str, key: str, dtype: type, doc: str) -> Parameter:
    """A knob that makes something go wrong."""
    return Parameter(
        name,
        dtype,
        doc,
        lambda backend: getattr(backend.failures, key),
        lambda backend, value: setattr(backend.failures, key, value),
        min_value=-1 if dtype is int else None,
        writable_while_running=True,
    )


def _fire(backend: Simulator, n: int) -> None:
    if n < 0:
        raise ConfigError(f"SimulatedEdges: {n}; give 0 or more")
    backend.edges.fire(n)


PARAMETERS = (
    Parameter(
        "SimulatedEdges",
        int,
        "Write n to let n edges (or gates) come at the trigger input; reads how many are still to come",
        lambda b: b.edges.left,
        _fire,
        writable_while_running=True,
    ),
    Parameter(
        "SimulatedEdgePeriod",
        float,
        "Time between those edges; edges that find the detector busy are ignored. 0: each waits until it is ready",
        lambda b: b.edges.period,
        lambda b, value: setattr(b.edges, "period", value),
        unit="s",
        min_value=0.0,
        writable_while_running=True,
    ),
    Parameter(
        "SimulatedGateWidth",
        float,
        "Length of a gate in EXTERNAL_GATE mode; 0: the exposure time",
        lambda b: b.edges.width,
        lambda b, value: setattr(b.edges, "width", value),
        unit="s",
        min_value=0.0,
        writable_while_running=True,
    ),
    Parameter("IgnoredEdges", int, "Edges of this series that found the detector busy", lambda b: b.edges.ignored),
    Parameter(
        "SensorTemperature",
        float,
        "Temperature of the sensor",
        lambda b: b.temperature(),
        unit="degC",
        format="%5.1f",
        max_alarm=50.0,
    ),
    Parameter(
        "SimulatedTemperature",
        float,
        "What SensorTemperature is to show",
        lambda b: b.mean_temperature,
        lambda b, value: setattr(b, "mean_temperature", value),
        unit="degC",
        format="%5.1f",
        writable_while_running=True,
    ),
    _failure("InjectDrop", "drop", int, "So many frames of the next series are never sent"),
    _failure("InjectRepeat", "repeat", int, "So many frames of the next series are sent twice"),
    _failure("InjectReorder", "reorder", int, "So many frames of the next series are sent after the one that follows"),
    _failure("InjectWrongShape", "wrong_shape", int, "So many frames of the next series have one row too many"),
    _failure("InjectStall", "stall", int, "The camera falls silent before this frame of the next series; -1: never"),
    _failure("InjectDie", "die", int, "The camera reports an error at this frame of the next series; -1: never"),
    _failure("InjectNoEnd", "no_end", bool, "The end message of the next series is not sent"),
    _failure("InjectRefuseArm", "refuse_arm", bool, "The hardware refuses to be armed, once"),
    _failure("InjectUnreachable", "unreachable", bool, "Nobody answers, until this is false again"),
)


_ports: dict[SimulatorOptions, int] = {}  # taken before; the same again after Init, so that receivers find it


class Simulator(Backend):
    """Synthetic area detector with a STINS stream of its own."""

    Options: ClassVar[type] = SimulatorOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: SimulatorOptions) -> None:
        self._options = options
        self._camera: Camera | None = None
        self._port = options.port or _ports.get(options, 0)
        self._prepared: tuple[Settings, list[Prepared]] | None = None
        self._endpoint = ""
        self.failures = Failures()
        self.edges = Edges()
        self.mean_temperature = 25.0

    def connect(self) -> DetectorInfo:
        self._reach()
        self.close()
        try:
            self._start_camera(self._port)
        except HardwareError:
            if self._port == self._options.port:
                raise
            self._start_camera(0)  # somebody else has the port that we had, but nobody asked for that one
        self._port = _ports[self._options] = int(self._endpoint.rpartition(":")[2])
        return self._info()

    def _start_camera(self, port: int) -> None:
        camera = Camera(self._options, port, self.edges)
        camera.start()
        try:
            self._endpoint = camera.bound.result(STOP_LIMIT)
        except FutureTimeout:
            raise HardwareError(f"the simulated camera did not start within {STOP_LIMIT:g} s") from None
        self._camera = camera

    def close(self) -> None:
        camera, self._camera = self._camera, None
        if camera:
            camera.quit()

    def configure(self, settings: Settings) -> Settings:
        self._reach()
        settings = accepted_settings(self._options, settings)
        looks = _what_changes_the_images(settings)
        if self._prepared is None or self._prepared[0] != looks:
            images = [base_image(self._options, settings, i) for i in range(self._options.n_images)]
            self._prepared = looks, [Prepared(image, self._options.codec) for image in images]
        return settings

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        return image_format(self._options, settings)

    def frame_bytes(self, settings: Settings) -> int:
        if self._prepared and self._prepared[0] == _what_changes_the_images(settings):
            return max(image.nbytes for image in self._prepared[1])
        return super().frame_bytes(settings)

    def arm(self, series: Series) -> None:
        camera = self._reach()
        failures = self.failures.use_up()
        if failures.refuse_arm:
            raise HardwareError("arm: 503 the simulated detector refuses")
        if camera is None:
            raise HardwareError("arm: not connected")
        series = replace(series, settings=self.configure(series.settings))
        assert self._prepared is not None
        settings, images = series.settings, self._prepared[1]
        shape, dtype = self.image_format(settings)
        period = max(settings.frame_time, settings.exposure_time + self._options.latency)
        self.edges.left = self.edges.ignored = 0  # edges that came before do not count
        begin = {
            "series": series,
            "metadata": start_metadata(series, self._info(), period),
            "shape": shape,
            "dtype": dtype,
            "codec": self._options.codec,
            "limit": self._options.send_timeout,
        }
        order = {"begin": begin, "series": series, "images": images, "period": period, "failures": failures}
        camera.begin(order, self._options.send_timeout)

    def start(self) -> None:
        if self._camera:
            self._camera.go()

    def trigger(self) -> None:
        if self._camera:
            self._camera.software_trigger()

    def stop(self) -> None:
        if self._camera:
            self._camera.halt()

    def status(self) -> Status:
        camera = self._reach()
        return Status(Phase.IDLE) if camera is None else camera.seen

    def latency_time(self, settings: Settings) -> float:
        return self._options.latency

    def endpoints(self) -> list[str]:
        return [self._endpoint] if self._endpoint else []

    def temperature(self) -> float:
        """In degrees Celsius; it swings a little."""
        return self.mean_temperature + 0.2 * math.sin(time.monotonic() / 10)

    def _info(self) -> DetectorInfo:
        o = self._options
        return DetectorInfo(
            model=f"Simulator {o.look} {o.width} x {o.height} {o.dtype}",
            serial_number=o.serial_number,
            shape=(o.height, o.width),
            pixel_size=(o.pixel_size, o.pixel_size),
            sensor_material="Si",
            sensor_thickness=450e-6,
            firmware="1.0",
        )

    def _reach(self) -> Camera | None:
        if self.failures.unreachable:
            raise HardwareError("the simulated detector does not answer (InjectUnreachable is set)")
        if self._camera and not self._camera.is_alive():
            raise HardwareError("the simulated camera's thread has ended")
        return self._camera


def _what_changes_the_images(settings: Settings) -> Settings:
    """The settings with everything else at its default, to compare."""
    keep = ("roi", "binning", "bit_depth", "rotation", "fliplr", "flipud")
    return Settings(**{name: getattr(settings, name) for name in keep})
