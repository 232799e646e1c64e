"""The engine with real sockets and real files: every fault a stream can have, and how the series ends."""

import bz2
import errno
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import fabio
import numpy as np
import psutil
import pytest
import zmq

from tangods_receiver import codecs, config, reception
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError, StreamError, WriteError
from tangods_receiver.protocol import stins
from tangods_receiver.seriesfile import SeriesFile
from tangods_receiver.source import Worker
from tests.receiver.streaming import (
    SHAPE,
    Sender,
    balanced,
    holds,
    image,
    read,
    running,
    wait_closed,
    wait_opened,
)
from tests.waiting import wait_for


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.fixture
def engine(tmp_path, sender):
    with running(tmp_path, sender.endpoint) as engine:
        yield engine


def state(engine, wanted):
    return wait_for(lambda: engine.snapshot().state == wanted, what=f"state {wanted}: {engine.snapshot()}")


# --- good series -----------------------------------------------------------------------------------------------------


def test_announced_series_closes_with_its_last_frame_without_an_end_message(tmp_path, sender, engine, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "a.h5"
    sender.start(path, series=4, nframes=50, shape=SHAPE, dtype="uint16", codec="none", metadata={"exptime": 0.1})
    wait_opened(engine, 4)
    assert engine.snapshot().state == "running" and engine.snapshot().file == str(path)
    sender.frames(range(50))
    s = wait_closed(engine, 4)
    assert (s.state, s.received, s.written, s.missing, s.error) == ("idle", 50, 50, 0, "")
    assert s.bytes == 50 * image(0).nbytes and s.last_file == str(path) and s.file == ""
    assert holds(path, range(50))
    messages = [r.message for r in caplog.records if r.levelname == "INFO" and r.message.startswith("series")]
    assert messages[0] == f"series 4 opened {path}"
    assert messages[1].startswith(f"series 4 closed {path}: 50 frames, 0 missing, 0 repeated, ")
    assert " MB/s, batches of " in messages[1] and "longest commit" in messages[1] and len(messages) == 2
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_the_end_message_of_a_complete_series_is_no_error(tmp_path, sender, engine):
    for series in (1, 2):
        sender.start(tmp_path / f"{series}.h5", series=series, nframes=2)
        sender.frames(range(2))
        sender.end()
        assert wait_closed(engine, series).state == "idle"
    sender.start(tmp_path / "3.h5", series=3, nframes=0)
    assert wait_closed(engine, 3).error == ""


def test_unannounced_series_closes_with_the_end_message(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5")
    sender.frames(range(20))
    wait_for(lambda: engine.snapshot().written == 20)
    assert engine.snapshot().state == "running"
    sender.end()
    s = wait_closed(engine, 1)
    assert (s.state, s.written, s.expected) == ("idle", 20, None)
    assert holds(tmp_path / "a.h5", range(20))


def test_stream_without_numbers(tmp_path, sender, engine):
    """The public Pilatus streamer sends no msg_number."""
    sender.parts(stins.encode_start(str(tmp_path / "a.h5")))
    for number in (0, 1, 3):
        sender.frame(number, serial=None)
    sender.parts(stins.encode_end())
    s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.state) == (3, 1, "idle") and "2" in s.error
    assert holds(tmp_path / "a.h5", (0, 1, 3))
    sender.frame(0, serial=None)  # after the end: of no series
    state(engine, "error")
    assert balanced(engine).foreign == 1


def test_stream_without_numbers_on_several_sockets_is_refused(tmp_path, sender):
    with running(tmp_path, sender.endpoint, workers=2) as engine:
        sender.parts(stins.encode_start(str(tmp_path / "a.h5")))
        state(engine, "error")
        assert "workers: 1" in engine.snapshot().error and not (tmp_path / "a.h5").exists()
        sender.frame(0, serial=None)
        wait_for(lambda: engine.snapshot().received == 1)
        assert balanced(engine).discarded == 1


def test_no_file_when_none_is_wanted(tmp_path, sender, engine):
    sender.start("", series=1, nframes=3)
    sender.frames(range(3))
    s = wait_closed(engine, 1)
    assert (s.received, s.written, s.discarded, s.missing, s.state) == (3, 0, 3, 0, "idle")
    sender.start(tmp_path / "a.h5", series=2, nframes=3, metadata={"save_raw": False})
    sender.frames((0, 2))
    sender.end()
    s = wait_closed(engine, 2)
    assert (s.received, s.discarded, s.missing, s.state) == (2, 2, 1, "idle")
    assert list(tmp_path.iterdir()) == []
    last = engine.last_frame()
    assert (last.number, last.series) == (2, 2) and (last.array == image(2)).all()


def test_discarded_frames_are_counted_and_not_stored(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=4)
    sender.frame(0)
    sender.frame(1, discard=True)
    sender.frames((2, 3))
    s = wait_closed(engine, 1)
    assert (s.written, s.discarded, s.missing, s.error) == (3, 1, 0, "")
    assert holds(tmp_path / "a.h5", (0, 2, 3))


def test_zero_frames(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=0, shape=SHAPE, dtype="uint16", codec="none")
    assert wait_closed(engine, 1).state == "idle"
    sender.end()
    sender.start(tmp_path / "b.h5", series=2)
    sender.end()
    s = wait_closed(engine, 2)
    assert (s.state, s.missing, s.error) == ("idle", 0, "")
    assert holds(tmp_path / "a.h5", [])


def test_modules_one_message_each_and_all_in_one(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=3, shape=SHAPE, dtype="uint16", codec="none", modules=2)
    for number in range(3):
        for module in (1, 0):
            if (number, module) != (1, 0):
                sender.frame(number, image(10 * number + module), module=module)
    sender.end()
    s = wait_closed(engine, 1)
    assert (s.written, s.missing) == (5, 1)
    data, _ = read(tmp_path / "a.h5")
    assert data.shape == (3, 2, *SHAPE) and (data[2, 1] == image(21)).all() and (data[1, 1] == image(11)).all()

    sender.start(tmp_path / "b.h5", series=2)  # as a Lambda does
    for number in range(3):
        head = stins.encode_frame_header(
            number, (4, *SHAPE), "uint16", "none", sender.serial, series=2, chunks=[1, *SHAPE]
        )
        sender.parts([head, *(image(10 * number + module).tobytes() for module in range(4))])
    sender.end()
    s = wait_closed(engine, 2)
    assert (s.written, s.missing, s.state) == (12, 0, "idle")
    data, _ = read(tmp_path / "b.h5")
    assert data.shape == (3, 4, *SHAPE) and (data[2, 3] == image(23)).all()
    assert engine.last_frame().array.shape == (4, *SHAPE)


# --- lost, repeated, reordered, foreign ------------------------------------------------------------------------------


@pytest.mark.parametrize("series", [7, None])
def test_lost_repeated_and_reordered_frames(tmp_path, sender, engine, series, caplog):
    sender.start(tmp_path / "a.h5", series=series, nframes=10)
    sender.frames((1, 0, 2, 2, 5, 4))
    sender.lose()
    sender.frames((9, 7, 8, 9))
    sender.end()
    s = wait_closed(engine, series or 1)
    assert (s.state, s.received, s.written, s.repeated, s.missing) == ("idle", 10, 8, 2, 2)
    assert "2 of 10 frames missing: 3, 6" in s.error
    assert holds(tmp_path / "a.h5", (0, 1, 2, 4, 5, 7, 8, 9))
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 2 and "2 repeated" in warnings[0] and "2 of 10 frames missing" in warnings[1]


def test_last_frames_lost_without_announced_number(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5")
    sender.frames(range(5))
    sender.lose(3)
    sender.end()
    s = wait_closed(engine, 1)
    assert (s.written, s.missing, s.state) == (5, 3, "idle")
    assert holds(tmp_path / "a.h5", range(5), length=8)


def test_first_of_repeated_frames_is_kept(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=2)
    sender.frame(0)
    sender.frame(0, image(99))
    sender.frame(1)
    assert wait_closed(engine, 1).repeated == 1
    assert holds(tmp_path / "a.h5", range(2))
    sender.frame(1)  # after the series was closed: still a repetition
    wait_for(lambda: engine.snapshot().repeated == 2)
    assert balanced(engine).state == "idle"


def test_all_that_was_sent_came_though_less_than_announced(tmp_path, sender):
    """Triggers that were not given: nothing is on its way, so nobody waits for it."""
    with running(tmp_path, sender.endpoint, end_timeout=60) as engine:
        sender.start(tmp_path / "a.h5", nframes=10)
        sender.frames(range(4))
        sender.end()
        assert wait_closed(engine, 1).missing == 6


@pytest.mark.parametrize("series", [(1, 2), (None, None)])
def test_leftovers_of_a_stopped_series(tmp_path, sender, engine, series):
    sender.start(tmp_path / "a.h5", series=series[0], nframes=10)
    sender.frames(range(3))
    wait_for(lambda: engine.snapshot().written == 3)
    engine.stop()
    s = wait_closed(engine, 1)
    assert (s.state, s.missing) == ("idle", 7) and "stopped" in s.error
    sender.frames(range(3, 6))
    wait_for(lambda: engine.snapshot().foreign == 3)
    assert balanced(engine).state == "idle"
    old = sender.serial - 1
    sender.end()
    sender.start(tmp_path / "b.h5", series=series[1], nframes=4)
    sender.frame(2, image(99), series=series[0], serial=old)
    sender.frames(range(4))
    s = wait_closed(engine, 2)
    assert (s.state, s.written, s.foreign, s.error) == ("idle", 4, 1, "")
    assert holds(tmp_path / "a.h5", range(3), length=10) and holds(tmp_path / "b.h5", range(4))


@pytest.mark.parametrize("with_ids", [True, False])
def test_streamer_restarts_and_counts_from_0(tmp_path, sender, engine, with_ids):
    sender.serial = 500
    sender.start(tmp_path / "a.h5", series=1 if with_ids else None, nframes=10)
    sender.frames(range(5))
    wait_for(lambda: engine.snapshot().written == 5)
    sender.serial = 0
    sender.start(tmp_path / "b.h5", series=2 if with_ids else None, nframes=10)
    wait_opened(engine, 2)
    for number in range(5, 8):  # what its life before had left in a buffer
        sender.frame(number, image(99), serial=501 + number, series=1 if with_ids else None)
    sender.serial = 1
    sender.frames(range(10))
    s = wait_closed(engine, 2)
    assert (s.written, s.foreign, s.missing) == (10, 3, 0)
    assert holds(tmp_path / "b.h5", range(10)) and holds(tmp_path / "a.h5", range(5), length=10)


def test_late_joiner(tmp_path, sender, engine):
    """The receiver was started in mid-series: nothing is invented, the next series is good."""
    sender.series = 8
    sender.frames(range(5, 8))
    sender.end()
    wait_for(lambda: engine.snapshot().received == 4)
    s = balanced(engine)
    assert (s.state, s.foreign, s.rejected) == ("error", 3, 1) and "start message" in s.error
    sender.start(tmp_path / "a.h5", series=9, nframes=1)
    sender.frame(0)
    assert wait_closed(engine, 9).state == "idle"


def test_end_without_start(engine, sender):
    sender.end()
    state(engine, "error")
    assert "without a start" in engine.snapshot().error
    assert balanced(engine).rejected == 1
    engine.reset()
    assert engine.snapshot().state == "idle" and engine.snapshot().error == ""


def test_frames_beyond_the_announced(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=3)
    sender.frames((0, 3, 1_000_000_000_000, 1, 2))
    s = wait_closed(engine, 1)
    assert (s.written, s.foreign, s.missing) == (3, 2, 0)
    assert holds(tmp_path / "a.h5", range(3))


# --- bad messages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"\xff\x00"],
        [b"not JSON", b"x"],
        [b"[1]"],
        [b"{}"],
        [b'{"htype":"image"}', bytes(120)],
        [b'{"htype":"image","frame":-1,"shape":[6,10],"type":"uint16","compression":"none"}', bytes(120)],
        [b'{"htype":"image","frame":true,"shape":[6,10],"type":"uint16","compression":"none"}', bytes(120)],
        [b'{"htype":"image","frame":1,"shape":[6,10],"type":"uint16","compression":"none","series":1}', bytes(119)],
        [b'{"htype":"image","frame":1,"shape":[6,10],"type":"uint16","compression":"none","series":1}'],
        [b'{"htype":"image","frame":1,"shape":[6,10],"type":"uint16","compression":"bslz4","series":1}', bytes(120)],
        [b'{"htype":"image","frame":1,"shape":[2000000000,2000000000],"type":"uint16","series":1}', bytes(120)],
        [b'{"htype":"image","frame":1,"shape":[6,10],"type":"uint16","compression":"cbf","series":1}', bytes(120)],
        [b'{"htype":"image","frame":1,"shape":[6,10],"type":"uint32","compression":"none","series":1}', bytes(240)],
        [b'{"htype":"image","frame":1,"shape":[10,6],"type":"uint16","compression":"none","series":1}', bytes(120)],
        [b'{"htype":"header","filename":5}'],
        [b'{"htype":"series_end","msg_number":"x"}'],
    ],
)
def test_malformed_message_is_refused_and_the_others_are_written(tmp_path, sender, engine, parts):
    sender.start(tmp_path / "a.h5", series=1, nframes=3)
    sender.frame(0)
    sender.parts(parts)
    sender.frames((1, 2))
    s = wait_closed(engine, 1)
    assert (s.state, s.written, s.rejected, s.missing) == ("error", 3, 1, 0) and s.error
    assert holds(tmp_path / "a.h5", range(3))
    sender.start(tmp_path / "b.h5", series=2, nframes=1)
    sender.frame(0)
    s = wait_closed(engine, 2)
    assert (s.state, s.error, s.rejected) == ("idle", "", 0)


