"""Series that meet each other, and errors that nobody foresaw: what is whole stays whole, and the next series comes."""

import itertools
import threading
import time
from contextlib import suppress

import pytest
import zmq

from tangods_receiver.reception import Reception
from tangods_receiver.recovery import check
from tangods_receiver.seriesfile import SeriesFile
from tangods_receiver.source import Worker
from tests.receiver.streaming import Sender, holds, read, running, wait_closed, wait_opened
from tests.waiting import wait_for


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.mark.parametrize("with_ids", [True, False])
def test_complete_series_that_are_followed_at_once_are_complete(tmp_path, sender, with_ids):
    with running(tmp_path, sender.endpoint) as engine:
        for series in range(1, 31):
            sender.start(tmp_path / f"{series}.h5", series=series if with_ids else None)
            sender.frames(range(5))
            sender.end()
        s = wait_closed(engine, 30)
    assert (s.state, s.error, s.missing) == ("idle", "", 0)
    assert {read(tmp_path / f"{series}.h5")[1]["end_reason"] for series in range(1, 31)} == {b"complete"}


def test_an_incomplete_series_is_said_to_be_interrupted(tmp_path, sender):
    with running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "1.h5", series=1, nframes=5)
        sender.frames(range(3))
        sender.start(tmp_path / "2.h5", series=2, nframes=1)
        sender.frame(0)
        wait_closed(engine, 2)
    assert read(tmp_path / "1.h5")[1]["end_reason"].startswith(b"a new series began before its end; 2 of 5")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_late_header_of_the_second_sender_does_not_begin_the_series_again(tmp_path, overwrite):
    metadata = {"overwrite": overwrite}
    with Sender() as a, Sender() as b:
        with running(tmp_path, a.endpoint, b.endpoint, allow_overwrite=True) as engine:
            a.start(tmp_path / "a.h5", series=7, nframes=5, metadata=metadata)
            a.frames(range(5))
            wait_closed(engine, 7)
            b.start(tmp_path / "a.h5", series=7, nframes=5, metadata=metadata)
            b.end()
            a.start(tmp_path / "b.h5", series=8, nframes=1)
            a.frame(0)
            s = wait_closed(engine, 8)
            assert (s.state, s.error) == ("idle", "")
    assert holds(tmp_path / "a.h5", range(5)) and holds(tmp_path / "b.h5", [0])


def test_an_error_while_closing_lets_the_next_series_come(tmp_path, sender, monkeypatch):
    def fails(series, commits):
        raise MemoryError("no room for a line")

    with running(tmp_path, sender.endpoint) as engine:
        monkeypatch.setattr(Reception, "_log_close", staticmethod(fails))
        sender.start(tmp_path / "1.h5", series=1, nframes=1)
        sender.frame(0)
        wait_closed(engine, 1)
        wait_for(lambda: "no room" in engine.snapshot().error)
        monkeypatch.undo()
        sender.start(tmp_path / "2.h5", series=2, nframes=3)
        sender.frames(range(3))
        s = wait_closed(engine, 2)
        assert (s.state, s.error) == ("idle", "")
    assert holds(tmp_path / "1.h5", [0]) and holds(tmp_path / "2.h5", range(3))


def test_an_error_in_one_message_costs_no_other(tmp_path, sender, monkeypatch):
    with running(tmp_path, sender.endpoint, transforms=["flipud", "flipud"]) as engine:
        sender.start(tmp_path / "a.h5", series=1)
        wait_opened(engine, 1)
        real = Worker._worked

        def fails(worker, frame):
            if frame.number == 7:
                raise MemoryError("no room for an image")
            return real(worker, frame)

        monkeypatch.setattr(Worker, "_worked", fails)
        sender.frames(range(20))
        sender.end()
        s = wait_closed(engine, 1)
        assert (s.written, s.rejected, s.missing, s.state) == (19, 1, 1, "error") and "no room" in s.error
    assert holds(tmp_path / "a.h5", set(range(20)) - {7}, 20)


