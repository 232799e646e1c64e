"""What the receiver has done so far: one tally per thread, summed into one frozen snapshot that everybody reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class Tally:
    """Counters of one thread for one series; only that thread writes them.

    What is counted are images as they come: where a stream sends the modules of an image one by one, each counts.
    The books balance: received == written + repeated + foreign + rejected + discarded.
    `batches` were taken together; `waiting` (for the socket), `transforming` and `writing` are seconds."""

    received: int = 0
    written: int = 0
    repeated: int = 0
    foreign: int = 0
    rejected: int = 0
    discarded: int = 0
    bytes: int = 0
    batches: int = 0
    waiting: float = 0.0
    transforming: float = 0.0
    writing: float = 0.0

    @staticmethod
    def sum(tallies: Iterable[Tally]) -> Tally:
        total = Tally()
        for tally in tallies:
            for f in fields(Tally):
                setattr(total, f.name, getattr(total, f.name) + getattr(tally, f.name))
        return total


@dataclass(frozen=True)
class Snapshot:
    """The state of a receiver at one moment: what /status, the Tango attributes and the tests read.

    `state` is idle, running or error; `series` the series now open, or the last one (0: none yet); `opened`, `closed`
    the ids of the last series opened and closed; `file` the path being written ("" when none), `last_file` the one
    closed last; `missing` frames known lost (of the open or last series); `expected` None: not announced;
    `rate` frames/s and `throughput` bytes/s over the last second; `durable` True when the last closed file was synced;
    `last_number` the number of the newest image in its series (-1: none yet).
    """

    state: str = "idle"
    series: int = 0
    file: str = ""
    received: int = 0
    written: int = 0
    missing: int = 0
    repeated: int = 0
    foreign: int = 0
    rejected: int = 0
    discarded: int = 0
    bytes: int = 0
    expected: int | None = None
    opened: int = 0
    closed: int = 0
    last_file: str = ""
    rate: float = 0.0
    throughput: float = 0.0
    durable: bool = True
    last_number: int = -1
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
