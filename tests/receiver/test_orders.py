"""Several workers: headers, frames and ends in any order; every frame in its place, and nothing anywhere else."""

import itertools
import queue
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tangods_receiver import config
from tangods_receiver.engine import Engine
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart
from tests.receiver.streaming import SHAPE, Sender, holds, image, read, running, wait_closed, wait_opened

KNOWN = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}
PATIENCE = 0.002  # s that the schedule waits for a worker; one that waits for others does not hold them up
numbers = itertools.count()


class Hand:
    """One worker without its socket: takes messages in the order in which they are given, each when it is told to."""

    def __init__(self, reception, index):
        self._reception, self._index = reception, index
        self._orders = queue.SimpleQueue()
        self._done = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, name=f"hand {index}")
        self._thread.start()

    def take(self, messages):
        """Returns when they are taken, or when that takes long."""
        self._orders.put(messages)
        self._done.acquire(timeout=PATIENCE)

    def settle(self):
        self._orders.put([])
        while not self._orders.empty():
            self._done.acquire(timeout=PATIENCE)

    def end(self):
        self._orders.put(None)
        self._thread.join()

    def _main(self):
        while (messages := self._orders.get()) is not None:
            self._reception.reading(self._index, len(messages), 0, False)
            frames = []
            for message in messages:
                if isinstance(message, Frame):
                    frames.append(message)
                    continue
                self._reception.frames(self._index, frames)
                frames = []
                if isinstance(message, SeriesStart):
                    self._reception.start(self._index, message)
                else:
                    self._reception.end(self._index, message)
            self._reception.frames(self._index, frames)
            if self._orders.empty():
                self._reception.idle(self._index)
            self._done.release()


class Hands:
    """An engine whose workers are ours; `root` is where it writes."""

    def __init__(self, root, workers, endpoints=1):
        self.root = root
        addresses = [f"tcp://127.0.0.1:{n}" for n in range(1, endpoints + 1)]
        values = {"endpoints": addresses, "root": root, "http": "", "workers": workers, "end_timeout": 5}
        self.engine = Engine(config.make(values | {"commit_interval": 0.01}))
        self._workers = workers

    def __enter__(self):
        self.engine._syncer.start()
        self.engine._keeper.start()
        self.hands = [Hand(self.engine._reception, index) for index in range(self._workers)]
        return self

    def __exit__(self, *_):
        for hand in self.hands:
            hand.end()
        self.engine._shut_down()


def sent(series, count, known, with_ids, serials, announced=True, module=None):
    """One series as its sender sends it; pixels say which series they are of."""
    key = series if with_ids else None
    layout = KNOWN | {"modules": 2 if module is not None else 1} if known or module is not None else {}
    nframes = count if announced else None
    metadata = {"exptime": float(series)}
    yield SeriesStart(f"{series}.h5", serial=next(serials), series=key, nframes=nframes, metadata=metadata, **layout)
    for number in range(count):
        data = image(number + 1000 * series + 500 * (module or 0)).tobytes()
        yield Frame(number, SHAPE, "uint16", "none", data, module or 0, next(serials), key)
    yield SeriesEnd(serial=next(serials), series=key)


