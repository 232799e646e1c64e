"""One virtual dataset over the images of a scan, wherever the detector's files have them. Knows h5py, not Sardana."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sardana_ctrl.references import Run, runs, without

CLOSED_LIMIT = 3.0  # s that a stopped series may take to close its file
LOOK = 0.05  # s


@dataclass(frozen=True)
class Linked:
    """What became of the references of one detector."""

    points: int
    missing: tuple[int, ...]  # points whose image, or one of their images, is not there
    problem: str = ""  # why there is no virtual dataset, or only a part of it


@dataclass(frozen=True)
class Source:
    """What a detector's file says of its images: shape (frames, rows, columns) or with modules, and lost frames."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    lost: frozenset[int]


def link(
    group: h5py.Group, label: str, references: Sequence[object], points: int, wait: float = CLOSED_LIMIT
) -> Linked:
    """Make `group[label]`, (points, rows, columns): a virtual dataset over the files named in `references`, one for
    each point; (points, k, rows, columns) where a point has k frames. Files are named relative to the scan file, so
    that all can be moved together.

    Points without an image read as 0 and are listed in `<label>_missing`. Nothing is made when no file can be read."""
    found = runs(references, points)
    sources, problem = _open_all(found, wait)
    usable = [run for run in found if run.path in sources]
    if not usable:
        return Linked(points, tuple(range(points)), problem or "no point has a reference to an image")
    first, per_point = sources[usable[0].path], usable[0].per_point
    frame = first.shape[1:]
    layout = h5py.VirtualLayout((points, *((per_point,) if per_point > 1 else ()), *frame), first.dtype)
    missing = set(without(usable, points))
    for run in usable:
        source = sources[run.path]
        if (source.shape[1:], source.dtype, run.per_point) != (frame, first.dtype, per_point):
            problem = f"{run.path} has images of another shape, type or number: {source.shape[1:]} {source.dtype}"
            missing |= set(range(run.point, run.point + run.points))
            continue
        name = relative(run.path, group.file.filename)
        virtual = h5py.VirtualSource(name, run.dataset, (max(source.shape[0], run.stop), *frame), first.dtype)
        layout[run.point : run.point + run.points] = virtual[run.first : run.stop]
        missing |= {run.point + i for i in range(run.points) if _lost(run, i, source)}
    group.create_virtual_dataset(label, layout, fillvalue=0)
    listed = group.create_dataset(f"{label}_missing", data=np.array(sorted(missing), np.int64))
    listed.attrs["description"] = f"numbers of the points, from 0, of which {label} has no image (they read as 0)"
    return Linked(points, tuple(sorted(missing)), problem)


def relative(path: str, scan_file: str) -> str:
    """Name of a detector's file as seen from the scan file's directory."""
    return os.path.relpath(Path(path).resolve(), Path(scan_file).resolve().parent)


def _lost(run: Run, i: int, source: Source) -> bool:
    first = run.first + i * run.per_point
    return any(frame in source.lost for frame in range(first, first + run.per_point))


def _open_all(found: Sequence[Run], wait: float) -> tuple[dict[str, Source], str]:
    sources: dict[str, Source] = {}
    problem = ""
    end = time.monotonic() + wait
    for run in found:
        if run.path in sources:
            continue
        try:
            sources[run.path] = look_at(run.path, run.dataset, max(0.0, end - time.monotonic()))
        except (OSError, KeyError) as exc:
            problem = f"{run.path} cannot be read here: {exc}"
    return sources, problem


def look_at(path: str, dataset: str, wait: float = 0.0) -> Source:
    """Waits `wait` s at most until the file is closed: only then what is missing is known. OSError, KeyError: no such
    file or dataset."""
    end = time.monotonic() + wait
    while True:
        with h5py.File(path, "r", locking=False) as h5:
            data = h5[dataset]
            if _closed(h5) or time.monotonic() > end:
                return Source(tuple(data.shape), data.dtype, _lost_frames(h5, dataset))
        time.sleep(LOOK)


def _closed(h5: h5py.File) -> bool:
    """A StreamReceiver writes the end time at last; files of others are taken as they are."""
    found = h5.get("entry/end_time")
    return found is None or bool(found[()])


def _lost_frames(h5: h5py.File, dataset: str) -> frozenset[int]:
    status = h5.get(posixpath.join(posixpath.dirname(dataset), "frame_status"))
    return frozenset(int(n) for n in np.flatnonzero(status[()] == 0)) if status is not None else frozenset()
