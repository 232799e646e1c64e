"""Editors of attributes, before a detector that the test plays: what is typed is kept, what was refused stays so."""

from __future__ import annotations

from typing import Any

import pytest
from PyQt5.QtCore import Qt

from taurus_gui.orders import Order
from tests.gui.bench import LIMIT, Bench

pytestmark = [pytest.mark.slow]


def retype(bench: Bench, line: Any, text: str, enter: bool = True) -> None:
    line.setFocus()
    line.selectAll()
    bench.qtbot.keyClicks(line, text)
    if enter:
        bench.qtbot.keyClick(line, Qt.Key_Return)


def answer(bench: Bench, name: str, value: Any, error: str = "", **readings: Any) -> None:
    """Wait until it has come."""
    heard: list[Any] = []
    bench.source.answered.connect(heard.append)
    bench.tell(**readings)
    bench.answer(Order("write", name, value), error)
    bench.qtbot.waitUntil(lambda: bool(heard), timeout=LIMIT)


def test_what_is_typed_is_not_overwritten_by_the_answer_to_what_was_sent_before(bench: Bench) -> None:
    field = bench.widget.acquire.exposure
    retype(bench, field.line, "0.2")
    retype(bench, field.line, "0.35", enter=False)
    answer(bench, "ExposureTime", 0.2, ExposureTime=0.2)
    assert field.line.text() == "0.35" and field.edited
    bench.qtbot.keyClick(field.line, Qt.Key_Return)
    answer(bench, "ExposureTime", 0.35, ExposureTime=0.35)
    assert field.line.text() == "0.35" and not field.edited and bench.orders("write") == [0.2, 0.35]


def test_what_was_refused_is_sent_again_with_enter_only(bench: Bench) -> None:
    field = bench.widget.acquire.exposure
    retype(bench, field.line, "0.2")
    answer(bench, "ExposureTime", 0.2, "too long")
    bench.widget.acquire.period.line.setFocus()
    field.line.editingFinished.emit()
    assert bench.orders("write") == [0.2] and "too long" in field.complaint.sentence and field.edited
    bench.qtbot.keyClick(field.line, Qt.Key_Return)
    assert bench.orders("write") == [0.2, 0.2] and field.complaint.isHidden()
    answer(bench, "ExposureTime", 0.2, "too long")
    bench.tell(ExposureTime=0.2)  # somebody else could
    bench.qtbot.waitUntil(lambda: not field.edited and field.complaint.isHidden(), timeout=LIMIT)
    retype(bench, field.line, "0.2", enter=False)
    field.line.editingFinished.emit()
    assert bench.orders("write") == [0.2] * 3


@pytest.mark.parametrize("refused", ["", "not with this mode"])
def test_arm_waits_for_a_choice_and_a_switch(bench: Bench, refused: str) -> None:
    acquire = bench.widget.acquire
    given: list[str] = []
    bench.source.command = given.append  # type: ignore[method-assign]
    acquire.mode.combo.setCurrentText("SOFTWARE")
    acquire.mode.combo.activated.emit(acquire.mode.combo.currentIndex())
    acquire.save.box.click()
    acquire.give("Arm")
    assert given == [] and acquire.mode.edited and acquire.save.edited
    answer(bench, "TriggerMode", "SOFTWARE", TriggerMode="SOFTWARE")
    bench.picture()
    assert given == []
    answer(bench, "SaveRaw", False, refused, SaveRaw=bool(refused))
    if refused:
        bench.qtbot.waitUntil(lambda: "correct what is marked" in acquire.refusal.sentence, timeout=LIMIT)
    else:
        bench.qtbot.waitUntil(lambda: given == ["Arm"], timeout=LIMIT)
    assert bool(given) != bool(refused)
