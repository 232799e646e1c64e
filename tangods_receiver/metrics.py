"""A snapshot as Prometheus metrics: counters since the engine began, gauges of this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder

from tangods_receiver.stats import PortStats, Shares, Snapshot, WorkerStats

PREFIX = "stream_receiver_"
STATES = ("idle", "running", "error")
UNWANTED = ("repeated", "foreign", "rejected", "discarded")
ACTIVITIES = ("waiting", "transforming", "writing")

# Of each worker since the engine began: name, help, value.
COUNTERS: tuple[tuple[str, str, Callable[[WorkerStats], float]], ...] = (
    ("received_frames", "Frames that came", lambda w: w.received),
    ("dropped_frames", "Frames that a PUB socket dropped, by the numbers of those that came", lambda w: w.dropped),
    ("received_bytes", "Bytes of pixels that came", lambda w: w.received_bytes),
    ("written_frames", "Frames written", lambda w: w.written),
    ("written_bytes", "Bytes of pixels written", lambda w: w.bytes),
    ("batches", "Messages are taken from the socket in batches", lambda w: w.batches),
    ("full_batches", "Batches after which more was waiting: all of them when the worker is too slow", lambda w: w.full),
)
# Of each worker now.
GAUGES: tuple[tuple[str, str, Callable[[WorkerStats], float]], ...] = (
    ("batch_size_frames", "Mean number of frames in a batch over the last second", lambda w: w.batch_size),
    ("behind_seconds", "Time since the socket was last found empty; 0: just now", lambda w: w.behind),
)
# Of each forwarding port since the engine began, and now.
PORT_COUNTERS: tuple[tuple[str, str, Callable[[PortStats], float]], ...] = (
    ("forwarded_frames", "Frames sent on to clients", lambda p: p.frames),
    ("forwarded_bytes", "Bytes of pixels sent on to clients", lambda p: p.bytes),
    ("forward_dropped_frames", "Frames not sent on because clients were too slow", lambda p: p.dropped),
    ("forward_passed_by", "Times that a subscriber was too slow and lost frames", lambda p: p.passed_by),
    ("forward_unheard_frames", "Frames not sent on because there was no client", lambda p: p.unheard),
    ("forward_left_out_frames", "Frames not sent on because only each n-th is", lambda p: p.left_out),
    ("forward_waited_seconds", "Time that recording waited for clients (policy lossless)", lambda p: p.waited),
)
PORT_GAUGES: tuple[tuple[str, str, Callable[[PortStats], float]], ...] = (
    ("forward_peers", "Clients that are connected", lambda p: p.peers),
    ("forward_queue_bytes", "What waits for clients", lambda p: p.queued),
)
# Of the present or last series.
SERIES: tuple[tuple[str, str, Callable[[Snapshot], float]], ...] = (
    *(
        (f"frames_{kind}", f"Frames {kind} in the present or last series", lambda s, kind=kind: getattr(s, kind))
        for kind in ("received", "written", "missing", *UNWANTED)
    ),
    (
        "frames_expected",
        "Frames announced for the present or last series; NaN: not announced",
        lambda s: _or_nan(s.expected),
    ),
    ("bytes_written", "Bytes of pixels written in the present or last series", lambda s: s.bytes),
    ("series_opened", "Id of the last series opened", lambda s: s.opened),
    ("series_closed", "Id of the last series closed", lambda s: s.closed),
    ("frame_rate_hertz", "Frames per second over the last second", lambda s: s.rate),
    ("throughput_bytes_per_second", "Bytes written per second over the last second", lambda s: s.throughput),
    ("last_commit_seconds", "Time that the last update of the file's index took", lambda s: s.commit_time),
    ("longest_commit_seconds", "Longest such update in the present or last series", lambda s: s.longest_commit),
    ("sync_seconds", "Time that the last file took to reach the disk", lambda s: s.sync_time),
    ("free_bytes", "What can still be written below root; NaN: not known", lambda s: _or_nan(s.free)),
    ("durable", "1: the last closed file has reached the disk", lambda s: s.durable),
)


def _or_nan(number: int | None) -> float:
    return float("nan") if number is None else number


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """All that there is to tell of an engine."""
    workers = snapshot.workers
    for name, text, count in COUNTERS:
        yield _by_worker(CounterMetricFamily, name, f"{text}, since the engine began", count, workers)
    yield _by_worker_and(
        "reason",
        UNWANTED,
        CounterMetricFamily,
        "unwritten_frames",
        "Frames that came and were not written, since the engine began",
        workers,
    )
    yield CounterMetricFamily(
        f"{PREFIX}missing_frames",
        "Frames that never came, counted when their series closes, since the engine began",
        value=snapshot.missing_total,
    )
    for name, text, number in (
        ("refused_connections", "Connections to senders that failed in the handshake", snapshot.refused),
        ("refused_peers", "Connections to the forwarding port that were refused", snapshot.peers_refused),
    ):
        yield CounterMetricFamily(PREFIX + name, f"{text}, since the engine began", value=number)
    yield _by_worker_and(
        "activity",
        ACTIVITIES,
        CounterMetricFamily,
        "worker_seconds",
        "Time of a worker by what it did, since the engine began",
        workers,
    )
    yield _by_worker_and(
        "activity",
        ACTIVITIES,
        GaugeMetricFamily,
        "time_share",
        "Share of a worker's time over the last second, 0 to 1",
        workers,
        lambda w: w.now,
    )
    for name, text, value in GAUGES:
        yield _by_worker(GaugeMetricFamily, name, text, value, workers)
    for name, text, told in PORT_COUNTERS:
        yield _by_port(CounterMetricFamily, name, f"{text}, since the engine began", told, snapshot.forward)
    for name, text, told in PORT_GAUGES:
        yield _by_port(GaugeMetricFamily, name, text, told, snapshot.forward)
    for name, text, of in SERIES:
        yield GaugeMetricFamily(PREFIX + name, text, value=of(snapshot))
    yield SummaryMetricFamily(
        f"{PREFIX}commit_seconds",
        "Updates of the file's index and the time they took, since the engine began",
        count_value=snapshot.commits,
        sum_value=snapshot.commit_seconds,
    )
    yield _labelled(
        "anomalies",
        "What went wrong in the present or last series",
        "kind",
        ((loss.kind, loss.count) for loss in snapshot.lost),
    )
    yield _labelled("state", "1 for the state it is in", "state", ((s, s == snapshot.state) for s in STATES))


def _by_worker(
    kind: Any, name: str, text: str, value: Callable[[WorkerStats], float], workers: Iterable[WorkerStats]
) -> Metric:
    family: Metric = kind(PREFIX + name, text, labels=["worker"])
    for worker in workers:
        family.add_metric([str(worker.index)], value(worker))  # type: ignore[attr-defined]
    return family


def _by_port(
    kind: Any, name: str, text: str, value: Callable[[PortStats], float], ports: Iterable[PortStats]
) -> Metric:
    family: Metric = kind(PREFIX + name, text, labels=["port"])
    for port in ports:
        family.add_metric([port.endpoint], value(port))  # type: ignore[attr-defined]
    return family


def _by_worker_and(
    label: str,
    fields: Iterable[str],
    kind: Any,
    name: str,
    text: str,
    workers: Iterable[WorkerStats],
    of: Callable[[WorkerStats], WorkerStats | Shares] = lambda worker: worker,
) -> Metric:
    """The fields of these names, told apart by a label."""
    family: Metric = kind(PREFIX + name, text, labels=["worker", label])
    for worker in workers:
        for field in fields:
            family.add_metric([str(worker.index), field], getattr(of(worker), field))  # type: ignore[attr-defined]
    return family


def _labelled(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


class _EngineCollector:
    """Takes one snapshot each time it is asked."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return families(self._snapshot())


class Exposition:
    """What /metrics answers: the engine's metrics, and the memory, CPU time and open files of this process."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EngineCollector(snapshot))
        ProcessCollector(registry=self._registry)

    def encode(self, accept: str = "") -> tuple[bytes, str]:
        """The text and its media type, in the format that the client's `Accept` asks for."""
        encoder, media = choose_encoder(accept)
        return encoder(self._registry), media