def test_refusal_names_both_shapes(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=2)
    sender.frames((0,))
    sender.frame(1, image(1, (8, 8), "uint32"))
    sender.end()
    s = wait_closed(engine, 1)
    assert "8 x 8 uint32 none" in s.error and "6 x 10 uint16 none" in s.error
    assert (s.state, s.missing) == ("error", 1)


def test_message_of_very_many_parts(tmp_path, sender, engine):
    sender.parts([b'{"htype":"image","frame":0,"shape":[2,2],"type":"uint8"}'] + [b"x"] * 5000)
    wait_for(lambda: engine.snapshot().rejected == 1)
    assert "parts" in balanced(engine).error


# --- starts and ends -------------------------------------------------------------------------------------------------


def test_two_starts(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=10)
    sender.frames(range(4))
    sender.start(tmp_path / "b.h5", series=2, nframes=3)
    wait_opened(engine, 2)
    assert holds(tmp_path / "a.h5", range(4), length=10)
    sender.frames(range(3))
    assert wait_closed(engine, 2).state == "idle"
    assert holds(tmp_path / "b.h5", range(3))


def test_two_starts_say_so(tmp_path, sender, engine, caplog):
    (tmp_path / "b.h5").touch()
    sender.start(tmp_path / "a.h5", series=1, nframes=10)
    sender.frames(range(4))
    sender.start(tmp_path / "b.h5", series=2, nframes=3)  # cannot be opened, so the first failure stays to be seen
    wait_for(lambda: engine.snapshot().closed == 1)
    wait_for(lambda: engine.snapshot().series == 2)
    assert "new series began" in engine.snapshot().error and engine.snapshot().state == "error"
    assert "new series began" in str(read(tmp_path / "a.h5")[1])