def test_layout_that_becomes_known_while_the_file_is_committed(tmp_path, sender):
    """Again and again, with files that come and go under the keeper's hands."""
    with running(tmp_path, sender.endpoint, parts=2, commit_interval=0.01) as engine:
        for series in range(1, 21):
            sender.start(tmp_path / f"{series}.h5", series=series)
            sender.frames(range(4))
            sender.end()
            s = wait_closed(engine, series)
            assert (s.state, s.error, s.written) == ("idle", "", 4)
    assert all(len(read(tmp_path / f"{series}.h5")[0]) == 4 for series in range(1, 21))


def test_a_stop_is_obeyed_however_much_still_comes(tmp_path, monkeypatch):
    """Two workers, and one of them always writes: the series closes with what was taken in time."""
    begun, changed = [0], threading.Condition()

    def overlapping(file, records, append=SeriesFile.append):
        with changed:
            begun[0] += 1
            own = begun[0]
            changed.notify_all()
            changed.wait_for(lambda: begun[0] > own, timeout=0.5)
        return append(file, records)

    def send():
        sender.start(tmp_path / "a.h5", series=1)
        for number in itertools.count():
            if enough.is_set():
                return
            with suppress(zmq.Again):
                sender.frame(number)

    monkeypatch.setattr(SeriesFile, "append", overlapping)
    enough = threading.Event()
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=2, hwm_bytes=1 << 20) as engine:
        sending = threading.Thread(target=send)
        sending.start()
        try:
            wait_for(lambda: engine.snapshot().written > 100)
            engine.stop()
            wait_for(lambda: engine.snapshot().closed == 1, timeout=4.0)
        finally:
            enough.set()
            sending.join()
        s = wait_closed(engine, 1)
    assert s.state == "idle" and s.foreign, "what came later is counted"
    report = check(tmp_path / "a.h5")
    assert report.ok and report.frames == s.written, report.problems


def test_a_series_that_is_over_keeps_no_image(tmp_path):
    """Pixels are large: only the live view has the newest."""
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=1, modules=2)
        for module in range(2):
            sender.frame(0, module=module)
        wait_closed(engine, 1)
        over = engine._reception._last
        assert over.latest is None and not over.pieces


def test_a_worker_who_is_behind_loses_nothing_when_another_has_read_the_end(tmp_path, monkeypatch):
    """Its frames are here already: slow storage or much work on the pixels must not cost them."""

    def held_up(worker, inlets, decode, items, handle=Worker._handle):
        if worker._index == 1:
            time.sleep(0.4)
        handle(worker, inlets, decode, items)

    monkeypatch.setattr(Worker, "_handle", held_up)
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=2, end_timeout=0.8) as engine:
        time.sleep(0.3)  # both are connected
        for series in (1, 2):  # one of the two ends is read by the other worker
            sender.start(tmp_path / f"{series}.h5", series=series, nframes=1001)
            sender.frames(range(1001))
            sender.end()
            s = wait_closed(engine, series)
            assert (s.written, s.missing, s.foreign) == (1001, 0, 0), s.error


def test_what_is_refused_is_counted_in_the_series_in_which_it_came(tmp_path, monkeypatch):
    def late(worker, inlets, decode, items, handle=Worker._handle):
        handle(worker, inlets, decode, items)
        time.sleep(0.3)  # what comes after the start is one batch

    monkeypatch.setattr(Worker, "_handle", late)
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "1.h5", series=1)
        wait_opened(engine, 1)
        sender.frame(0)
        sender.parts([b'{"htype": "image"}'])
        sender.end()
        sender.start(tmp_path / "2.h5", series=2, nframes=1)
        sender.frame(0)
        wait_closed(engine, 2)
        second, first = engine.history()
    assert (first.rejected, first.received, second.rejected, second.received) == (1, 2, 0, 1)
    assert (second.reason, read(tmp_path / "1.h5")[1]["frames_rejected"]) == ("complete", 1)
