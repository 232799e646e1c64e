"""Andor's sCMOS cameras (Zyla, Neo, Balor, Marana, Sona) by the vendor's SDK3; this device streams what they see."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any, ClassVar

from tangods_detector.hw import andor_parameters
from tangods_detector.hw.andor_frames import Numbers
from tangods_detector.hw.andor_parameters import PARAMETERS
from tangods_detector.hw.andor_pump import STOP_LIMIT, Pump, Run, spare
from tangods_detector.hw.andor_sdk import DEVICEINUSE, Camera, Library, SdkError
from tangods_detector.hw.andor_settings import AndorOptions, Sensor, image_shape
from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.hw.frame_ring import FrameRing
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import start_metadata
from tangods_receiver.errors import ConfigError, DaqError, HardwareError

log = logging.getLogger(__name__)

LOOK = 1.0  # s between two looks whether an idle camera is still there
COOLING_LOOK = 0.2  # s between two looks at the sensor's temperature before a series
PRETENDED = "SIMCAM"  # in the model of the cameras that the SDK makes up when it finds none
_ports: dict[AndorOptions, int] = {}  # taken before; the same again after Init, so that receivers find it
_left_behind: list[Any] = []  # what a library that hangs may still use


class Andor(Backend):
    """Finds the camera, loads settings; the sensor knows the features, the pump moves the frames."""

    Options: ClassVar[type] = AndorOptions
    trigger_modes: ClassVar[frozenset[TriggerMode]] = frozenset(TriggerMode)
    parameters: ClassVar[tuple[Parameter, ...]] = PARAMETERS

    def __init__(self, options: AndorOptions) -> None:
        """ConfigError: the vendor's library is not there."""
        self._options = options
        self._library = Library.load(options.library)
        self._opened = False  # the library, by us
        self._camera: Camera | None = None
        self._sensor: Sensor | None = None
        self._info: DetectorInfo | None = None
        self._ring: FrameRing | None = None
        self._pump: Pump | None = None
        self._port = options.port or _ports.get(options, 0)
        self._endpoint = ""
        self._given_up = threading.Event()
        self._looked = 0.0
        self._chosen: dict[str, Any] = {}  # by the expert; loaded again into a camera that was switched off

    # --- the camera --------------------------------------------------------------------------------------------------

    def connect(self) -> DetectorInfo:
        self.close()
        self._library.open()
        self._opened = True
        try:
            self._camera = self._find()
            self._sensor = Sensor(self._camera, self._options)
            self._info = self._sensor.info()
            if self._ring is None:
                self._ring = FrameRing(self._options.memory)
            self._turn_again(self._camera)
            self._start_pump(self._ring)
        except BaseException:
            self.close()
            raise
        return self._info

    def _find(self) -> Camera:
        """The camera of the serial number, or the first that is free. Their order changes between boots."""
        wanted, library, seen = self._options.serial_number, self._library, []
        for index in range(library.system.get_int("DeviceCount")):
            try:
                camera = library.camera(index)
            except SdkError as exc:
                if exc.code != DEVICEINUSE:
                    raise
                seen.append("one that another program has")
                continue
            try:
                model, serial = camera.get_string("CameraModel"), camera.get_string("SerialNumber")
            except BaseException:
                camera.close()
                raise
            if PRETENDED not in model and wanted in ("", serial):
                return camera
            camera.close()
            if PRETENDED not in model:
                seen.append(f"{model} {serial}")
        found = f"found: {', '.join(seen)}" if seen else "the SDK finds none; look at power, cable and frame grabber"
        raise HardwareError(f"no camera{' with the serial number ' + wanted if wanted else ''}; {found}")

    def _turn_again(self, camera: Camera) -> None:
        for feature, value in self._chosen.items():
            try:
                if feature == "TargetTemperature":
                    andor_parameters.set_target_temperature(camera, value)
                elif isinstance(value, bool):
                    andor_parameters.switch(camera, feature, value, feature)
                else:
                    andor_parameters.choose(camera, feature, value, feature)
            except DaqError as exc:
                log.warning("not set again: %s", exc)

    def _start_pump(self, ring: FrameRing) -> None:
        for port in dict.fromkeys((self._port, self._options.port)):
            pump = Pump(self._options, port, ring)
            pump.start()
            try:
                self._endpoint = pump.bound.result(STOP_LIMIT)
            except FutureTimeout:
                raise HardwareError(f"the stream was not opened within {STOP_LIMIT:g} s") from None
            except HardwareError:
                if port == self._options.port:
                    raise
                continue  # somebody else has the port that we had, but nobody asked for that one
            self._pump = pump
            self._port = _ports[self._options] = int(self._endpoint.rpartition(":")[2])
            return

    def close(self) -> None:
        self._given_up.set()
        pump, self._pump = self._pump, None
        camera, self._camera, self._sensor = self._camera, None, None
        ring, self._ring = self._ring, None
        if pump is not None and not pump.quit():
            log.error("the vendor's library hangs; its thread, its camera and the frames' memory are left behind")
            _left_behind.append((camera, ring))
            return
        if ring is not None:
            ring.close()
        if camera is not None:
            camera.close()
        opened, self._opened = self._opened, False
        if opened:
            self._library.close()

    @property
    def camera(self) -> Camera:
        if self._camera is None:
            raise HardwareError("not connected to the camera")
        return self._camera

    @property
    def _there(self) -> Sensor:
        if self._sensor is None:
            raise HardwareError("not connected to the camera")
        return self._sensor

    @property
    def sensor_shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self._there.size

    @property
    def data_thread(self) -> int:
        """Of this process, while it is connected."""
        assert self._pump is not None and self._pump.ident is not None
        return self._pump.ident

    def endpoints(self) -> list[str]:
        return [self._endpoint] if self._endpoint else []

    # --- what an expert turns ----------------------------------------------------------------------------------------

    @property
    def gain(self) -> str:
        """The feature that sets it; "": this camera has none."""
        return self._there.gain

    def turned(self, name: str, value: Any) -> None:
        """To be turned again after the camera was away."""
        self._chosen[name] = value

    def expose_live(self, seconds: float) -> None:
        run = self._pump.current if self._pump is not None else None
        acquiring = run is not None and run.phase is Phase.ACQUIRING and run.series.live
        if not acquiring and seconds == andor_parameters.real(self.camera, "ExposureTime"):
            return
        andor_parameters.expose_live(self.camera, seconds, acquiring)
        if run is not None:
            run.exposure = self.camera.get_float("ExposureTime")
            run.period = 1 / self.camera.get_float("FrameRate")

    @property
    def lost(self) -> int:
        run = self._pump.current if self._pump is not None else None
        return run.numbers.losses.count if run is not None else 0

    @property
    def free(self) -> int:
        ring = self._ring
        return max(0, ring.count - ring.held - spare(ring.count)) if ring is not None else 0

    # --- settings ----------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> Settings:
        return self._there.load(settings)

    def check(self, settings: Settings) -> None:
        if settings.trigger_mode is TriggerMode.EXTERNAL_MULTI and settings.n_frames_per_trigger != 1:
            raise ConfigError(
                f"nFramesPerTrigger: {settings.n_frames_per_trigger}; in EXTERNAL_MULTI each edge gives one frame; "
                "set it to 1 and nTriggers to the number of frames"
            )
        if self._ring is not None:
            self._ring.room(self._there.layout().nbytes)

    def latency_time(self, settings: Settings) -> float:
        """Of the settings that were loaded last."""
        return self._there.latency

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        return image_shape(settings, self._there.size), "uint16"

    # --- a series ----------------------------------------------------------------------------------------------------

    def arm(self, series: Series) -> None:
        self._given_up.clear()
        sensor, pump, ring, info = self._there, self._pump, self._ring, self._info
        assert pump is not None and ring is not None and info is not None
        series = replace(series, settings=sensor.load(series.settings, series.live))
        self._wait_cold()
        layout = sensor.layout()
        ring.divide(layout.nbytes, self._options.buffers)
        settings = series.settings
        metadata = start_metadata(series, info, sensor.period)
        clocked = settings.trigger_mode in (TriggerMode.INTERNAL, TriggerMode.EXTERNAL_SINGLE) and not series.live
        period = sensor.period * layout.hz if clocked else 0.0
        numbers = Numbers(period, series.n_frames)
        run = Run(series, self.camera, layout, metadata, settings.exposure_time, sensor.period, numbers)
        self._count_overflows(run)
        pump.arm(run)

    def _count_overflows(self, run: Run) -> None:
        """The library tells of each frame that found no buffer."""
        camera = self.camera
        camera.forget_events()
        if not camera.has("BufferOverflowEvent"):
            return
        if camera.is_writable("EventSelector") and "BufferOverflowEvent" in camera.choices("EventSelector"):
            camera.set_enum("EventSelector", "BufferOverflowEvent")
            camera.set_bool("EventEnable", True)
        camera.on_event("BufferOverflowEvent", run.overflow)

    def _wait_cold(self) -> None:
        """Until the sensor's temperature is stable, where that is wished for. HardwareError: it does not come about."""
        camera, limit = self.camera, self._options.cooling_timeout
        status = andor_parameters.text(camera, "TemperatureStatus")
        if status == "Fault":
            raise HardwareError("the camera reports a fault of its cooling (TemperatureStatus); look at fan and water")
        if not limit or not andor_parameters.truth(camera, "SensorCooling"):
            return
        deadline = time.monotonic() + limit
        while (status := andor_parameters.text(camera, "TemperatureStatus")) not in ("Stabilised", ""):
            if time.monotonic() > deadline or status == "Fault":
                now, target = camera.get_float("SensorTemperature"), andor_parameters.target_temperature(camera)
                raise HardwareError(
                    f"the sensor is at {now:.1f} degC and not stable at {target:g} degC within {limit:g} s ({status}); "
                    "look at fan and water, or set another TargetTemperature"
                )
            if self._given_up.wait(COOLING_LOOK):
                raise HardwareError("stopped while the sensor was being cooled")

    def start(self) -> None:
        if self._pump is not None:
            self._looked = time.monotonic()
            self._pump.go()

    def trigger(self) -> None:
        if self._pump is None:
            raise HardwareError("not connected to the camera")
        self._pump.trigger()

    def stop(self) -> None:
        self._given_up.set()
        if self._pump is not None:
            self._pump.halt()

    def status(self) -> Status:
        pump, now = self._pump, time.monotonic()
        if pump is None:
            return Status(Phase.IDLE)
        if not pump.is_alive():
            raise HardwareError("the thread that takes the frames has ended; see the log")
        status = pump.status
        if status.phase not in (Phase.ACQUIRING, Phase.ERROR) and now - self._looked >= LOOK * 0.9:
            self._looked = now
            self.camera.get_bool("CameraAcquiring")  # raises when it is gone
        return status