def test_stall_timeout_closes_a_series_without_end(tmp_path, sender):
    with running(tmp_path, sender.endpoint, stall_timeout=0.3) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=10)
        sender.frames(range(4))
        s = wait_closed(engine, 1)
        assert (s.state, s.missing) == ("error", 6) and "nothing came for 0.3 s" in s.error
        assert holds(tmp_path / "a.h5", range(4), length=10)


def test_without_end_it_stays_open_until_stopped(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=10)
    sender.frames(range(4))
    wait_for(lambda: engine.snapshot().written == 4)
    engine.stop(7)  # another series: nothing happens
    threading.Event().wait(0.5)
    assert engine.snapshot().state == "running"
    engine.stop(1)
    assert wait_closed(engine, 1).missing == 6


@pytest.mark.parametrize("frames", [0, 3])
def test_stop_is_harmless_in_every_state(tmp_path, sender, engine, frames):
    engine.stop()
    engine.stop(5)
    sender.start(tmp_path / "a.h5", series=1)
    engine.stop()  # may come before, while or after the file is opened
    wait_opened(engine, 1)
    sender.frames(range(frames))
    engine.stop()
    engine.stop(1)
    wait_closed(engine, 1)
    engine.stop(1)
    engine.stop()
    sender.start(tmp_path / "b.h5", series=2, nframes=2)
    sender.frames(range(2))
    assert wait_closed(engine, 2).state == "idle"


