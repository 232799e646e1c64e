"""Free space, also of a storage that says no or nothing."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest

from tangods_receiver import room
from tangods_receiver.room import Room
from tests.waiting import wait_for


def test_free_space_is_that_of_a_user_below_root(tmp_path: Path) -> None:
    one = Room(tmp_path, "test")
    assert one.free is None
    one.start()
    wait_for(lambda: one.free is not None, 30)
    one.stop(30)
    now = os.statvfs(tmp_path)
    assert one.free is not None and 0 < one.free <= now.f_blocks * now.f_frsize


def test_a_storage_that_is_gone_is_told_once_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "LOOK", 0.01)
    monkeypatch.setattr(room, "log", logging.getLogger("room of a test"))  # whatever others did to that of the module
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "mount"
    folder.mkdir()
    one = Room(folder, "test")
    one.start()
    wait_for(lambda: one.free, 30)
    folder.rmdir()
    wait_for(lambda: one.free is None, 30)
    folder.mkdir()
    wait_for(lambda: one.free, 30)
    one.stop(30)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "No such file" in caplog.text


def test_a_storage_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers = threading.Event(), threading.Event()
    real = os.statvfs

    def hanging(path: object) -> os.statvfs_result:
        asked.set()
        answers.wait(60)
        return real("/")

    monkeypatch.setattr(os, "statvfs", hanging)
    one = Room(tmp_path, "test")
    one.start()
    assert asked.wait(30)
    begun = time.monotonic()
    one.stop(0.1)
    assert time.monotonic() - begun < 30 and one.free is None
    answers.set()
