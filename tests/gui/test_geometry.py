"""The beam centre in the live view, before a detector that the test plays: it is of one image, not of all."""

from __future__ import annotations

import pytest

from tests.gui.bench import LIMIT, Bench

pytestmark = [pytest.mark.slow]


def known(bench: Bench) -> None:
    """A centre, and rings about it."""
    bench.tell(PixelSize=(1e-4, 1e-4), Binning=(1, 1), Roi=(0, 0, 640, 512), Rotation=0, Fliplr=False, Flipud=False)
    pane = bench.live.geometry
    bench.qtbot.waitUntil(lambda: "Roi" in bench.source.readings, timeout=LIMIT)
    pane.set_values(row=200.0, column=300.0, distance=0.1, energy=12000.0)
    bench.live.rings.setChecked(True)
    assert pane.geometry().known and len(bench.live.beam) and pane.write.isEnabled()


CHANGES = {"Binning": (2, 2), "Roi": (10, 0, 630, 512), "Rotation": 180, "Fliplr": True, "Flipud": True}


@pytest.mark.parametrize("name", CHANGES)
def test_a_centre_of_another_image_is_not_used_until_it_is_confirmed(bench: Bench, name: str) -> None:
    known(bench)
    pane = bench.live.geometry
    assert pane.confirm.isHidden()
    bench.tell(**{name: CHANGES[name]})
    bench.qtbot.waitUntil(
        lambda: f"▲ The centre is of the image before {name} changed" in pane.about.text(), timeout=LIMIT
    )
    assert not pane.geometry().known and len(bench.live.beam) == 0
    assert not pane.write.isEnabled() and not pane.confirm.isHidden()
    pane.confirm.click()
    assert pane.geometry().centre == (200.0, 300.0) and len(bench.live.beam)
    assert pane.write.isEnabled() and pane.confirm.isHidden()


def test_a_new_centre_is_of_the_present_image(bench: Bench) -> None:
    known(bench)
    pane = bench.live.geometry
    bench.tell(Rotation=90)
    bench.qtbot.waitUntil(lambda: not pane.write.isEnabled(), timeout=LIMIT)
    pane.set_values(column=250.0)
    assert not pane.geometry().known, "the row is of before"
    pane.set_values(row=150.0)
    assert pane.geometry().centre == (150.0, 250.0) and pane.write.isEnabled()
    bench.tell(Fliplr=True)
    bench.qtbot.waitUntil(lambda: not pane.write.isEnabled(), timeout=LIMIT)
    bench.tell(Metadata='{"beam_center_x": 400, "beam_center_y": 100}')
    bench.qtbot.waitUntil(lambda: pane.geometry().centre == (100.0, 400.0), timeout=LIMIT)
    assert pane.write.isEnabled() and pane.geometry().known