def test_stop_takes_what_is_on_its_way(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=100_000)
    wait_opened(engine, 1)
    sender.frames(range(2000))
    engine.stop()
    s = wait_closed(engine, 1)
    assert s.written == 2000 and s.state == "idle"


def test_engine_stopped_in_mid_series_leaves_a_good_file(tmp_path, sender):
    with running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, nframes=10)
        sender.frames(range(4))
        wait_for(lambda: engine.snapshot().written == 4)
    s = balanced(engine)
    assert (s.closed, s.missing, s.state) == (1, 6, "error") and "receiver was stopped" in s.error
    assert holds(tmp_path / "a.h5", range(4), length=10)


# --- files -----------------------------------------------------------------------------------------------------------


def refused_names(root):
    (root / "link").symlink_to("/tmp")
    (root / "loop").symlink_to(root / "loop")
    (root / "there.h5").touch()
    (root / "file").touch()
    yield "/etc/passwd", "outside"
    yield f"{root}/../x.h5", "outside"
    yield f"{root}/link/x.h5", "outside"
    yield "../x.h5", "outside"
    yield f"{root}/loop/x.h5", ""
    yield str(root), "outside"
    yield f"{root}/there.h5", "exists"
    yield f"{root}/none/x.h5", "does not exist"
    yield f"{root}/file/x.h5", ""
    yield f"{root}/a\nb.h5", "file name"
    yield f"{root}/a\0b.h5", "file name"
    yield f"{root}/{'x' * 300}.h5", ""


