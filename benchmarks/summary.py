"""Trials -> medians, and ratios of trials of the same round. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol


class Measured(Protocol):
    """What a trial has (trial.Trial)."""

    contender: str
    size: str
    round: int
    frames: int
    seconds: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Row:
    """Medians over the rounds; ratios to the reference are of one round each, then the median, lowest and highest."""

    contender: str
    size: str
    rounds: int
    rate: float  # frames/s
    throughput: float  # MB/s
    cpu: float  # microseconds per frame
    memory: float  # MB, highest; 0: not known
    ratio: tuple[float, float, float] | None
    cpu_ratio: float | None


def summarise(trials: Sequence[Measured], size: str, nbytes: int, key: str, reference: str) -> Row:
    mine = [t for t in trials if (t.size, t.contender) == (size, key)]
    rate = median(t.frames / t.seconds for t in mine)
    speed = ratios(trials, size, key, reference, lambda t: t.frames / t.seconds)
    cpu = ratios(trials, size, key, reference, lambda t: t.cpu / t.frames)
    return Row(
        contender=key,
        size=size,
        rounds=len(mine),
        rate=rate,
        throughput=rate * nbytes / 1e6,
        cpu=1e6 * median(t.cpu / t.frames for t in mine),
        memory=max(t.memory for t in mine) / 1e6,
        ratio=(median(speed), min(speed), max(speed)) if speed else None,
        cpu_ratio=median(cpu) if cpu else None,
    )


def ratios(
    trials: Iterable[Measured], size: str, key: str, reference: str, value: Callable[[Measured], float]
) -> list[float]:
    """`value` of `key` by that of `reference`, one for each round that has both (and a reference that is not 0)."""
    of_size = [t for t in trials if t.size == size]
    mine = {t.round: value(t) for t in of_size if t.contender == key}
    theirs = {t.round: value(t) for t in of_size if t.contender == reference}
    return [mine[n] / theirs[n] for n in mine if theirs.get(n)]


@dataclass(frozen=True)
class Bar:
    """What must be reached, on a machine with so many cores: speed, or CPU per frame, of a contender by another's."""

    title: str
    size: str
    key: str
    reference: str
    least: float | None = None  # of speed
    most: float | None = None  # of CPU per frame
    cores: int = 1


def judged(bar: Bar, trials: Sequence[Measured]) -> tuple[float, bool] | None:
    """The median ratio, and whether it is good enough; None: not measured."""
    speed = bar.least is not None
    found = ratios(
        trials, bar.size, bar.key, bar.reference, lambda t: t.frames / t.seconds if speed else t.cpu / t.frames
    )
    if not found:
        return None
    value = median(found)
    return value, value >= bar.least if bar.least is not None else value <= (bar.most or 0)