def shares(draw, messages, workers):
    """Who gets which message, as a schedule of (worker, some messages); each worker's are in the order of sending."""
    owner = draw(st.lists(st.integers(0, workers - 1), min_size=len(messages), max_size=len(messages)))
    held = [[m for m, w in zip(messages, owner, strict=True) if w == worker] for worker in range(workers)]
    order = draw(st.permutations([w for w in range(workers) for _ in range((len(held[w]) + 2) // 3)]))
    schedule = []
    for worker in order:
        size = draw(st.integers(1, 5))
        schedule.append((worker, held[worker][:size]))
        held[worker] = held[worker][size:]
    return [entry for entry in schedule if entry[1]] + [(w, left) for w, left in enumerate(held) if left]


WINDOW = 7  # messages that may overtake each other: less than the shortest series has


@st.composite
def one_sender(draw):
    """Series after series without a pause, shared out among the workers, who run a window apart."""
    workers = draw(st.sampled_from([2, 4]))
    serials = itertools.count(draw(st.sampled_from([0, 1, 2**31 - 5, 2**40])))
    with_ids, announced = draw(st.booleans()), draw(st.booleans())
    counts = draw(st.lists(st.integers(WINDOW - 1, 14), min_size=1, max_size=4))
    known = draw(st.booleans())
    messages = sum([[*sent(n, count, known, with_ids, serials, announced)] for n, count in enumerate(counts, 1)], [])
    windows = [messages[at : at + WINDOW] for at in range(0, len(messages), WINDOW)]
    return workers, counts, sum([shares(draw, window, workers) for window in windows], [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("orders")


checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
phases = [Phase.explicit, Phase.reuse, Phase.generate]  # threads make shrinking long, and what it finds random
quick = settings(max_examples=30, suppress_health_check=checks, phases=phases)


def own_folder(folder):
    path = folder / str(next(numbers))
    path.mkdir()
    return path


@pytest.mark.slow
@quick
@given(one_sender())
def test_series_after_series_over_several_workers(folder, case):
    workers, counts, schedule = case
    with Hands(own_folder(folder), workers) as receiver:
        for worker, messages in schedule:
            receiver.hands[worker].take(messages)
        for hand in receiver.hands:
            hand.settle()
        s = wait_closed(receiver.engine, len(counts))
        assert (s.state, s.error) == ("idle", "")
    for series, count in enumerate(counts, 1):
        data, books = read(receiver.root / f"{series}.h5") if count else (np.zeros((0, *SHAPE)), {})
        assert len(data) == count
        for number in range(count):
            assert (data[number] == image(number + 1000 * series)).all(), f"series {series}, frame {number}"
        if count:
            assert books["count_time"] == series, "its own metadata"
            assert books["end_reason"] == b"complete" and books["frames_received"] == count


@st.composite
def two_senders(draw):
    """Each sends its module of every frame. The headers come first, for nobody sends before the file is open; then the
    senders run apart."""
    workers = draw(st.sampled_from([2, 4]))
    count = draw(st.integers(1, 12))
    announced = draw(st.booleans())
    headers, entries = [], []
    for module in range(2):
        header, *others = sent(1, count, True, True, itertools.count(1000 * module), announced, module)
        headers.append((draw(st.integers(0, workers - 1)), [header]))
        entries.append(shares(draw, others, workers))
    order = draw(st.permutations([sender for sender in range(2) for _ in entries[sender]]))
    return workers, count, headers + [entries[sender].pop(0) for sender in order]


@pytest.mark.slow
@quick
@given(two_senders())
def test_two_senders_of_one_series_over_several_workers(folder, case):
    workers, count, schedule = case
    with Hands(own_folder(folder), workers, endpoints=2) as receiver:
        for worker, messages in schedule:
            receiver.hands[worker].take(messages)
        s = wait_closed(receiver.engine, 1)
        assert (s.state, s.error, s.written) == ("idle", "", 2 * count)
    data, _ = read(receiver.root / "1.h5")
    for number in range(count):
        for module in range(2):
            assert (data[number, module] == image(number + 1000 + 500 * module)).all()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("announced", [True, False])
def test_streams_without_ids_back_to_back(tmp_path, workers, announced):
    """Only message numbers tell of which series a frame is, and nobody waits for a series to be closed (but for the
    first to be opened: without any before it nobody knows which start is the first)."""
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=workers, end_timeout=5) as engine:
        for series in range(1, 41):
            count = 1 + 7 * series % 23
            sender.start(tmp_path / f"{series}.h5", nframes=count if announced else None)
            if series == 1:
                wait_opened(engine, 1)
            for number in range(count):
                sender.frame(number, image(number + 1000 * series))
            sender.end()
        s = wait_closed(engine, 40)
        assert (s.state, s.error, s.foreign, s.repeated) == ("idle", "", 0, 0)
    for series in range(1, 41):
        data, books = read(tmp_path / f"{series}.h5")
        assert books["end_reason"] == b"complete", series
        for number, pixels in enumerate(data):
            assert (pixels == image(number + 1000 * series)).all(), f"series {series}, frame {number}"
        assert len(data) == 1 + 7 * series % 23


@pytest.mark.slow
def test_a_sender_that_numbers_oddly_is_doubted_once(tmp_path):
    """Each image is sent twice: from the second on, more messages were sent than the image's number tells."""
    with Sender() as sender, running(tmp_path, sender.endpoint, workers=2, end_timeout=5) as engine:
        sender.start(tmp_path / "a.h5", nframes=200)
        for number in range(200):
            sender.frame(number)
            sender.frame(number)
        began = time.monotonic()
        sender.end()
        s = wait_closed(engine, 1)
        assert (s.written, s.foreign) == (200, 0)
        assert 0 < s.repeated <= 200, "those read after all images are there come too late to be counted"
        assert time.monotonic() - began < 8, "not a second for each"
    assert holds(tmp_path / "a.h5", range(200))