def test_names_that_are_refused(tmp_path, sender, engine):
    for series, (name, why) in enumerate(refused_names(tmp_path), 1):
        sentence = engine.check(name, 0)
        assert sentence and why in sentence, name
        sender.start(name, series=series, nframes=2)
        wait_for(lambda n=series: engine.snapshot().series == n)
        state(engine, "error")
        assert engine.snapshot().error == sentence
        sender.frames(range(2))
        wait_for(lambda: engine.snapshot().discarded == 2)
        assert balanced(engine).opened == 0
        engine.reset()
        state(engine, "idle")
    assert (tmp_path / "there.h5").stat().st_size == 0
    sender.start(tmp_path / "good.h5", series=99, nframes=2)
    sender.frames(range(2))
    assert wait_closed(engine, 99).state == "idle"


@pytest.mark.parametrize("allowed", [False, True])
def test_a_file_is_replaced_only_where_that_is_allowed_and_asked_for(tmp_path, sender, allowed):
    file = tmp_path / "a.h5"
    with running(tmp_path, sender.endpoint, allow_overwrite=allowed) as engine:
        sender.start(file, series=1, nframes=3)
        sender.frames(range(3))
        wait_closed(engine, 1)
        before = file.read_bytes()
        sender.start(file, series=2, nframes=2)  # not asked for
        state(engine, "error")
        assert "exists" in engine.snapshot().error and file.read_bytes() == before
        engine.reset()
        assert "exists" in engine.check(str(file), 0)
        assert ("exists" in engine.check(str(file), 0, overwrite=True)) is not allowed
        (tmp_path / "folder").mkdir()
        assert "exists" in engine.check(str(tmp_path / "folder"), 0, overwrite=True), "only files are replaced"
        sender.start(file, series=3, nframes=2, metadata={"overwrite": True})
        sender.frames(range(2))
        if allowed:
            wait_closed(engine, 3)
            assert holds(file, range(2))
        else:
            state(engine, "error")
            assert file.read_bytes() == before
        assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "folder"}


def test_check(tmp_path, engine):
    assert engine.check(str(tmp_path / "new.h5"), 1000) == ""
    assert engine.check("new.h5", 0) == "" and engine.check("", 10**15) == ""
    assert "free" in engine.check(str(tmp_path / "new.h5"), 10**18)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_without_permission(tmp_path, engine):
    (tmp_path / "sub").mkdir(mode=0o555)
    assert "permission" in engine.check(str(tmp_path / "sub/a.h5"), 0)


def test_write_failure_discards_counts_and_keeps_receiving(tmp_path, sender, engine, monkeypatch):
    real, calls = SeriesFile.append, []

    def full(self, records):
        calls.append(len(records))
        if sum(calls) > 100:  # more than one batch
            raise WriteError(f"{self.path}: no space left; make room")
        return real(self, records)

    monkeypatch.setattr(SeriesFile, "append", full)
    sender.start(tmp_path / "a.h5", series=1, nframes=300)
    sender.frames(range(300))
    s = wait_closed(engine, 1)
    assert s.state == "error" and "no space left" in s.error
    assert s.received == 300 and s.written + s.discarded == 300 and s.missing == s.discarded > 0
    monkeypatch.undo()
    data, books = read(tmp_path / "a.h5")
    assert len(data) == 300 and (data[0] == image(0)).all() and not data[299].any()
    sender.start(tmp_path / "b.h5", series=2, nframes=3)
    sender.frames(range(3))
    assert wait_closed(engine, 2).state == "idle"
    assert holds(tmp_path / "b.h5", range(3))


@pytest.mark.parametrize("method", ["commit", "close"])
def test_failure_of_the_index_ends_in_error(tmp_path, sender, engine, monkeypatch, method):
    def broken(self, *args):
        raise WriteError(f"{self.path}: {method} failed; look at the storage")

    monkeypatch.setattr(SeriesFile, method, broken)
    sender.start(tmp_path / "a.h5", series=1, nframes=20)
    sender.frames(range(10))
    if method == "commit":
        state(engine, "error")
    sender.frames(range(10, 20))
    s = wait_closed(engine, 1)
    assert s.state == "error" and f"{method} failed" in s.error
    monkeypatch.undo()
    engine.reset()
    assert engine.snapshot().state == "idle"


