"""Pictures by Tango, of a receiver that the test plays. No Qt, no servers."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tango

from taurus_gui import tangoimages
from taurus_gui.mailbox import Mailbox
from taurus_gui.pictures import Picture
from taurus_gui.tangoimages import TangoImages, _cut
from tests.detector.pretend import wait_for

ROWS, COLUMNS = 2050, 1030


class Receiver:
    """Blocks of `blocks` pixels become one, by the order `asked`."""

    def __init__(self, asked: int = 1, blocks: int = 1) -> None:
        self.asked, self.number, self.broken = asked, 5, False
        self._image = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)[::blocks, ::blocks]
        self._image = self._image[: ROWS // blocks, : COLUMNS // blocks]

    def set_timeout_millis(self, _: int) -> None: ...

    def read_attributes(self, names: list[str]) -> list[Any]:
        if self.broken:
            tango.Except.throw_exception("API_x", "gone", "here")
        told = {"video_last_image_counter": self.number, "SeriesOpened": 1, "LiveDownsample": self.asked}
        return [SimpleNamespace(value=told[name]) for name in names]

    def read_attribute(self, _: str) -> Any:
        return SimpleNamespace(value=self._image)


@pytest.mark.parametrize(("asked", "blocks"), [(1, 1), (4, 4), (0, 3)])
def test_a_pixel_is_where_it_is_on_the_detector_whatever_the_receiver_made_smaller(
    asked: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Mailbox(lambda: None)
    receiver = Receiver(asked, blocks)
    monkeypatch.setattr(tangoimages.tango, "DeviceProxy", lambda name: receiver)
    images = TangoImages(box)
    images.frame_shape = ROWS, COLUMNS
    images.wish(region=(900, 300, 1500, 700), size=[100, 100])
    images.point_at("b1/rec/1")
    images.start()
    try:
        found: dict[str, Any] = {}
        wait_for("a picture", lambda: found.update(box.take()[0]) or "picture" in found)
    finally:
        images.close()
    picture = found["picture"][""]
    top, left, bottom, right = picture.region
    assert picture.full == (ROWS, COLUMNS) and picture.factor % blocks == 0 and picture.factor >= 6
    assert 0 <= 900 - top < picture.factor and 0 <= bottom - 1500 < picture.factor
    assert 0 <= 300 - left < picture.factor and 0 <= right - 700 < picture.factor
    assert picture.pixels[2, 3] == (top + 2 * picture.factor) * COLUMNS + left + 3 * picture.factor


def test_the_age_of_an_image_that_was_there_before_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Mailbox(lambda: None)
    receiver = Receiver()
    monkeypatch.setattr(tangoimages.tango, "DeviceProxy", lambda name: receiver)
    monkeypatch.setattr(tangoimages, "PERIOD", 0.02)
    monkeypatch.setattr(tangoimages, "RETRY", 0.02)
    images = TangoImages(box)
    images.point_at("b1/rec/1")
    images.start()

    def wait(kind: str, value: Any) -> Any:
        def come() -> Any:
            newest = box.take()[0].get(kind, {})
            return newest if newest and value(newest[""]) else None

        return wait_for(kind, come)[""]

    try:
        assert math.isnan(wait("picture", lambda p: p.number == 5).came)
        receiver.number = 6
        came = wait("picture", lambda p: p.number == 6).came
        assert 0 <= time.monotonic() - came < 5
        receiver.broken = True
        wait("images", bool)
        receiver.broken = False
        wait("images", lambda error: error == "")
        time.sleep(0.1)
        assert "picture" not in box.take()[0], "it is the same"
        receiver.number = 7
        assert abs(time.monotonic() - wait("picture", lambda p: p.number == 7).came) < 5
    finally:
        images.close()


@pytest.mark.parametrize("region", [(100, 100, 200, 200), (-5, -5, 0, 0), None])
def test_of_a_part_that_is_not_there_any_more_the_whole_is_shown(region: Any) -> None:
    whole = Picture(np.ones((50, 60)), None, (0, 0, 50, 60), (50, 60))
    assert _cut(whole, region, [64, 64]).region == (0, 0, 50, 60)
    assert _cut(whole, (40, -10, 80, 30), [64, 64]).region == (40, 0, 50, 30)
