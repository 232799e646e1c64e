"""What a PUB socket drops: by the numbers of what came, and with real sockets, stalled until frames are lost."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver.drops import Gaps
from tangods_receiver.errors import StreamError
from tangods_receiver.metrics import Exposition
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, stins
from tangods_receiver.series import Series
from tests.receiver.senders import Array1, Publisher, SlsPort, subscribed, total
from tests.receiver.streaming import balanced, image, read, running, wait_closed, wait_opened
from tests.waiting import wait_for

# --- numbers ---------------------------------------------------------------------------------------------------------


def dropped(messages, begun=int):
    """What is told of these messages; None: one that cannot be read."""

    def decode(message):
        if message is None:
            raise StreamError("no")
        return message

    found = []
    gaps = Gaps(decode, found.append, begun)
    for message in messages:
        if message is None:
            with pytest.raises(StreamError):
                gaps(message)
        else:
            assert gaps(message) is message
    return found


def frame(number, serial=None, series=None):
    return Frame(number, (1, 1), "uint8", "none", b"x", serial=serial, series=series)


def frames(*numbers):
    return [frame(number) for number in numbers]


def test_nothing_is_dropped_where_numbers_follow():
    assert dropped(frames(7, 8, 9)) == []
    assert dropped([frame(n, serial=n) for n in (7, 8, 9)]) == []


def test_gaps_in_frames():
    assert dropped(frames(7, 9, 10, 15)) == [1, 4]


def test_numbers_that_go_back_or_far_away_are_another_numbering():
    assert dropped(frames(7, 8, 3, 4, 4, 6)) == [1]
    assert dropped(frames(7, 7 + 2 * 10**6, 9 + 2 * 10**6)) == [1]


def test_frames_count_from_0_in_a_series_that_is_announced():
    start, end = SeriesStart("", series=1), SeriesEnd(series=1)
    assert dropped([start, *frames(2, 3), end, start, *frames(0, 1), end, *frames(5, 7)]) == [2, 1]
    assert dropped([[start, frame(1)], frame(3)]) == [1, 1]


def test_message_numbers_count_starts_and_ends_as_well():
    messages = [SeriesStart("", serial=4), frame(0, 5), frame(2, 7), SeriesEnd(serial=9), SeriesStart("", serial=11)]
    assert dropped([*messages, frame(3, 12)]) == [1, 1, 1]
    assert dropped([frame(0, 5), SeriesStart("", serial=0), frame(0, 1)]) == [], "started again"


def test_a_start_that_is_said_again_is_no_gap():
    start = SeriesStart("", serial=4)
    assert dropped([start, frame(0, 5), frame(1, 6), start, frame(2, 7), start, frame(4, 9)]) == [1]
    assert dropped([start, frame(0, 5), frame(1, 6), SeriesStart("", serial=8), frame(0, 9)]) == [1]


def test_a_message_that_cannot_be_read_was_not_dropped():
    assert dropped([frame(1), None, frame(3)]) == []
    assert dropped([frame(1), None, None, frame(7), frame(9)]) == [3, 1]


def test_what_is_begun_may_count_anew():
    epochs = iter([1, 1, 2, 2, 2])
    assert dropped(frames(10, 500, 502, 503), lambda: next(epochs)) == [1]


@given(st.integers(0, 1000), st.lists(st.booleans(), max_size=200))
def test_the_sum_is_what_is_lost_between_the_first_and_the_last(first, came):
    numbers = [first + k for k, is_here in enumerate(came) if is_here]
    lost = numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0
    assert sum(dropped(frames(*numbers))) == lost


# --- real sockets ----------------------------------------------------------------------------------------------------

LARGE = (250, 400)  # 200 kB: what the sockets hold in between is soon full


@pytest.fixture
def stalled(monkeypatch):
    """The storage, until it is told to go on."""
    go_on, real = threading.Event(), Series.write

    def write(series, records):
        assert go_on.wait(60)
        return real(series, records)

    monkeypatch.setattr(Series, "write", write)
    yield go_on
    go_on.set()


def large(number):
    return image(number, LARGE)


def is_right(path, written, length):
    """Frames are in their places, and the list of those that are missing is what is not there."""
    data, books = read(path)
    assert len(data) == length and books["frames_received"] == written
    status = books["frame_status"][:length]
    for number in range(length):
        assert (data[number] == (large(number) if status[number] else 0)).all(), number
    assert (status != 0).sum() == written
    missing = {n for a, b in books["frames_missing"] for n in range(a, b + 1)}
    assert missing == set(np.flatnonzero(status == 0))


def settled(engine):
    """Nothing comes any more."""
    quiet = threading.Event()
    last = -1
    while (now := total(engine)) != last:
        last = now
        quiet.wait(0.3)


def test_frames_that_pub_drops_are_missing_and_counted(tmp_path, stalled):
    """Exactly those that were sent and did not arrive."""
    with Array1(hwm=3) as sender:
        options = {"protocol": "array1", "socket": "sub", "hwm_bytes": 2**20}
        with running(tmp_path, sender.endpoint, **options) as engine:
            subscribed(engine, sender, beat=lambda sender: sender.frame(0, large(0)))
            engine.begin("a.h5")
            for number in range(300):
                sender.frame(number, large(number))
            stalled.set()
            settled(engine)
            sender.frame(300, large(300))
            wait_for(lambda: engine.snapshot().written + engine.snapshot().dropped == 301)
            engine.stop()
            s = wait_closed(engine, 1)
            assert 0 < s.written < 250 and s.missing == s.dropped == 301 - s.written
            assert sum(worker.dropped for worker in s.workers) == s.dropped
            text = Exposition(engine.snapshot).encode()[0].decode()
            assert f'dropped_frames_total{{worker="0"}} {float(s.dropped)}' in text
            balanced(engine)
    is_right(tmp_path / "a.h5", s.written, 301)
    assert b"a PUB socket drops what its subscriber does not fetch in time" in read(tmp_path / "a.h5")[1]["end_reason"]


class Stins(Publisher):
    """STINS over PUB."""

    serial = 0

    def start(self, path, series, numbered=True, **more):
        self._send(stins.encode_start(str(path), self._next(numbered), series=series, **more))

    def frame(self, number, series, numbered=True):
        head = {"serial": self._next(numbered), "series": series}
        self._send([stins.encode_frame_header(number, LARGE, "uint16", "none", **head), large(number).tobytes()])

    def end(self, series, numbered=True):
        self._send(stins.encode_end(self._next(numbered), series=series))

    def _next(self, numbered):
        self.serial += 1
        return self.serial - 1 if numbered else None

    def _send(self, parts):
        self.parts(parts)


@pytest.mark.parametrize("numbered", [True, False], ids=["message numbers", "frame numbers"])
def test_stins_over_sub(tmp_path, stalled, numbered):
    with Stins(hwm=3) as sender:
        with running(tmp_path, sender.endpoint, socket="sub", hwm_bytes=2**20, end_timeout=1.5) as engine:
            subscribed(engine, sender, beat=lambda sender: sender.frame(10**6, 99, numbered=False))
            engine.reset()
            sender.start(tmp_path / "a.h5", 1, numbered)
            wait_opened(engine, 1)
            for number in range(300):
                sender.frame(number, 1, numbered)
            stalled.set()
            settled(engine)
            sender.frame(300, 1, numbered)
            sender.end(1, numbered)
            s = wait_closed(engine, 1)
            assert 0 < s.written < 250 and s.missing == s.dropped == 301 - s.written
    is_right(tmp_path / "a.h5", s.written, 301)
    assert b"a PUB socket drops" in read(tmp_path / "a.h5")[1]["end_reason"]


def test_stins_over_sub_loses_nothing_when_it_is_fetched_in_time(tmp_path):
    with Stins() as sender, running(tmp_path, sender.endpoint, socket="sub") as engine:
        subscribed(engine, sender, beat=lambda sender: sender.frame(10**6, 99, numbered=False))
        engine.reset()
        for series in (1, 2):
            sender.start(tmp_path / f"{series}.h5", series, nframes=40)
            wait_opened(engine, series)
            for number in range(40):
                sender.frame(number, series)
            sender.end(series)
            s = wait_closed(engine, series)
            assert (s.written, s.missing, s.dropped, s.state) == (40, 0, 0, "idle")


def test_ports_of_a_detector_that_drop_differently(tmp_path, stalled):
    """Each image of which a module is lost is missing; what came is in its place."""
    ports = [SlsPort(0, k, (2, 1), shape=LARGE, hwm=3 + 5 * k) for k in range(2)]
    with ports[0], ports[1]:
        endpoints = [port.endpoint for port in ports]
        with running(tmp_path, *endpoints, protocol="slsdet", hwm_bytes=2**20, end_timeout=1.5) as engine:
            subscribed(engine, *ports, beat=lambda port: port.parts([b"{}"]))
            engine.reset()
            for port in ports:
                port.acquire(fname=str(tmp_path / "a"))
            for number in range(1, 251):
                for port in ports:
                    port.frame(number, large(number).tobytes())
            stalled.set()
            settled(engine)
            for port in ports:
                port.frame(251, large(251).tobytes())
                port.end()
            s = wait_closed(engine, 1)
            assert 0 < s.written < 450 and s.dropped == 502 - s.written
            balanced(engine)
    data, books = read(tmp_path / "a_0.h5")
    here = [[bool(data[number, k].any()) for k in range(2)] for number in range(251)]
    assert sum(map(sum, here)) == s.written
    missing = {n for a, b in books["frames_missing"] for n in range(a, b + 1)}
    assert missing == {number for number in range(251) if not all(here[number])} and s.missing == len(missing)
    for number in range(251):
        for k in range(2):
            assert not here[number][k] or (data[number, k] == large(number + 1)).all()