@pytest.mark.parametrize("known", [True, False])
def test_directory_removed_in_mid_series_is_an_error(tmp_path, sender, engine, known):
    """The system goes on taking writes to a file that nobody will ever find."""
    path = tmp_path / "day" / "a.h5"
    path.parent.mkdir()
    layout = {"shape": SHAPE, "dtype": "uint16", "codec": "none"} if known else {}
    sender.start(path, series=1, nframes=20, **layout)
    sender.frames(range(10))
    wait_for(lambda: engine.snapshot().written == 10)
    shutil.rmtree(path.parent)
    sender.frames(range(10, 20))
    s = wait_closed(engine, 1)
    assert s.state == "error" and str(path) in s.error and "deleted" in s.error, s
    engine.reset()
    path.parent.mkdir()
    sender.start(path, series=2, nframes=5)
    sender.frames(range(5))
    assert wait_closed(engine, 2).state == "idle" and holds(path, range(5))


def test_file_moved_in_mid_series_is_written_on(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=20)
    sender.frames(range(10))
    wait_for(lambda: engine.snapshot().written == 10)
    (tmp_path / "a.h5").rename(tmp_path / "b.h5")
    sender.frames(range(10, 20))
    assert wait_closed(engine, 1).state == "idle" and holds(tmp_path / "b.h5", range(20))


def test_reset_closes_a_series_that_cannot_be_written(tmp_path, sender, engine, monkeypatch):
    def broken(self, records):
        raise WriteError("disk full")

    monkeypatch.setattr(SeriesFile, "append", broken)
    sender.start(tmp_path / "a.h5", series=1, nframes=20)
    sender.frames(range(3))
    state(engine, "error")
    engine.reset()
    s = wait_closed(engine, 1)
    assert (s.discarded, s.missing, s.state, s.error) == (3, 20, "idle", "")


def test_what_nobody_foresaw_becomes_the_state(tmp_path, sender, engine, monkeypatch):
    def broken(self, records):
        raise RuntimeError("a bug")

    monkeypatch.setattr(SeriesFile, "append", broken)
    sender.start(tmp_path / "a.h5", series=1, nframes=3)
    sender.frames(range(3))
    s = wait_closed(engine, 1)
    assert s.state == "error" and s.discarded == 3
    monkeypatch.undo()
    sender.start(tmp_path / "b.h5", series=2, nframes=3)
    sender.frames(range(3))
    assert wait_closed(engine, 2).state == "idle"


def test_storage_that_hangs_is_named_and_nothing_else_hangs(tmp_path, sender, engine, monkeypatch):
    answers = threading.Event()
    real = SeriesFile.append
    monkeypatch.setattr(SeriesFile, "append", lambda self, records: answers.wait(60) and real(self, records))
    monkeypatch.setattr(reception, "SLOW", 0.2)
    sender.start(tmp_path / "a.h5", series=1, nframes=3)
    sender.frames(range(3))
    wait_for(lambda: f"writing to {tmp_path / 'a.h5'} has taken" in engine.snapshot().error)
    engine.stop()
    engine.reset()
    assert engine.snapshot().state == "running" and engine.check("b.h5", 0) == ""
    answers.set()
    s = wait_closed(engine, 1)
    assert (s.written, s.state, s.error) == (3, "idle", "")


# --- several workers -------------------------------------------------------------------------------------------------


def test_workers_that_hang_in_the_storage_do_not_add_up_at_the_end(tmp_path, sender, monkeypatch):
    let_go = threading.Event()
    hanging = []

    def append(self, records):
        hanging.append(1)
        let_go.wait(60)
        return 0

    monkeypatch.setattr(SeriesFile, "append", append)
    monkeypatch.setattr("tangods_receiver.engine.JOIN_LIMIT", 0.5)
    try:
        with running(tmp_path, sender.endpoint, workers=4) as engine:
            wait_for(lambda: len([t for t in threading.enumerate() if "worker" in t.name]) == 4)
            sender.start(tmp_path / "a.h5", series=1)
            wait_opened(engine, 1)
            sender.frames(range(200))
            wait_for(lambda: len(hanging) == 4)
            begun = time.monotonic()
        assert time.monotonic() - begun < 1.5
    finally:
        let_go.set()


@pytest.mark.parametrize("with_ids", [True, False])
def test_two_workers_share_a_series(tmp_path, sender, with_ids):
    with running(tmp_path, sender.endpoint, workers=2, end_timeout=5) as engine:
        wait_for(lambda: len([t for t in threading.enumerate() if "worker" in t.name]) == 2)
        for series in range(1, 6):
            path = tmp_path / f"{series}.h5"
            sender.start(path, series=series if with_ids else None, nframes=200)
            sender.frames(range(200))
            sender.end()
            s = wait_closed(engine, series)
            assert (s.state, s.written, s.missing, s.foreign, s.repeated) == ("idle", 200, 0, 0, 0), s
            assert holds(path, range(200))


