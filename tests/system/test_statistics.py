"""What a control room sees of the receiver's work: Tango events of each worker, and a scrape of /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tango
from prometheus_client.parser import text_string_to_metric_families

from tangods_detector.localtango import LocalTango
from tests.system.beamline import Beamline, wait_for

pytestmark = pytest.mark.system

NAMES = ("FramesPerWorker", "RatePerWorker", "BatchSize", "WaitingShare", "WritingShare", "CommitTime", "LongestCommit")


@pytest.fixture
def two_workers(local_tango: LocalTango, tmp_path: Path) -> Iterator[Beamline]:
    with Beamline(local_tango, "statistics", tmp_path, Workers=2, Http="127.0.0.1:0", CommitInterval=0.2) as both:
        yield both


def scrape(receiver: tango.DeviceProxy) -> dict[str, float]:
    """Each metric, summed over its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{receiver.HttpAddress}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_statistics_of_each_worker_come_as_events_and_as_metrics(two_workers: Beamline) -> None:
    receiver = two_workers.receiver
    seen: dict[str, list] = {name.lower(): [] for name in NAMES}

    def keep(event: tango.EventData) -> None:
        if not event.err:
            seen[event.attr_value.name.lower()].append(event.attr_value.value)

    ids = [receiver.subscribe_event(name, tango.EventType.CHANGE_EVENT, keep) for name in NAMES]
    try:
        wait_for("the first events", lambda: all(seen.values()))
        two_workers.acquire(FrameTime=0.004, nFramesPerTrigger=600)
        before = scrape(receiver)
        two_workers.good_series()
        wait_for("the last counts", lambda: sum(seen["framesperworker"][-1]) == 620)
        wait_for("idle workers", lambda: min(seen["waitingshare"][-1]) > 50)
    finally:
        for one in ids:
            receiver.unsubscribe_event(one)
    counts = [sum(value) for value in seen["framesperworker"]]
    assert counts == sorted(counts) and len(counts) > 5, "they come during the series and never go back"
    assert all(len(value) == 2 for name in seen if not name.endswith(("time", "commit")) for value in seen[name])
    assert max(sum(value) for value in seen["rateperworker"]) > 50  # 250 on a quiet machine
    assert max(max(value) for value in seen["batchsize"]) >= 1
    assert 0 < max(seen["committime"]) <= max(seen["longestcommit"]) < 10
    after = scrape(receiver)
    assert before["stream_receiver_received_frames_total"] == 600
    assert after["stream_receiver_received_frames_total"] == after["stream_receiver_written_frames_total"] == 620
    assert all(after[name] >= value for name, value in before.items() if name.endswith(("_total", "_count", "_sum")))
    assert after["stream_receiver_frames_received"] == 20, "of the last series"
    assert list(receiver.Losses or ()) == []
