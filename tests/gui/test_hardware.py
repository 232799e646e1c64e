"""The panel Hardware, before a detector that the test plays."""

from __future__ import annotations

import numpy as np
import pytest

from taurus_gui.orders import Described
from tests.gui.bench import LIMIT, Bench

pytestmark = [pytest.mark.slow]
OWN = (
    Described("SensorTemperature", "Sensor temperature", "", "degC", "float"),
    Described("Gain", "Gain", "", "", "int", writable=True),
)


def test_while_the_hardware_is_away_there_are_no_temperatures(bench: Bench) -> None:
    hardware = bench.widget.hardware
    bench.widget.show_panel("Hardware")
    bench.put("described", {one.name: one for one in OWN})
    bench.tell(SensorTemperature=20.5, Gain=3)
    shown = bench.qtbot.waitUntil
    shown(lambda: "SensorTemperature" in hardware.shown and "20.5" in hardware.shown["SensorTemperature"].text())
    trend = hardware.trends["SensorTemperature"]
    shown(lambda: 20.5 in trend.curve(60)[1], timeout=LIMIT)
    bench.tell(SensorTemperature=None, Gain=None)
    shown(lambda: hardware.shown["SensorTemperature"].text() == "–", timeout=LIMIT)
    assert hardware.fields["Gain"].line.text() == "3"
    shown(lambda: bool(np.isnan(trend.curve(60)[1][-1])), timeout=LIMIT)
    bench.tell(SensorTemperature=21.5)
    shown(lambda: trend.curve(60)[1][-1] == 21.5, timeout=LIMIT)
    bench.tell(State="UNKNOWN")
    shown(lambda: bool(np.isnan(trend.curve(60)[1][-1])), timeout=LIMIT)
    hardware.plot.grab()
