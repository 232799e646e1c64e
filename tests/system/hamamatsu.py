"""A Detector with a Hamamatsu camera of a pretended library, and its StreamReceiver, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tangods_detector.localtango import LocalTango
from tangods_detector.simulators import hamamatsu
from tests.hw.dcam import expected
from tests.system.beamline import DATASET, Beamline, wait_for

MEMORY = "memory = 300000000"
ROI = (64, 32, 256, 128)  # x, y, width, height


class CameraBeamline(Beamline):
    """`camera` is model and serial number; `tell` reaches its library."""

    def __init__(
        self,
        local: LocalTango,
        instance: str,
        root: Path,
        camera: str,
        options: Sequence[str] = (),
        **properties: Any,
    ) -> None:
        super().__init__(local, instance, root, EndTimeout=1.0)
        self.library = root / "library" / hamamatsu.NAME
        self.camera = camera
        self.options = [f"library = {self.library}", f"serial_number = {camera.split()[1]}", *options]
        self._properties = properties

    def __enter__(self) -> CameraBeamline:
        hamamatsu.make(self.library.parent, [self.camera])
        self.put("Detector", self.detector_name, Receiver=self.receiver_name, **self._properties)
        self.put("Detector", self.detector_name, Backend="hamamatsu", BackendOptions=self.options)
        self.start_detector()
        endpoints = wait_for("the stream", lambda: list(self.detector.Endpoints or []), 60)
        self.put("StreamReceiver", self.receiver_name, Root=str(self.root), Endpoints=endpoints)
        self.put("StreamReceiver", self.receiver_name, **self.receiver_properties)
        self.start_receiver()
        self.wait_on(60)
        self.detector.Roi = ROI
        return self

    def tell(self, words: str) -> None:
        hamamatsu.tell(self.library, words)

    def set(self, **settings: Any) -> Path:
        """As of Beamline; a mode is chosen when the numbers fit it."""
        self.detector.TriggerMode = "INTERNAL"
        mode = settings.pop("TriggerMode", "INTERNAL")
        file = super().set(**{"ExposureTime": 0.002, "FrameTime": 0.0, "nFramesPerTrigger": 20, **settings})
        self.detector.TriggerMode = mode
        return file

    def good_series(self) -> None:
        file = self.acquire()
        assert_images(file, 20)
        assert self.detector.nFramesMissing == 0, self.detector.status()
        file.unlink()


def assert_images(
    file: Path, n: int, lost: Sequence[int] = (), shape: tuple[int, int] = (ROI[3], ROI[2]), bits: int = 16
) -> None:
    """Every image is at its place, pixel by pixel; where one is lost the file has nothing."""
    with h5py.File(file) as h5:
        data = h5[DATASET]
        assert data.shape == (n, *shape)
        for number in range(n):
            wanted = np.zeros(shape, data.dtype) if number in lost else expected(shape, bits, number)
            assert np.array_equal(data[number], wanted), f"image {number}"
