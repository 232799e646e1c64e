"""The panel Acquire, before a detector that the test plays: what is said of a file name is of the one that is shown."""

from __future__ import annotations

import pytest
from PyQt5.QtCore import Qt
from PyQt5.QtWidgets import QShortcut

from taurus_gui.orders import Order
from tests.gui.bench import LIMIT, Bench

pytestmark = [pytest.mark.slow]


def exists(bench: Bench, name: str) -> None:
    bench.answer(Order("check", "CheckFile", (name, 1)), value=(f"{name}: exists; choose another name", 1e9))


def until_said(bench: Bench, sentence: str) -> None:
    warning = bench.widget.acquire.warning
    bench.qtbot.waitUntil(lambda: sentence in warning.sentence and warning.isHidden() != bool(sentence), timeout=LIMIT)


def until_heard(bench: Bench) -> None:
    """All that was told until now has come."""
    bench.picture()


def test_an_answer_about_a_name_that_was_given_up_is_not_shown(bench: Bench) -> None:
    exists(bench, "/data/a.h5")
    until_said(bench, "a.h5 exists")
    bench.tell(DestinationFilename="/data/b.h5")  # by somebody else
    until_heard(bench)
    assert bench.widget.acquire.warning.isHidden()
    exists(bench, "/data/a.h5")  # the answer to what was asked before
    until_heard(bench)
    assert bench.widget.acquire.warning.isHidden()
    bench.qtbot.waitUntil(lambda: bench.orders("check")[-1:] == [("/data/b.h5", 65536000)], timeout=LIMIT)
    exists(bench, "/data/b.h5")
    until_said(bench, "b.h5 exists")


def test_what_was_said_of_a_name_goes_when_another_is_typed_and_comes_back_with_it(bench: Bench) -> None:
    exists(bench, "/data/a.h5")
    until_said(bench, "a.h5 exists")
    line = bench.widget.acquire.file.line
    line.selectAll()
    bench.qtbot.keyClicks(line, "/data/c.h5")
    assert bench.widget.acquire.warning.isHidden()
    bench.qtbot.waitUntil(lambda: "/data/c.h5" in [name for name, _ in bench.orders("check")], timeout=LIMIT)
    exists(bench, "/data/a.h5")
    until_heard(bench)
    assert bench.widget.acquire.warning.isHidden()
    exists(bench, "/data/c.h5")
    until_said(bench, "c.h5 exists")
    bench.qtbot.keyClick(line, Qt.Key_Escape)
    assert bench.widget.acquire.warning.isHidden() and line.text() == "/data/a.h5"
    bench.qtbot.waitUntil(lambda: bench.orders("check")[-1][0] == "/data/a.h5", timeout=LIMIT)


def test_the_file_that_is_being_written_is_not_said_to_exist(bench: Bench) -> None:
    bench.tell(State="RUNNING", LastFilename="/data/a.h5")
    until_heard(bench)
    exists(bench, "/data/a.h5")
    until_heard(bench)
    assert bench.widget.acquire.warning.isHidden()


def test_a_double_click_does_not_abort(bench: Bench) -> None:
    from taurus_gui.acquire import DOUBLE_CLICK

    bench.tell(State="RUNNING", LastFilename="/data/a.h5")
    abort = bench.widget.acquire.buttons["Abort"]
    given: list[str] = []
    bench.source.command = given.append  # type: ignore[method-assign]
    bench.qtbot.waitUntil(abort.isEnabled, timeout=LIMIT)
    abort.click()
    abort.click()
    assert given == [] and "lost" in abort.text()
    bench.qtbot.wait(DOUBLE_CLICK + 100)
    abort.click()
    assert given == ["Abort"]


def test_a_key_that_is_held_gives_one_command(bench: Bench) -> None:
    shortcuts = bench.widget.findChildren(QShortcut)
    keys = {shortcut.key().toString(): shortcut.autoRepeat() for shortcut in shortcuts}
    assert [keys[key] for key in ("F5", "F6", "F7", "F8", "Ctrl+F8")] == [False] * 5
