"""References to images in detector files: `h5file:///data/scan_1.h5::entry/instrument/detector/data#5`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

SCHEME = "h5file"
DATASET = "entry/instrument/detector/data"  # where a StreamReceiver puts the images

_FORM = re.compile(
    r"h5file://(?P<path>/.+?)::(?P<dataset>[^#]+)#(?P<first>\d+)(?::(?P<stop>\d+))?(?:/(?P<per_point>[1-9]\d*))?"
)


@dataclass(frozen=True)
class Reference:
    """Frames `first` .. `stop` - 1 of a dataset (frames, rows, columns) in an HDF5 file.

    `#5` is one frame, `#10:12` the frames of one point, `#0:500/2` those of 250 points, two for each."""

    path: str
    dataset: str
    first: int
    stop: int
    points: int = 1

    @property
    def frames(self) -> int:
        return self.stop - self.first

    @property
    def per_point(self) -> int:
        return self.frames // self.points

    def __str__(self) -> str:
        part = f"{self.first}" if self.frames == 1 else f"{self.first}:{self.stop}"
        if self.points > 1:
            part += f"/{self.per_point}"
        return f"{SCHEME}://{self.path}::{self.dataset}#{part}"


def parse(text: object) -> Reference | None:
    """None: this is no reference to frames of an HDF5 file."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if not found:
        return None
    first = int(found["first"])
    stop = int(found["stop"]) if found["stop"] else first + 1
    frames = stop - first
    points = frames // int(found["per_point"]) if found["per_point"] else 1
    return Reference(found["path"], found["dataset"], first, stop, points) if frames > 0 and points > 0 else None


@dataclass(frozen=True)
class Run:
    """Frames that follow each other in one file and belong to points that follow each other in the scan.

    Point `point` + i of `points` has the `per_point` frames from `first` + i * `per_point`."""

    path: str
    dataset: str
    first: int
    point: int
    points: int
    per_point: int

    @property
    def stop(self) -> int:
        return self.first + self.points * self.per_point

    def goes_on_with(self, other: Run) -> bool:
        """`other` begins where this ends, in the file and in the scan."""
        same = (self.path, self.dataset, self.per_point) == (other.path, other.dataset, other.per_point)
        return same and self.stop == other.first and self.point + self.points == other.point


def runs(texts: Iterable[object], points: int) -> list[Run]:
    """Join what follows each other; `texts` has one reference (or none) for each point of a scan.

    A reference to many points stands at the first of them and counts for those that follow, up to `points`."""
    found: list[Run] = []
    reached = 0  # first point that has no frame yet
    for point, text in enumerate(texts):
        reference = parse(text)
        if reference is None or point < reached or point >= points:
            continue
        n = min(reference.points, points - point)
        reached = point + n
        run = Run(reference.path, reference.dataset, reference.first, point, n, reference.per_point)
        if found and found[-1].goes_on_with(run):
            found[-1] = replace(found[-1], points=found[-1].points + n)
        else:
            found.append(run)
    return found


def without(runs_found: Iterable[Run], points: int) -> list[int]:
    """Numbers of the points that no run covers."""
    covered: set[int] = set()
    for run in runs_found:
        covered.update(range(run.point, run.point + run.points))
    return [point for point in range(points) if point not in covered]


def as_text(numbers: Iterable[int]) -> str:
    """`3, 5-7, 12`: for people."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