def test_two_workers_back_to_back(tmp_path, sender):
    """Nobody waits for the receiver between the series: it keeps them apart."""
    with running(tmp_path, sender.endpoint, workers=2, end_timeout=5) as engine:
        for series in range(1, 11):
            sender.start(tmp_path / f"{series}.h5", series=series, nframes=50)
            sender.frames(range(50))
            sender.end()
        wait_closed(engine, 10)
        for series in range(1, 11):
            assert holds(tmp_path / f"{series}.h5", range(50))


def test_two_workers_do_not_wait_for_ever_for_a_header(tmp_path, sender):
    with running(tmp_path, sender.endpoint, workers=2) as engine:
        sender.series = 3
        sender.frames(range(300))
        wait_for(lambda: engine.snapshot().foreign == 300)
        assert balanced(engine).state == "error"
        sender.start(tmp_path / "a.h5", series=4, nframes=10)
        sender.frames(range(10))
        assert wait_closed(engine, 4).written == 10


@pytest.mark.slow
def test_senders_that_die_around_their_start_message(tmp_path):
    """Each with larger frames, so that the high-water mark changes while the connection goes."""
    with Sender() as first, running(tmp_path, first.endpoint, hwm_bytes=2**20, stall_timeout=0.2) as engine:
        port = first.port
        first.close()
        for series in range(1, 31):
            with Sender(port) as sender:
                pixels = image(0, (10 + series, 512))
                sender.start(tmp_path / f"{series}.h5", series=series, shape=pixels.shape, dtype="uint16", codec="none")
                sender.frame(0, pixels)
                wait_for(lambda n=series: engine.snapshot().series == n)
        with Sender(port) as sender:
            sender.start(tmp_path / "good.h5", series=99, nframes=20)
            sender.frames(range(20))
            assert wait_closed(engine, 99).written == 20


def test_two_senders_of_one_series(tmp_path):
    with Sender() as left, Sender() as right, running(tmp_path, left.endpoint, right.endpoint) as engine:
        for sender in (left, right):
            sender.start(tmp_path / "a.h5", series=1, nframes=10, shape=SHAPE, dtype="uint16", codec="none", modules=2)
        for module, sender in enumerate((left, right)):
            for number in range(10):
                sender.frame(number, image(2 * number + module), module=module)
            sender.end()
        s = wait_closed(engine, 1)
        assert (s.written, s.missing, s.state) == (20, 0, "idle")
        data, _ = read(tmp_path / "a.h5")
        assert (data[9, 1] == image(19)).all()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_wrong_program_at_the_address_then_the_sender(tmp_path, monkeypatch, caplog, shared):
    """Its greeting makes libzmq give up, and so does a message that is too large: the next series is whole."""
    monkeypatch.setattr("tangods_receiver.source.PART_BYTES", 10_000)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00PLAIN" + bytes(47)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        port = server.getsockname()[1]
        with running(tmp_path, f"tcp://127.0.0.1:{port}", context_per_worker=not shared) as engine:
            link, _ = server.accept()
            link.sendall(greeting)
            while link.recv(100):
                pass
            link.close()
            server.close()
            with Sender(port) as sender:
                for series in (1, 2):
                    sender.start(tmp_path / f"{series}.h5", series=series, nframes=300)
                    sender.frames(range(300))
                    assert wait_closed(engine, series).written == 300
                    assert holds(tmp_path / f"{series}.h5", range(300))
                    sender.parts([bytes(20_000)])
                    wait_for(lambda: not sender._socket.poll(0, zmq.POLLOUT), what="connection closed")
            begun = time.monotonic()
        assert time.monotonic() - begun < 3
    assert len([r for r in caplog.records if r.levelname == "WARNING" and "not ZeroMQ" in r.getMessage()]) == 1


# --- the engine itself -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sender_that_is_faster_than_the_high_water_mark(tmp_path, sender):
    """The mark is lowered with the header and raised in silence; nothing may get stuck."""
    with running(tmp_path, sender.endpoint, hwm_bytes=2**20) as engine:
        for series, (shape, frames) in enumerate([((6, 10), 3000), ((500, 1000), 30), ((6, 10), 3000)] * 2, 1):
            pixels = image(1, shape)
            sender.start(tmp_path / f"{series}.h5", series=series, nframes=frames)
            for number in range(frames):
                sender.frame(number, pixels)
            assert wait_closed(engine, series).written == frames


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 30, 100, 500])
def test_small_frames_before_large_ones(tmp_path, sender, before):
    """The mark falls far below what was read since the sender's side was last told: nothing may get stuck."""
    with running(tmp_path, sender.endpoint) as engine:
        pixels = image(0, (1000, 5000))
        for series, (count, size) in enumerate([(before, None), (15, pixels), (before, None), (15, pixels)], 1):
            sender.start(tmp_path / f"{series}.h5", series=series, nframes=count)
            for number in range(count):
                sender.frame(number, size)
            assert wait_closed(engine, series).written == count


