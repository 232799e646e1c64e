"""Rates, shares and counters from what the workers count, with a pretend clock; and through a real reception."""

import json
import math
import threading
import time
from dataclasses import asdict, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_receiver import config
from tangods_receiver.errors import StreamError
from tangods_receiver.live import Live
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart
from tangods_receiver.reception import Reception
from tangods_receiver.stats import Loss, Meter, Shares, Snapshot, Tally, Timing, WorkerStats, summary

COUNTS = [f.name for f in fields(Tally)]


def meter_of_one(*looks: tuple[float, Tally]) -> list[WorkerStats]:
    meter = Meter(1, 0.0)
    return [meter.read(now, [tally])[0] for now, tally in looks]


# --- rates and shares ------------------------------------------------------------------------------------------------


def test_rates_over_the_last_second():
    _, after_one, between, after_two = meter_of_one(
        (0.1, Tally(received=10, bytes=100)),
        (1.0, Tally(received=500, bytes=5_000, batches=50, full=20, waiting=0.5, transforming=0.25, writing=0.125)),
        (1.9, Tally(received=900, bytes=5_000, batches=60, full=30, waiting=0.5, transforming=0.25, writing=0.525)),
        (3.0, Tally(received=1_500, bytes=25_000, batches=62, full=32, waiting=0.5, transforming=0.25, writing=2.125)),
    )
    assert (after_one.rate, after_one.throughput, after_one.batch_size, after_one.full_share) == (500, 5_000, 10, 0.4)
    assert after_one.now == after_one.overall == Shares(0.5, 0.25, 0.125)
    assert (between.rate, between.now, between.received) == (500, after_one.now, 900), "counts are of this moment"
    assert (between.waiting, between.overall) == (after_one.waiting, after_one.overall)
    assert (after_two.rate, after_two.throughput, after_two.batch_size) == (500, 10_000, 83.3)
    assert after_two.now == Shares(0.0, 0.0, 1.0)
    assert after_two.overall == Shares(0.167, 0.083, 0.708)


def test_a_call_that_began_long_ago_does_not_make_more_than_all_of_the_time():
    *_, last = meter_of_one((1.0, Tally()), (2.0, Tally(writing=1.9)))
    assert last.now.writing == 1.0


def test_nothing_is_divided_by_nothing():
    (first,) = meter_of_one((0.0, Tally()))
    assert first == WorkerStats(0)
    assert Shares.of(Tally(waiting=1.0), 0.0) == Shares()
    assert "batches of 0.0" in summary(Tally(), 1, 0.0, Timing())


def test_behind_is_the_time_since_the_socket_was_last_found_empty():
    looks = [
        (1.0, Tally(batches=3, full=1)),  # two batches were all that there was
        (1.5, Tally(batches=9, full=7)),  # only full ones
        (2.5, Tally(batches=9, full=7, writing=1.0)),  # hangs in the storage
        (2.6, Tally(batches=10, full=7, writing=1.0)),
        (9.0, Tally(batches=10, full=7, writing=1.0, waiting=6.4)),  # nothing comes
    ]
    assert [worker.behind for worker in meter_of_one(*looks)] == [0.0, 0.5, 1.5, 0.0, 0.0]


def test_what_is_less_than_the_distance_of_two_looks_is_not_behind():
    *_, last = meter_of_one((1.0, Tally(batches=1)), (1.2, Tally(batches=2, full=1)))
    assert last.behind == 0.0


def test_an_idle_worker_has_no_news():
    looks = meter_of_one(*((2.0 + k / 10, Tally(batches=1, waiting=1.9 + k / 10)) for k in range(10)))
    assert len(set(looks)) == 1


def test_a_worker_tells_all_that_is_counted():
    (worker,) = meter_of_one((1.0, Tally(**{name: number for number, name in enumerate(COUNTS, 1)})))
    assert [getattr(worker, name) for name in COUNTS] == list(range(1, len(COUNTS) + 1))


def test_the_summary_of_a_series():
    tally = Tally(received=100, bytes=3_000_000, batches=8, waiting=1.0, transforming=0.5, writing=0.25)
    commits = Timing()
    for seconds in (0.002, 0.0301, 0.001):
        commits.add(seconds)
    assert summary(tally, 2, 1.0, commits) == (
        "3.0 MB/s, batches of 12.5, waiting 50%, transforms 25%, writing 12%, longest commit 0.030 s"
    )
    assert (commits.count, commits.last, commits.longest) == (3, 0.001, 0.0301)
    assert commits.total == pytest.approx(0.0331)


amounts = st.builds(
    Tally, **{f.name: st.integers(0, 10**6) if f.type == "int" else st.floats(0, 10) for f in fields(Tally)}
)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0.001, 5.0), amounts), min_size=1, max_size=10))
def test_whatever_is_counted_rates_are_right_on_average_and_shares_are_shares(steps):
    meter, now, total = Meter(1, 0.0), 0.0, Tally()
    sampled, rates = 0.0, 0.0
    for seconds, more in steps:
        now, total = now + seconds, Tally.sum([total, more])
        (worker,) = meter.read(now, [total])
        for shares in (worker.now, worker.overall):
            assert all(0 <= share <= 1 for share in asdict(shares).values())
        assert 0 <= worker.full_share <= 1 and 0 <= worker.behind <= now + 0.01
        if now - sampled >= 1.0:
            rates += worker.rate * (now - sampled)
            sampled = now
            assert rates == pytest.approx(total.received), "no frame counts twice and none is left out"


