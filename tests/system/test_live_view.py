"""What viewers and alignment scans see while a detector runs."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import h5py
import numpy as np
import pytest

from tests.system.beamline import DATASET, ON, Beamline, wait_for

pytestmark = pytest.mark.system


@pytest.fixture
def regions(beamline: Beamline) -> Iterator[list[str]]:
    lines = ["all 0 0 80 64", "corner 5 7 20 10"]
    beamline.receiver.Rois = lines
    yield lines
    beamline.receiver.Rois = []


def test_an_alignment_scan_reads_the_sum_of_each_point(beamline: Beamline, regions: list[str]) -> None:
    """Point by point: one image, and as soon as the detector is ON its values are there."""
    for _ in range(3):
        file = beamline.acquire(nFramesPerTrigger=2)
        series = beamline.receiver.SeriesClosed
        values = beamline.receiver.read_attributes(["RoiSum", "RoiSeries", "RoiFrameNumber", "RoiCentreX", "RoiPixels"])
        sums, number_of_series, number, centres, pixels = (one.value for one in values)
        assert (number_of_series, number) == (series, 1)
        with h5py.File(file) as h5:
            image = h5[DATASET][1].astype(float)
        assert list(sums) == [image.sum(), image[7:17, 5:25].sum()] and list(pixels) == [80 * 64, 200]
        assert centres[0] == pytest.approx((image.sum(axis=0) @ np.arange(80)) / image.sum())
        assert beamline.receiver.RoiHistory[-1, :2].tolist() == [series, 1]


def test_regions_and_images_while_a_detector_runs(beamline: Beamline, regions: list[str]) -> None:
    beamline.set()
    detector, receiver = beamline.detector, beamline.receiver
    detector.Live()
    beamline.wait_running()
    numbers = []

    def ten_images() -> bool:
        number, sums = (one.value for one in receiver.read_attributes(["RoiFrameNumber", "RoiSum"]))
        if number >= 0 and number not in numbers:
            assert sums[0] >= sums[1] > 0
            numbers.append(int(number))
        return len(numbers) >= 10

    wait_for("images with regions", ten_images)
    assert numbers == sorted(numbers)
    for device in (detector, receiver):
        format, data = device.video_last_image
        magic, _, mode, number, width, height = struct.unpack(">IHHqii", data[:24])
        assert (format, magic, width, height) == ("VIDEO_IMAGE", 0x5644454F, 80, 64)
        assert len(data) == 32 + 80 * 64 * 2**mode and number >= numbers[-1]
    detector.Stop()
    assert beamline.wait_end() in ON