@pytest.mark.slow
def test_100_series_leave_nothing_behind(tmp_path, sender, engine):
    process = psutil.Process()

    def take(series):
        sender.start(tmp_path / f"{series}.h5", series=series, nframes=2)
        sender.frames(range(2))
        sender.end()
        wait_closed(engine, series)
        wait_for(lambda: engine.snapshot().durable)
        (tmp_path / f"{series}.h5").unlink()

    for series in range(1, 21):
        take(series)
    threads, files, memory = process.num_threads(), process.num_fds(), process.memory_info().rss
    for series in range(21, 121):
        take(series)
    assert process.num_threads() <= threads and process.num_fds() <= files
    assert process.memory_info().rss - memory < 20e6


def test_endpoint_that_cannot_be_used(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise zmq.ZMQError(errno.ENODEV)

    monkeypatch.setattr(Worker, "_connect", refuse)
    with pytest.raises(ConfigError, match="tcp://127.0.0.1:9: No such device"):
        with running(tmp_path, "tcp://127.0.0.1:9"):
            pass


def test_http_is_part_of_it(tmp_path, sender):
    with running(tmp_path, sender.endpoint, http="127.0.0.1:0") as engine:
        assert engine.http_port
    assert engine.http_port is None


def test_http_address_in_use(tmp_path, sender):
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        settings = config.make({"endpoints": [sender.endpoint], "root": tmp_path, "http": f"127.0.0.1:{port}"})
        with pytest.raises(ConfigError, match=str(port)):
            Engine(settings).__enter__()


# --- compressed images -----------------------------------------------------------------------------------------------


def test_bslz4_is_stored_as_it_came(tmp_path, sender, engine):
    sender.start(tmp_path / "a.h5", series=1, nframes=5, shape=SHAPE, dtype="uint16", codec="bslz4")
    for number in range(5):
        head = stins.encode_frame_header(number, SHAPE, "uint16", "bslz4", sender.serial, series=1)
        sender.parts([head, codecs.compress("bslz4", image(number))])
    assert wait_closed(engine, 1).written == 5
    assert holds(tmp_path / "a.h5", range(5))
    assert (engine.last_frame().array == image(4)).all()


@pytest.mark.parametrize("parts", [1, 2])
def test_last_frames_left_out_of_a_series_without_end(tmp_path, sender, parts):
    """Nobody said how many frames there would be: what came and is not stored is listed, and the file is as long."""
    with running(tmp_path, sender.endpoint, parts=parts) as engine:
        sender.start(tmp_path / "a.h5", series=1)
        sender.frames([0, 1])
        for number in (2, 3, 4):
            sender.frame(number, discard=True)
        wait_for(lambda: engine.snapshot().discarded == 3)
        engine.stop()
        wait_closed(engine, 1)
    assert holds(tmp_path / "a.h5", [0, 1], 5)


def test_damaged_pixels_do_not_hurt_the_live_view(tmp_path, sender, engine):
    sender.start("", series=1, nframes=1)
    data = bytearray(codecs.compress("bslz4", image(0)))
    data[16:] = b"\xff" * (len(data) - 16)
    sender.parts([stins.encode_frame_header(0, SHAPE, "uint16", "bslz4", sender.serial, series=1), data])
    wait_closed(engine, 1)
    with pytest.raises(StreamError, match="bslz4"):
        engine.last_frame()


PILATUS = sorted((Path(__file__).parents[3] / "shared/data").glob("pilatus3_6m_*.cbf.bz2"))


@pytest.mark.skipif(not PILATUS, reason="the Pilatus images are not at hand")
def test_real_pilatus_images_are_stored_as_fabio_decodes_them(tmp_path, sender, engine):
    images = [bz2.decompress(path.read_bytes()) for path in PILATUS]
    pixels = []
    for data in images:
        (tmp_path / "one.cbf").write_bytes(data)
        with fabio.open(tmp_path / "one.cbf") as opened:
            pixels.append(opened.data)
    sender.start(tmp_path / "a.h5", nframes=3, shape=pixels[0].shape, dtype="int32", codec="cbf")
    for number, data in enumerate(images):
        sender.parts([stins.encode_frame_header(number, pixels[0].shape, "int32", "cbf", sender.serial), data])
    sender.parts([stins.encode_frame_header(1, pixels[0].shape, "int32", "cbf", sender.serial), images[0][:-9000]])
    s = wait_closed(engine, 1)
    assert (s.written, s.missing) == (3, 0)
    data, _ = read(tmp_path / "a.h5")
    assert data.dtype == "int32" and (data == np.stack(pixels)).all()
    assert (engine.last_frame().array == pixels[2]).all()
