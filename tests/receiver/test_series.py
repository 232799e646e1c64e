"""Series and reception without sockets, files or threads: whatever comes in whatever order, the books balance."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver import config, reception
from tangods_receiver import series as series_module
from tangods_receiver.errors import StreamError
from tangods_receiver.live import Live
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart
from tangods_receiver.reception import Reception
from tangods_receiver.series import Series


class MemoryFile:
    """A series file that only remembers."""

    made: list["MemoryFile"] = []

    def __init__(self, path, header, layout):
        self.path, self.header, self.layout = path, header, layout
        self.records = []
        self.books = None

    @classmethod
    def create(cls, path, header, layout, payload_crc, replace):
        cls.made.append(cls(path, header, layout))
        return cls.made[-1]

    def define(self, layout):
        assert self.layout is None
        self.layout = layout

    def append(self, records):
        assert self.books is None and self.layout is not None
        self.records += records
        return sum(len(record.data) for record in records)

    def commit(self):
        assert self.books is None

    def close(self, books):
        assert self.books is None
        self.books = books


@pytest.fixture(scope="module", autouse=True)
def memory_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reception, "SeriesFile", MemoryFile)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("series")
    return config.make({"endpoints": ["tcp://127.0.0.1:1"], "root": root, "http": "", "end_timeout": 0})


class Receiver:
    """A reception, and a keeper that works when asked."""

    def __init__(self, settings):
        MemoryFile.made.clear()
        self.wake = threading.Event()
        self.reception = Reception(settings, Live(), self.wake, lambda file: None)
        self.sent = 0

    def take(self, message):
        if isinstance(message, SeriesStart):
            if self.reception._open is not None:  # what the keeper does while the worker waits
                self.reception.abandon("a new series began before its end")
                self.keep()
            self.reception.start(0, message)
        elif isinstance(message, Frame):
            self.sent += 1 + len(message.more)
            self.reception.frames(0, [message])
        elif isinstance(message, SeriesEnd):
            self.reception.end(0, message)
        elif isinstance(message, StreamError):
            self.sent += 1
            self.reception.malformed(0, 1, message)
        self.keep()

    def keep(self):
        self.reception.commit()
        while self.reception.close_when_due():
            pass

    def snapshot(self):
        s = self.reception.snapshot(True)
        assert s.received == s.written + s.repeated + s.foreign + s.rejected + s.discarded
        return s


def frame(number, data=b"abcd", **values):
    return Frame(number, **({"shape": (2, 2), "dtype": "uint8", "codec": "none", "data": data} | values))


ids = st.sampled_from([None, None, None, 1, 1, 2])  # few, so that most messages meet their series
serials = st.sampled_from([None] * 5 + [0, 1, 2, 5, 9, 30])
layouts = st.sampled_from([{}] * 12 + [{"dtype": "int8"}, {"shape": (4, 1)}, {"more": (b"efgh",)}])
frames = st.builds(
    lambda n, layout, **v: frame(n, **layout, **v),
    st.integers(0, 12) | st.just(10**15),
    layouts,
    series=ids,
    serial=serials,
    module=st.sampled_from([0] * 6 + [1]),
    discard=st.sampled_from([False] * 5 + [True]),
)
starts = st.builds(
    lambda known, **v: SeriesStart(**(known | v)),
    st.sampled_from([{}, {"shape": (2, 2), "dtype": "uint8", "codec": "none"}, {"dtype": "uint8"}, {"codec": "none"}]),
    filename=st.sampled_from(["a.h5"] * 7 + ["", "../a.h5"]),
    serial=serials,
    series=ids,
    nframes=st.none() | st.integers(0, 12),
    modules=st.sampled_from([1, 1, 1, 2]),
    save=st.sampled_from([True] * 5 + [False]),
)
ends = st.builds(SeriesEnd, serial=serials, series=ids)
others = st.one_of(starts, ends, ends, st.just(StreamError("bad")), st.sampled_from(["stop", "reset"]))
bursts = st.lists(frames, max_size=15)
messages = st.lists(st.tuples(starts, bursts, others, bursts), max_size=4).map(
    lambda parts: [m for start, some, other, more in parts for m in (start, *some, other, *more)]
)


@pytest.mark.slow
@given(messages)
def test_any_messages_in_any_order(settings, messages):
    receiver = Receiver(settings)
    for message in messages:
        if message == "stop":
            receiver.reception.stop()
        elif message == "reset":
            receiver.reception.reset()
        receiver.take(message)
        s = receiver.snapshot()
        assert (s.state == "error") <= bool(s.error)
    receiver.reception.abandon("over")
    receiver.keep()
    assert receiver.snapshot().state in ("idle", "error") and receiver.reception._open is None
    for file in MemoryFile.made:
        places = [(record.frame, record.module) for record in file.records]
        assert len(places) == len(set(places)), "a frame was written twice"
        modules = file.layout.modules if file.layout else 1
        stored = {f for f, _ in places if all((f, m) in places for m in range(modules))}
        assert file.books.frames_received == len(stored)
        absent = {n for first, last in file.books.missing for n in range(first, last + 1)}
        assert not absent & stored
        if file.books.frames_expected is not None:
            assert absent | stored == set(range(file.books.frames_expected))
        for record in file.records:
            assert file.header.nframes is None or record.frame < file.header.nframes


@given(st.permutations(range(30)), st.sets(st.integers(0, 29)), st.lists(st.integers(0, 29), max_size=5), st.booleans())
def test_shuffled_lost_and_repeated(settings, order, lost, repeated, with_ids):
    """All that came is stored, all that did not is listed, and nobody waits longer than he must."""
    receiver, key = Receiver(settings), 5 if with_ids else None
    receiver.take(SeriesStart("a.h5", serial=100, series=key, nframes=30))
    for serial, number in enumerate([n for n in (*order, *repeated) if n not in lost], 101):
        receiver.take(frame(number, series=key, serial=serial))
    receiver.take(SeriesEnd(serial=serial + 1 if len(lost) < 30 else 101, series=key))
    s, books = receiver.snapshot(), MemoryFile.made[0].books
    again = [n for n in repeated if n not in lost]
    assert (s.state, s.written, s.missing, s.repeated) == ("idle", 30 - len(lost), len(lost), len(again))
    assert {n for a, b in books.missing for n in range(a, b + 1)} == lost
    assert books.end_reason == "complete" if not lost else "missing" in books.end_reason
    assert s.closed == (5 if with_ids else 1)


def belongs(start, frame, end=None, previous=None):
    series = Series(1, start, previous=previous)
    if end is not None:
        series.end(end, 0.0)
    return series.owns(frame)


def test_belonging_by_series_id():
    start = SeriesStart("", serial=10, series=4)
    assert belongs(start, frame(0, series=4, serial=3))  # the id counts, not the number
    assert not belongs(start, frame(0, series=3, serial=11))
    assert belongs(start, frame(0, serial=11)) and not belongs(start, frame(0, serial=10))


def test_belonging_by_message_number():
    start, end = SeriesStart("", serial=10), SeriesEnd(serial=20)
    assert not belongs(start, frame(0, serial=9)) and belongs(start, frame(0, serial=11))
    assert belongs(start, frame(0, serial=19), end) and not belongs(start, frame(0, serial=21), end)


def test_belonging_by_order_of_arrival():
    assert belongs(SeriesStart(""), frame(0))
    assert not belongs(SeriesStart(""), frame(0), SeriesEnd())


def test_leftovers_after_a_restart_of_the_streamer():
    before = Series(1, SeriesStart("", serial=500))
    start = SeriesStart("", serial=0)
    assert not belongs(start, frame(7, serial=508), previous=before)
    assert belongs(start, frame(7, serial=8), previous=before)
    assert belongs(start, frame(507, serial=508), previous=before)


def opened(start, **values):
    series = Series(1, start, **values)
    series.ready = True
    return series


def due(series, now=None, quiet_for=0.0, stall=0.0):
    return series.due(time.monotonic() if now is None else now, quiet_for, stall)


def test_when_a_series_is_over():
    series = opened(SeriesStart("", serial=0, nframes=2))
    assert not due(series, quiet_for=1e9)
    series.admit([frame(0, serial=1)], 0)
    series.end(SeriesEnd(serial=3), time.monotonic() + 100)
    assert not due(series)  # message 2 may still come
    assert due(series, now=time.monotonic() + 101)
    series.admit([frame(0, serial=2)], 0)
    assert due(series)  # all that was sent is here
    series.busy = 1
    assert not due(series)


@pytest.mark.parametrize("with_ids", [True, False])
def test_the_end_message_may_overtake_what_another_worker_holds(with_ids):
    """The first frames are there without a gap, and others are on their way: only the message numbers tell."""
    id = 1 if with_ids else None
    series = Series(1, SeriesStart("", serial=10, series=id), workers=2)
    series.ready = True
    frames = [frame(n, series=id, serial=11 + n) for n in range(5)]
    series.admit(frames[:3], 0)
    series.end(SeriesEnd(serial=16, series=id), deadline=9.0)
    assert not series.due(1.0, 1.0, 0.0)
    series.admit(frames[3:], 1)
    assert series.due(1.0, 0.0, 0.0) and series.close().frames_received == 5
    lost = Series(1, SeriesStart("", serial=10, series=id), workers=2)
    lost.ready = True
    lost.admit(frames[:3], 0)
    lost.end(SeriesEnd(serial=16, series=id), deadline=9.0)
    assert lost.due(9.0, 1.0, 0.0) and lost.close().missing == [(3, 4)]


def test_the_end_message_of_one_sender_is_not_that_of_the_others():
    series = Series(1, SeriesStart("", serial=10, series=1), endpoints=2)
    series.ready = True
    series.admit([frame(0, series=1, serial=11)], 0)
    series.end(SeriesEnd(serial=12, series=1), deadline=9.0)
    assert not series.due(1.0, 1.0, 0.0)
    series.admit([frame(1, series=1, serial=70)], 0)
    series.end(SeriesEnd(serial=71, series=1), deadline=9.0)
    assert not series.due(1.0, 0.0, 0.0), "another worker may hold more"
    assert series.due(1.0, 1.0, 0.0) and series.close().frames_received == 2


def test_when_a_stopped_series_is_over():
    series = opened(SeriesStart("", nframes=2))
    series.stop(time.monotonic() + 100)
    assert not due(series) and due(series, quiet_for=1) and due(series, now=time.monotonic() + 101)


def test_when_nothing_comes():
    series = opened(SeriesStart("", nframes=2))
    assert not due(series, now=time.monotonic() + 9, stall=10)
    assert due(series, now=time.monotonic() + 11, stall=10)
    assert "nothing came" in series.close().end_reason


@pytest.mark.parametrize("came, shared", [(range(0, 40, 2), True), (range(0, 40, 4), True), (range(0, 40, 9), False)])
def test_a_second_client_shows_in_the_pattern(came, shared):
    series = opened(SeriesStart("", nframes=40))
    series.admit([frame(n) for n in came], 0)
    assert ("another client" in series.close().end_reason) == shared


def test_announced_shape_wins_over_the_first_frame():
    series = opened(SeriesStart("", shape=(2, 2), dtype="uint16"))
    series.admit([frame(0), frame(0, shape=(2, 2), dtype="uint16", data=bytes(8))], 0)
    assert series.rejected == 1 and series.layout.dtype == "uint16"
    assert "2 x 2 uint8 none" in series.troubles["rejected"][1]


def test_cbf_is_announced_as_what_it_will_be():
    series = Series(1, SeriesStart("", shape=(4, 2, 2), dtype="int32", codec="cbf"))
    assert (series.layout.codec, series.layout.modules, series.layout.shape) == ("none", 4, (2, 2))
    assert series.frame_bytes == 16 and series_module.frame_bytes(SeriesStart("")) == 0


BATCHED_LAYOUTS = st.sampled_from(
    [{}] * 20 + [{"dtype": "int8"}, {"more": (b"efgh",)}, {"discard": True}, {"module": 1}]
)


@given(
    st.sampled_from([None, 1]),
    st.sampled_from([None, 4]),
    st.sampled_from([None, 3, 40]),
    st.lists(
        st.tuples(
            st.integers(0, 30), st.integers(1, 8), st.sampled_from([1, 1, 1, 2, -1]), ids, BATCHED_LAYOUTS, serials
        ),
        max_size=8,
    ),
    st.none() | st.integers(4, 30),
)
def test_batch_at_once_as_one_by_one(id_, serial, nframes, batches, end_serial):
    """The short way of batches that are all alike leads to the same records and books."""
    results = []
    for closer_look in (False, True):
        series = Series(1, SeriesStart("x", serial, id_, nframes, (2, 2), "uint8", "none"))
        series.file, series.ready = MemoryFile("x", None, series.layout), True
        if closer_look:
            series._are_plain = lambda frames: False
        seen = []
        for k, (first, count, step, own, odd, odd_serial) in enumerate(batches):
            if k == len(batches) // 2 and end_serial is not None:
                series.end(SeriesEnd(end_serial, id_), 0.0)
            numbers = [n for n in range(first, first + count * step, step) if n >= 0]
            batch = [frame(n, series=own, serial=n + 5) for n in numbers]
            if batch:
                batch[-1] = batch[-1]._replace(**odd)
                if odd_serial is not None:
                    batch[0] = batch[0]._replace(serial=odd_serial)
                records, strangers = series.admit(batch, 0)
                seen.append(([record._replace(arrived=0.0) for record in records], strangers))
        ledger = series.ledger
        books = ledger.complete, ledger.repeated, ledger.foreign, ledger.highest, ledger.missing(), series.messages
        results.append((seen, books, series.tallies[0]))
    assert results[0] == results[1]