# --- JSON ------------------------------------------------------------------------------------------------------------

FULL = Snapshot(
    state="running",
    received=3,
    expected=9,
    error="ä",
    workers=(WorkerStats(0, received=2, now=Shares(0.5, 0.25, 0.125), behind=1.5), WorkerStats(1, received=1)),
    lost=(Loss("late", 2, "image 3 came after the end"), Loss("missing", 1, "1 of 9")),
    longest_commit=0.25,
)


def test_json_and_back():
    assert Snapshot.from_dict(json.loads(json.dumps(FULL.as_dict()))) == FULL
    assert FULL.as_dict() == json.loads(json.dumps(FULL.as_dict()))


def test_an_older_and_a_newer_receiver():
    older = {"state": "idle", "opened": 3}
    assert Snapshot.from_dict(older) == Snapshot(opened=3)
    newer = FULL.as_dict() | {"invented": 1}
    newer["workers"][0] |= {"invented": 2, "now": {"waiting": 0.5, "thinking": 0.1}}
    newer["lost"][0]["invented"] = 3
    again = Snapshot.from_dict(newer)
    assert again.workers[0].now == Shares(0.5)
    assert again.lost == FULL.lost


@pytest.mark.parametrize(
    "nonsense", [{"workers": None}, {"workers": [1]}, {"workers": 7}, {"lost": ["x"]}, {"workers": [{"now": "x"}]}]
)
def test_what_is_no_snapshot(nonsense):
    with pytest.raises(TypeError):
        Snapshot.from_dict(nonsense)


# --- counters through series -----------------------------------------------------------------------------------------


def frame(number: int, series: int) -> Frame:
    return Frame(number, (2, 2), "uint8", "none", b"1234", series=series)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 6)),
        st.tuples(st.just("frame"), st.integers(0, 6)),
        st.tuples(st.just("leftover"), st.integers(0, 6)),
        st.tuples(st.just("end"), st.just(0)),
        st.tuples(st.just("garbage"), st.integers(1, 5)),
    ),
    max_size=25,
)


def never_back(before: Snapshot, now: Snapshot) -> None:
    for then, worker in zip(before.workers, now.workers, strict=True):
        for name in COUNTS:
            assert getattr(worker, name) >= getattr(then, name), name
    assert now.missing_total >= before.missing_total
    assert (now.commits, now.commit_seconds) >= (before.commits, before.commit_seconds)


@given(actions)
def test_counters_never_go_back_and_the_books_balance(tmp_path_factory, steps):
    """Without files and with one worker, so that all happens in this thread."""
    values = config.make({"endpoints": ["tcp://127.0.0.1:1"], "root": tmp_path_factory.getbasetemp(), "http": ""})
    values = values.model_copy(update={"end_timeout": 0.0})
    reception = Reception(values, Live(), threading.Event(), lambda series: None)
    before, series = reception.snapshot(True), 0
    for what, number in steps:
        if what == "start":
            reception.abandon("the next one comes")
            reception.close_when_due()
            series += 1
            reception.start(0, SeriesStart("", series=series, nframes=number))
        elif what == "garbage":
            reception.malformed(0, number, StreamError("no json"))
        elif what == "end":
            reception.end(0, SeriesEnd(series=series))
            reception.close_when_due()
        else:
            reception.frames(0, [frame(number, series if what == "frame" else series - 1)])
        now = reception.snapshot(True)
        never_back(before, now)
        for counts in (now, *now.workers):
            lost = counts.repeated + counts.foreign + counts.rejected + counts.discarded
            assert counts.received == counts.written + lost
        assert all(loss.count > 0 and loss.sentence for loss in now.lost)
        before = now


def test_anomalies_without_a_series_are_told_until_the_next_one(tmp_path):
    values = config.make({"endpoints": ["tcp://127.0.0.1:1"], "root": tmp_path, "http": ""})
    reception = Reception(values, Live(), threading.Event(), lambda series: None)
    reception.malformed(0, 3, StreamError("no json"))
    reception.malformed(0, 2, StreamError("also none"))
    reception.frames(0, [frame(4, 9)])
    kinds = {loss.kind: loss for loss in reception.snapshot(True).lost}
    assert kinds["rejected"] == Loss("rejected", 5, "message refused: no json")
    assert kinds["headless"].count == 1 and "image 4" in kinds["headless"].sentence
    reception.start(0, SeriesStart("", series=10, nframes=2))
    assert reception.snapshot(True).lost == ()
    reception.frames(0, [frame(1, 10)])
    kinds = {loss.kind: loss for loss in reception.snapshot(True).lost}
    assert set(kinds) == {"discarded", "missing"}
    reception.abandon("enough")
    reception.close_when_due()
    now = reception.snapshot(True)
    kinds = {loss.kind: loss for loss in now.lost}
    assert kinds["missing"] == Loss("missing", 1, "enough; 1 of 2 frames missing: 0")
    assert now.missing_total == 1
    assert now.workers[0].received == 7
    assert math.isclose(now.rate, sum(worker.rate for worker in now.workers))


def test_a_snapshot_is_cheap(tmp_path):
    """It is taken with the lock held that frames need, twenty times a second by a device."""
    values = config.make({"endpoints": ["tcp://127.0.0.1:1"], "root": tmp_path, "http": "", "workers": 64})
    reception = Reception(values, Live(), threading.Event(), lambda series: None)
    begun = time.process_time()
    for _ in range(20):
        reception.snapshot(True)
    assert time.process_time() - begun < 0.4
