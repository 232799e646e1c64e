"""A kind of detector in one file: a camera that draws its own pictures."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np

from tangods_detector.hw.base import Backend, DetectorInfo, Parameter, Phase, Status
from tangods_detector.options import option
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.streamer import Streamer, start_metadata
from tangods_receiver.errors import ConfigError, HardwareError

READOUT = 1e-4  # s between two exposures


@dataclass(frozen=True)
class CameraOptions:
    """What BackendOptions may say; each with a sentence for the operator."""

    port: int = option(9998, "TCP port of the stream")
    rows: int = option(64, "rows of an image")
    columns: int = option(80, "columns of an image")


class MyCamera(Backend):
    """The thread `_expose` is the hardware; all else is what a driver of it would be."""

    Options = CameraOptions
    trigger_modes = frozenset({TriggerMode.INTERNAL, TriggerMode.SOFTWARE})
    parameters = (
        Parameter(
            "Brightness",
            int,
            "Counts in the brightest pixel of a picture",
            get=lambda camera: camera.brightness,
            set=lambda camera, value: setattr(camera, "brightness", value),
            min_value=1,
            max_value=60_000,
        ),
    )

    def __init__(self, options: CameraOptions) -> None:
        self.options = options
        self.brightness = 1000
        self._streamer: Streamer | None = None
        self._thread: threading.Thread | None = None
        self._abort = threading.Event()
        self._triggers = threading.Semaphore(0)
        self._series: Series | None = None
        self._now = Status(Phase.IDLE)

    def connect(self) -> DetectorInfo:
        options = self.options
        if self._streamer is None:
            nbytes = options.rows * options.columns * 2
            self._streamer = Streamer("127.0.0.1", options.port, 100_000_000, nbytes, self._abort)
        return DetectorInfo("MyCamera", "1", (options.rows, options.columns), (6.5e-6, 6.5e-6), "Si")

    def close(self) -> None:
        self.stop()
        if self._streamer is not None:
            self._streamer.close()
            self._streamer = None

    def configure(self, settings: Settings) -> Settings:
        if settings.roi or settings.binning != (1, 1):
            raise ConfigError("Roi, Binning: this camera has none; let the receiver crop and bin")
        if settings.bit_depth not in (0, 16):
            raise ConfigError(f"BitDepth: {settings.bit_depth}; this camera has 16")
        return replace(settings, bit_depth=16)

    def image_format(self, settings: Settings) -> tuple[tuple[int, int], str]:
        return (self.options.rows, self.options.columns), "uint16"

    def latency_time(self, settings: Settings) -> float:
        return READOUT

    def endpoints(self) -> list[str]:
        return [f"tcp://127.0.0.1:{self.options.port}"]

    def arm(self, series: Series) -> None:
        assert self._streamer is not None  # `connect` was called
        self._abort.clear()
        self._triggers = threading.Semaphore(0)
        shape, dtype = self.image_format(series.settings)
        metadata = start_metadata(series, self.connect(), self._period(series.settings))
        self._streamer.begin(series, metadata, shape=shape, dtype=dtype, codec="none", limit=5.0)
        self._series, self._now = series, Status(Phase.ARMED)
        self._thread = threading.Thread(target=self._expose, args=(series,), name="camera", daemon=True)

    def start(self) -> None:
        assert self._thread is not None  # `arm` was called
        self._now = replace(self._now, phase=Phase.ACQUIRING)
        self._thread.start()

    def trigger(self) -> None:
        if self._series is None or self._series.settings.trigger_mode is not TriggerMode.SOFTWARE:
            raise HardwareError("trigger: this camera waits for none")
        self._now = replace(self._now, triggers=self._now.triggers + 1)
        self._triggers.release()

    def stop(self) -> None:
        self._abort.set()
        self._triggers.release()
        thread, self._thread, self._series = self._thread, None, None
        if thread is None or self._streamer is None:
            return
        if thread.is_alive():
            thread.join()
        self._streamer.end()
        self._now = replace(self._now, phase=Phase.IDLE)

    def status(self) -> Status:
        return self._now

    def _period(self, settings: Settings) -> float:
        return max(settings.frame_time, settings.exposure_time + READOUT)

    def _expose(self, series: Series) -> None:
        """Picture after picture, at the set times; the last one ends it."""
        settings, number = series.settings, 0
        while not self._abort.is_set() and (series.live or number < settings.n_frames):
            if settings.trigger_mode is TriggerMode.SOFTWARE and number % settings.frames_per_start == 0:
                self._triggers.acquire()
            if self._abort.wait(self._period(settings)) or not self._send(number, settings):
                return
            number += 1
            self._now = replace(self._now, frames=number)
        self._now = replace(self._now, phase=Phase.DONE)

    def _send(self, number: int, settings: Settings) -> bool:
        assert self._streamer is not None
        shape, dtype = self.image_format(settings)
        rows, columns = np.indices(shape)
        waves = np.cos(rows / 9 + number) * np.cos(columns / 9)
        picture = ((waves + 1) * self.brightness / 2).astype(dtype)
        return self._streamer.frame(number, picture.data.cast("B"), shape=shape, dtype=dtype, codec="none")
