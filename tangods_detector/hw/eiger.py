"""DECTRIS EIGER, EIGER2, PILATUS4: any detector with a SIMPLON control unit, which sends its images itself."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import Any, ClassVar

import httpx
from numpy.typing import NDArray

from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.eiger_link import ARMED, LOST, STOP_LIMIT, EigerOptions, Link
from tangods_detector.hw.eiger_parameters import PARAMETERS, Knobs
from tangods_detector.hw.eiger_series import Plan, Run, wait_until
from tangods_detector.hw.eiger_unit import Unit
from tangods_detector.hw.rest import Unreachable
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import start_metadata
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)

LOOK = 1.0  # s between two looks at the state; more often has hung control units
TRIGGER_MARGIN = 10.0  # s that a trigger may last longer than its exposures
EARLY = 0.95  # of its time; a trigger that returns before was ended by something
DECISIVE = tuple(
    f"detector/config/{name}" for name in ("trigger_mode", "nimages", "ntrigger", "count_time", "frame_time")
)


class Eiger(Backend):
    """Translates; the link talks, the run counts and triggers, the knobs are what the expert turns."""

    Options: ClassVar[type] = EigerOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: EigerOptions, transport: httpx.BaseTransport | None = None) -> None:
        self._options, self._transport = options, transport
        self._link: Link | None = None
        self._run: Run | None = None
        self._info: DetectorInfo | None = None
        self._looked = self._answered = 0.0  # at the state; monotonic
        self._dropped = 0  # before the series
        self.knobs: Knobs = Knobs(lambda: self._there)

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> DetectorInfo:
        self.close()
        self._link = Link(self._options, self.knobs.chosen, self._transport)
        try:
            self._link.begin()
            self._info = self._link.info()
            self._link.monitor.show(None)
        except BaseException:
            self.close()
            raise
        return self._info

    def close(self) -> None:
        run, self._run = self._run, None
        link = self._link
        if link is None:
            return
        if run is not None and not run.stopped:
            run.stop()
            try:
                link.end(complete=run.status.phase is Phase.DONE)
            except DaqError as exc:
                log.warning("%s", exc)
        self._link = None
        link.given_up.set()
        link.close()
        if run is not None:
            run.leave(STOP_LIMIT)

    @property
    def _there(self) -> Link:
        if self._link is None:
            raise HardwareError("not connected to the control unit")
        return self._link

    @property
    def _unit(self) -> Unit:
        return self._there.unit

    def endpoints(self) -> list[str]:
        return [self._options.pull_from]

    # --- settings ----------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> Settings:
        _refuse_what_it_has_not(settings)
        unit = self._unit
        self._apply(settings, Plan.of(settings, own_exposure=self.knobs.trigger_exposure > 0))
        depth = int(unit.get("detector/config/bit_depth_image"))
        if settings.bit_depth not in (0, depth):
            raise ConfigError(f"BitDepth: the detector chooses it, by the exposure time; it is {depth} now; set 0")
        period = float(unit.get("detector/config/frame_time")) if settings.frame_time else 0.0
        if settings.frame_time < self._shortest(settings.exposure_time) * (1 - 1e-6):
            period = settings.frame_time  # Arm refuses that, unless the exposure is made shorter until then
        exposure = float(unit.get("detector/config/count_time"))
        return replace(settings, exposure_time=exposure, frame_time=period, bit_depth=depth)

    def _apply(self, settings: Settings, plan: Plan) -> None:
        unit = self._unit
        for name, value in plan.writes(str(unit.get("detector/config/trigger_mode"))):
            self._put(name, value, {"nimages": "nFramesPerTrigger", "ntrigger": "nTriggers"}.get(name, "TriggerMode"))
        self._put("count_time", settings.exposure_time, "ExposureTime")
        low = unit.known("detector/config/frame_time").low or 0.0
        period = max(settings.frame_time, self._shortest(settings.exposure_time), low)
        self._put("frame_time", period, "FrameTime")

    def _put(self, name: str, value: object, ours: str) -> None:
        try:
            self._unit.set(f"detector/config/{name}", value)
        except ConfigError as exc:
            raise ConfigError(f"{ours}: {exc}") from exc

    def _shortest(self, exposure: float) -> float:
        """Period, s."""
        frame_time = self._unit.known("detector/config/frame_time")
        readout = float(self._unit.get("detector/config/detector_readout_time"))
        return max(exposure + readout, frame_time.low or 0.0)

    def latency_time(self, settings: Settings) -> float:
        return self._shortest(settings.exposure_time) - settings.exposure_time

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        unit = self._unit
        shape = tuple(int(unit.get(f"detector/config/{axis}_pixels_in_detector")) for axis in "yx")
        mode = str(unit.get("detector/config/roi_mode")) if unit.has("detector/config/roi_mode") else ""
        if mode.startswith("4M") and shape[1] > 2070:
            shape = (2162, 2068) if unit.has("detector/config/threshold/1/energy") else (2167, 2070)
        elif mode in ("lines", "merge2x2") and unit.has("detector/config/roi_y_size"):
            shape = (min(shape[0], int(unit.get("detector/config/roi_y_size"))), shape[1])
        return (shape[0], shape[1]), f"uint{int(unit.get('detector/config/bit_depth_image'))}"

    def frame_bytes(self, settings: Settings) -> int:
        """Counts compress to a quarter and better, as a rule."""
        unit = self._unit
        channels = 1
        for key in ("detector/config/threshold/2/mode", "detector/config/threshold/difference/mode"):
            channels += unit.has(key) and unit.get(key) == "enabled"
        plain = unit.get("detector/config/compression") == "none"
        return super().frame_bytes(settings) * channels // (1 if plain else 4)

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: Series) -> int:
        """The number that the unit gives the series."""
        link = self._there
        link.given_up.clear()
        self._run, link.in_series = None, False
        link.monitor.hold()
        if link.make_idle() or link.unit.read("stream/config/mode").value != "enabled":
            link.set_up_modules()
        plan = Plan.of(series.settings, series.live, self.knobs.trigger_exposure > 0)
        for key in DECISIVE:  # somebody may have set them by hand
            link.unit.read(key)
        self._apply(series.settings, plan)
        self._tell_receiver(series)
        self._dropped = link.dropped()
        number = link.arm()
        done_already = () if plan.ours else ("idle",)  # edges may be quick
        if (state := link.state()) not in (*ARMED, *done_already):
            raise HardwareError(f"arm: the state is {state} and not ready{link.words_of_error(state)}")
        link.in_series = True
        link.monitor.show(number)
        self._run = Run(plan, series.settings, self._fire)
        return number

    def _tell_receiver(self, series: Series) -> None:
        """File name and options, as the receiver wants them in the appendix of the start message."""
        info = self._info
        assert info is not None
        told = start_metadata(series, info, float(self._unit.get("detector/config/frame_time")))
        del told["detector"]  # the unit says more of itself
        if series.live:
            told["nframes"] = None
        text = json.dumps({"filename": series.filename, **told})
        if self._unit.get("stream/config/header_appendix") != text:
            self._unit.write("stream/config/header_appendix", text)

    def start(self) -> None:
        if self._run is not None:
            self._looked = self._answered = time.monotonic()
            self._run.begin()

    def trigger(self) -> None:
        if self._run is None:
            raise HardwareError("software trigger refused: no series is armed")
        self._run.trigger(self.knobs.trigger_exposure)

    def frames_came(self, frames: int) -> None:
        if self._run is not None:
            self._run.came = max(self._run.came, frames)

    def picture(self) -> tuple[int, NDArray[Any]] | None:
        """Of the monitor, where it is wished for."""
        link = self._link
        return link.monitor.picture() if link is not None and self._options.monitor else None

    @property
    def monitor_failures(self) -> int:
        return self._there.monitor.failures

    def _fire(self, exposure: float) -> None:
        """In the run's thread: one trigger, until its images are exposed."""
        link, run = self._there, self._run
        assert run is not None
        unit, single = link.unit, run.plan.mode == "inte"
        delay = (
            unit.get("detector/config/trigger_start_delay") if unit.has("detector/config/trigger_start_delay") else 0
        )
        images = exposure if single else run.plan.nimages * float(unit.get("detector/config/frame_time"))
        lasts, begun = float(delay) + images, time.monotonic()
        try:
            limit = lasts + TRIGGER_MARGIN
            unit.connection.command(unit.path("detector/command/trigger"), exposure if single else None, limit)
        except Unreachable as exc:  # its web server lets go of long requests, the exposure goes on
            if run.stopped:
                return
            log.warning("%s; waiting for the end of the exposure", exc)
            self._wait_exposed(link, run, begun + limit, exc)
        if single:  # it has returned at the beginning
            wait_until(
                time.monotonic() + lasts + float(unit.get("detector/config/detector_readout_time")), link.given_up
            )
        elif time.monotonic() - begun < EARLY * lasts and not run.stopped:
            link.refuse_lost(link.state())

    @staticmethod
    def _wait_exposed(link: Link, run: Run, deadline: float, why: Unreachable) -> None:
        """Until the state says that nothing is being exposed."""
        while not run.stopped:
            try:
                state = link.state()
            except HardwareError:  # `status` counts how long
                state = "acquire"
            if state in ("ready", "idle", "configure"):
                return
            link.refuse_lost(state)
            if time.monotonic() > deadline:
                raise HardwareError(f"{why}; the state is still {state}")
            wait_until(time.monotonic() + LOOK, link.given_up)

    # --- the end -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        link, run = self._link, self._run
        if link is None:
            return
        link.given_up.set()
        if run is None or run.stopped:
            if link.state() in (*ARMED, "configure"):  # it is being armed, or that is somebody else's series
                link.end(complete=False)
            return
        complete = run.status.phase is Phase.DONE
        run.stop()
        run.finished = complete
        link.in_series = False
        link.end(complete)
        if not run.leave(STOP_LIMIT):
            log.warning("the answer to the last trigger has not come, although the series is over")
            link.replace_connection()
        run.remark = link.dropped_since(self._dropped)

    # --- the state ---------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        run, link, now = self._run, self._link, time.monotonic()
        if link is None:
            return Status(Phase.IDLE)
        if run is not None and not run.stopped:
            if run.begun and now - self._looked >= LOOK and not run.failure:
                self._look_in_series(link, run, now)
            return run.status
        if now - self._looked >= LOOK * 0.9:
            self._looked = now
            if (state := link.state()) in LOST:
                return Status(Phase.ERROR, message=f"the control unit {LOST[state]}{link.words_of_error(state)}")
        return run.status if run is not None else Status(Phase.IDLE)

    def _look_in_series(self, link: Link, run: Run, now: float) -> None:
        self._looked = now
        try:
            state = link.state()
        except HardwareError as exc:
            silent = time.monotonic() - self._answered
            if silent > self._options.patience:
                run.failure = run.failure or f"the control unit has not answered for {silent:.0f} s: {exc}"
            return
        self._answered = time.monotonic()
        if state in LOST:
            run.failure = run.failure or f"the control unit {LOST[state]}{link.words_of_error(state)}"
        elif state == "idle" and not run.plan.ours:
            run.finished = True


def _refuse_what_it_has_not(settings: Settings) -> None:
    if settings.roi is not None:
        raise ConfigError("Roi: an EIGER has named regions only; set 0, 0, 0, 0 and choose one by RoiMode")
    if settings.binning != (1, 1):
        raise ConfigError(f"Binning: {settings.binning[0]} x {settings.binning[1]}; an EIGER has none, only 1 x 1")
    if settings.rotation or settings.fliplr or settings.flipud:
        raise ConfigError(
            "Rotation, Fliplr, Flipud: the detector sends images as they are; let the receiver turn them (its "
            "transforms), and set these to 0 and False"
        )
