"""Hamamatsu ORCA cameras (Flash, Fusion, Lightning ...) through DCAM-API 4: they have no stream, so this sends it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any, ClassVar

from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.hamamatsu_camera import Camera
from tangods_detector.hw.hamamatsu_dcam import Library, PixelType, Prop, Text, library
from tangods_detector.hw.hamamatsu_frames import Numbers
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.hw.hamamatsu_parameters import PARAMETERS, Knobs
from tangods_detector.hw.hamamatsu_ring import CameraRing
from tangods_detector.hw.hamamatsu_run import Plan, Run
from tangods_detector.hw.hamamatsu_settings import (
    CODECS,
    DTYPES,
    OFF,
    buffer_type,
    load,
    pixel_type,
    sensor,
    shape,
    shortest_period,
)
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import start_metadata
from tangods_receiver import security
from tangods_receiver.errors import ConfigError, HardwareError

log = logging.getLogger(__name__)

BIND_LIMIT = 5.0  # s for the stream to be bound
LOOK = 1.0  # s between two looks at a camera that rests

_left_behind: list[Any] = []  # what a library that hangs may still use
_ports: dict[HamamatsuOptions, int] = {}  # taken before; the same again after Init, so that receivers find it


class Hamamatsu(Backend):
    """Translates; the camera has the properties, the run takes and sends the frames, the knobs are the expert's."""

    Options: ClassVar[type] = HamamatsuOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: HamamatsuOptions) -> None:
        """ConfigError: the vendor's library is not there."""
        self._options = options
        self._library: Library = library(options.library)
        self._held = False  # the library is initialised for us
        self._camera: Camera | None = None
        self._ring: CameraRing | None = None
        self._run: Run | None = None
        self._info: DetectorInfo | None = None
        self._endpoint = ""
        self._looked = 0.0
        self._given_up = threading.Event()  # what blocks in `arm` is to return
        self.loaded = Settings()
        self.knobs: Knobs = Knobs(lambda: self._there, options.packed, options.cooling_timeout)

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> DetectorInfo:
        self.close()
        try:
            self._library.__enter__()
            self._held = True
            self._camera = camera = Camera(self._library, self._options.serial_number.strip())
            if camera.can_write(Prop.FRAMEBUNDLE_MODE):
                camera.put(Prop.FRAMEBUNDLE_MODE, OFF)
            self.knobs.restore()
            self._ring = CameraRing(self._options.memory)
            with contextlib.suppress(ConfigError):  # too small for the present images, perhaps not for others
                self._ring.divide(int(camera.get(Prop.IMAGE_FRAMEBYTES)))
            self._bind(self._ring)
            self._info = self._describe(camera)
        except ConfigError as exc:
            self.close()
            raise HardwareError(str(exc)) from exc
        except BaseException:
            self.close()
            raise
        return self._info

    def _describe(self, camera: Camera) -> DetectorInfo:
        pixel = self._options.pixel_of(camera.model)
        versions = (f"{camera.text(kind)}" for kind in (Text.CAMERAVERSION, Text.DRIVERVERSION, Text.DCAMAPIVERSION))
        return DetectorInfo(
            model=f"Hamamatsu {camera.series} {camera.model}".replace("  ", " "),
            serial_number=camera.serial,
            shape=sensor(camera),
            pixel_size=(pixel, pixel),
            sensor_material="Si",
            firmware="camera {}, driver {}, DCAM-API {}".format(*versions),
        )

    def _bind(self, ring: CameraRing) -> None:
        wanted = self._options.port or _ports.get(self._options, 0)
        try:
            self._start_run(wanted, ring)
        except HardwareError:
            if wanted == self._options.port:
                raise
            self._start_run(0, ring)  # somebody else has the port that we had, but nobody asked for that one
        _ports[self._options] = int(self._endpoint.rpartition(":")[2])

    def _start_run(self, port: int, ring: CameraRing) -> None:
        o = self._options
        run = Run(o.host, port, security.guard(o.curve_key, o.curve_clients, o.allow_peers), ring)
        run.start()
        try:
            self._endpoint = run.bound.result(BIND_LIMIT)
        except FutureTimeout:
            raise HardwareError(f"the stream was not bound within {BIND_LIMIT:g} s") from None
        self._run = run

    def close(self) -> None:
        self._given_up.set()
        run, self._run = self._run, None
        camera, self._camera = self._camera, None
        ring, self._ring = self._ring, None
        held, self._held = self._held, False
        if run is not None and not run.quit():
            log.error("the vendor's library does not return; camera and memory are left to it until the server ends")
            _left_behind.append((run, camera, ring))
            return
        if camera is not None:
            camera.close()
        if ring is not None:
            ring.close()
        if held:
            self._library.__exit__()

    @property
    def _there(self) -> Camera:
        if self._camera is None:
            raise HardwareError("not connected to the camera")
        return self._camera

    def endpoints(self) -> list[str]:
        return [self._endpoint] if self._endpoint else []

    # --- settings ----------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> Settings:
        self.loaded = load(self._there, settings, self.knobs.packed, self.knobs.sync_readout)
        return self.loaded

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        return shape(self._there), DTYPES[pixel_type(self._there)]

    def latency_time(self, settings: Settings) -> float:
        shortest = shortest_period(self._there, settings.trigger_mode, settings.exposure_time)
        return max(0.0, shortest - settings.exposure_time)

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: Series) -> None:
        self._given_up.clear()
        camera, run, ring, info = self._there, self._run, self._ring, self._info
        assert run is not None and ring is not None and info is not None
        self.knobs.wait_cold(self._given_up)
        settings = self.configure(series.settings)
        series = replace(series, settings=settings)  # a knob may have changed what the camera takes
        kind, (rows, columns) = buffer_type(camera), shape(camera)
        rowbytes = int(camera.get_or(Prop.BUFFER_ROWBYTES, camera.get(Prop.IMAGE_ROWBYTES)))
        offset = int(abs(camera.get_or(Prop.BUFFER_TOPOFFSETBYTES, 0.0)))
        frame_bytes = int(camera.get_or(Prop.BUFFER_FRAMEBYTES, camera.get(Prop.IMAGE_FRAMEBYTES)))
        ring.divide(max(frame_bytes, offset + rows * rowbytes))
        shortest = shortest_period(camera, settings.trigger_mode, settings.exposure_time)
        period = max(settings.frame_time, shortest)
        plan = Plan(
            series=series,
            metadata=self._tell(series, info, period),
            shape=(rows, columns),
            kind=kind,
            dtype=DTYPES[kind],
            codec=CODECS[kind],
            nbytes=rows * rowbytes,
            offset=offset,
            stride=None if rowbytes == _packed(kind, columns) else rowbytes,
            period=period,
            pace=settings.frame_time if settings.trigger_mode is TriggerMode.SOFTWARE else 0.0,
            start_limit=self._options.send_timeout,
        )
        run.begin(plan, camera)

    @staticmethod
    def _tell(series: Series, info: DetectorInfo, period: float) -> dict[str, Any]:
        """For the file."""
        told = start_metadata(series, info, period)
        told["detector"]["saturation_value"] = 2**series.settings.bit_depth - 1
        return told

    def start(self) -> None:
        if self._run is not None:
            self._run.go()

    def trigger(self) -> None:
        if self._run is None:
            raise HardwareError("software trigger refused: not connected to the camera")
        self._run.fire()

    def stop(self) -> None:
        self._given_up.set()
        if self._run is not None:
            self._run.halt()

    def status(self) -> Status:
        run, camera = self._run, self._camera
        if run is None or camera is None:
            return Status(Phase.IDLE)
        if not run.is_alive():
            raise HardwareError("the thread that sends the frames has ended; see the log")
        status = run.status
        if status.phase in (Phase.IDLE, Phase.DONE) and time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            camera.status()  # HardwareError: it is gone
            if camera.get_or(Prop.SYSTEM_ALIVE, 2) == 1:
                raise HardwareError("the camera is offline (SYSTEM_ALIVE); is it on?")
        return status

    # --- what the knobs show -----------------------------------------------------------------------------------------

    @property
    def numbers(self) -> Numbers:
        return self._run.numbers if self._run is not None else Numbers()

    @property
    def data_thread(self) -> int:
        """Its ident: the thread that sends the frames, for who measures."""
        return (self._run.ident or 0) if self._run is not None else 0

    @property
    def buffers(self) -> int:
        return self._ring.buffers if self._ring is not None else 0

    @property
    def window(self) -> int:
        """Frames that may be under way to the receiver at a time."""
        return self._ring.window if self._ring is not None else 0

    @property
    def waiting(self) -> int:
        return self._run.waiting if self._run is not None else 0

    @property
    def rescued(self) -> int:
        return self._ring.rescued if self._ring is not None else 0


def _packed(kind: PixelType, columns: int) -> int | float:
    """Bytes of a row without padding; of an odd number of pixels in 12 bits there is no such."""
    return {"uint8": 1, "uint16": 2}[DTYPES[kind]] * columns if CODECS[kind] == "none" else 1.5 * columns
