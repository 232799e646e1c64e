"""What is measured in one run: which contenders, which sizes, how often."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sizes import SIZES, Size
from summary import Bar

TABLE = ["20kB", "200kB", "2MB", "20MB"]
BETWEEN = ["2kB", "6kB", "60kB", "600kB", "6MB"]
REFERENCE = "pwrite"
NEVER = "ours:commit3600"
DECTRIS1 = "ours:dectris1"


@dataclass(frozen=True)
class Plan:
    """Rounds of all `keys` with all `sizes`; ratios are `against` the reference."""

    name: str
    title: str
    sizes: tuple[Size, ...]
    keys: tuple[str, ...]
    rounds: int
    reference: str = REFERENCE
    against: str = "C pwrite"

    @property
    def trials(self) -> int:
        return len(self.sizes) * len(self.keys) * self.rounds


def table(quick: bool) -> Plan:
    keys = ("null", "pwrite", "chunk", "h5py", "ours", "ours:nofile", "ours:w2", "ours:w2:p2")
    names = ["20kB", "200kB"] if quick else TABLE
    return Plan("table", "Side by side", _sizes(names, quick), keys, 2 if quick else 7)


def curves(quick: bool) -> Plan:
    """The sizes between those of the table: together they make the pictures."""
    keys = ("null", "pwrite", "chunk", "ours", "ours:nofile")
    return Plan("curves", "More frame sizes", _sizes(["2kB", "2MB"] if quick else BETWEEN, quick), keys, _few(quick))


def compressed(quick: bool) -> Plan:
    return Plan("compressed", "Compressed frames", _sizes(["2MB/8"], quick), ("pwrite", "chunk", "ours"), _few(quick))


def workers(quick: bool) -> Plan:
    """Receive only: workers x I/O threads x contexts. With files: some of them, and C."""
    many, io = ([1, 2], [1, 2]) if quick else ([1, 2, 4], [1, 2, 4])
    keys = [f"ours:w{w}:io{n}:nofile" for w in many for n in io]
    keys += [f"ours:w{w}:io{n}:shared:nofile" for w in many for n in io if w > 1 < n]
    keys += [f"ours:w{w}:io{n}" for w in many for n in io if n < 4]
    keys += ["ours:w2:io2:shared", *(f"ours:w{w}:io2:p{w}" for w in many if w > 1)]
    keys += ["null", "null:w2", "pwrite", "pwrite:w2", "pwrite:w2:p2"]
    sizes = _sizes(["200kB"] if quick else ["20kB", "20MB"], True)
    return Plan("workers", "Workers and I/O threads", sizes, tuple(keys), _few(quick), "ours:w1:io2", "one worker")


def commits(quick: bool) -> Plan:
    names = ["20kB"] if quick else ["20kB", "200kB"]
    return Plan("commits", "Commits", _sizes(names, False), ("ours", NEVER), 2 if quick else 9, NEVER, "never")


def protocols(quick: bool) -> Plan:
    """The same frames, one protocol beside the other."""
    names = ["1.6MB/8"] if quick else ["160kB/8", "1.6MB/8"]
    return Plan("protocols", "Protocols", _sizes(names, False), ("ours", DECTRIS1), 2 if quick else 9, "ours", "STINS")


PLANS = {
    **{"table": table, "curves": curves, "compressed": compressed, "workers": workers, "commits": commits},
    "protocols": protocols,
}

BARS = {
    "table": [
        *[Bar("one worker, of C pwrite", s, "ours", REFERENCE, least=b) for s, b in (("20kB", 0.8), ("200kB", 0.95))],
        *[Bar("one worker, of C pwrite", s, "ours", REFERENCE, least=b) for s, b in (("2MB", 0.9), ("20MB", 0.95))],
        Bar("CPU per frame, of C pwrite", "20kB", "ours", REFERENCE, most=1.5),
        *[Bar("two workers, of one", s, "ours:w2", "ours", least=0.9) for s in TABLE],
        *[Bar("two workers, two files, of one", s, "ours:w2:p2", "ours", least=1.6, cores=8) for s in TABLE],
    ],
    "protocols": [Bar("Dectris stream V1, of STINS", "1.6MB/8", DECTRIS1, "ours", least=0.9)],
    "commits": [Bar("commit each second, of never", s, "ours", NEVER, least=0.97) for s in ("20kB", "200kB")],
}


def _few(quick: bool) -> int:
    """Rounds."""
    return 1 if quick else 5


def _sizes(names: list[str], fewer: bool) -> tuple[Size, ...]:
    return tuple(replace(SIZES[n], frames=max(20, SIZES[n].frames // (2 if fewer else 1))) for n in names)
