"""A Detector with an Andor camera (the pretended SDK in its process) and its StreamReceiver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tangods_detector.localtango import LocalTango
from tangods_detector.settings import Settings
from tangods_detector.simulators import andor
from tests.hw.andor_library import expected_image
from tests.system.beamline import DATASET, Beamline, wait_for

SIZES = {"zyla": (2160, 2560), "balor": (4104, 4128)}
ROI = {"zyla": (100, 200, 260, 128), "balor": (96, 200, 256, 128)}
GOOD = {"nFramesPerTrigger": 20}


class AndorBeamline(Beamline):
    """`tell` and `count` are the camera's side; `model` one of fake_atcore_models.h."""

    def __init__(
        self,
        local: LocalTango,
        instance: str,
        root: Path,
        model: str = "zyla",
        options: Sequence[str] = (),
        lines: Sequence[str] = (),
        **more: Any,
    ) -> None:
        super().__init__(local, instance, root, EndTimeout=1.0)
        self.model, self._options, self._lines, self._more = model, options, lines, more
        self.library = root / "sdk" / andor.NAME

    def make_library(self, *cameras: str) -> None:
        andor.make(self.library.parent, cameras, self._lines)

    def __enter__(self) -> AndorBeamline:
        self.make_library(f"{self.model} SN-1")
        self.options = [f"library = {self.library}", "frame_timeout = 1", *self._options]
        properties = {"Backend": "andor", "BackendOptions": self.options, "Receiver": self.receiver_name, **self._more}
        self.put("Detector", self.detector_name, **properties)
        self.local.start(f"Detector/{self.instance}")
        self.detector = self.local.device(self.detector_name)
        endpoints = wait_for("the detector's stream", lambda: list(self.detector.Endpoints or []))
        self.options.append(f"port = {endpoints[0].rpartition(':')[2]}")
        self.put("Detector", self.detector_name, BackendOptions=self.options)
        self.put("StreamReceiver", self.receiver_name, Root=str(self.root), Endpoints=endpoints)
        self.put("StreamReceiver", self.receiver_name, **self.receiver_properties)
        self.start_receiver()
        self.wait_on(60)
        self.detector.Roi = ROI[self.model]
        return self

    def tell(self, *commands: str) -> None:
        """Obeyed when it returns."""
        for words in commands:
            andor.tell(self.library, words)
        self._report()

    def count(self, what: str) -> int:
        """Of the camera's own books."""
        return int(dict(line.split() for line in self._report().splitlines())[what])

    def _report(self) -> str:
        report = Path(f"{self.library}.report")
        report.unlink(missing_ok=True)
        andor.tell(self.library, "report")
        wait_for("the report", report.exists)
        return report.read_text()

    def good_series(self) -> None:
        """Whatever happened before, the next series is complete, by content."""
        self.tell("calm")
        file = self.acquire(**GOOD)
        self.assert_taken(file, 20)
        assert self.detector.nFramesMissing == 0, self.detector.status()
        file.unlink()

    def settings(self) -> Settings:
        """What the images follow from, as the camera accepted it."""
        detector = self.detector
        x, y, width, height = (int(n) for n in detector.Roi)
        bin_x, bin_y = (int(n) for n in detector.Binning)
        return Settings(roi=(x, y, width, height), binning=(bin_x, bin_y), bit_depth=int(detector.BitDepth))

    def assert_taken(self, file: Path, n: int, lost: Sequence[int] = ()) -> None:
        """Every image of the series is at its place, pixel by pixel; those that were lost are empty."""
        settings = self.settings()
        with h5py.File(file) as h5:
            data = h5[DATASET]
            assert data.shape[0] == n and data.dtype == np.uint16
            for number in range(n):
                if number not in lost:
                    image = expected_image(number, settings, SIZES[self.model], settings.bit_depth)
                    assert np.array_equal(data[number], image), f"image {number}"
                else:
                    assert not data[number].any()
