"""Read back the tag that the generator wrote into every frame: which frames of a file are missing, twice or wrong.

A file is looked at through a map in memory, at the addresses of its chunks, so that a million frames take seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TAG = np.dtype([("frame", "<u8"), ("series", "<u4"), ("picture", "<u4")])  # as generator.c has it
SHOWN = 5  # ranges of frames in a sentence


@dataclass(frozen=True)
class Found:
    """Tags of one series: `frame[k]` is where the file says that frame is (a flat file: -1, it does not say)."""

    frame: np.ndarray
    tags: np.ndarray

    @staticmethod
    def join(several: list[Found]) -> Found:
        return Found(np.concatenate([f.frame for f in several]), np.concatenate([f.tags for f in several]))


def judge(found: Found, frames: int, series: int) -> list[str]:
    """What is wrong, a sentence each; empty: all `frames` frames are there, once, where they belong."""
    tags = found.tags
    problems = []
    foreign = (tags["series"] != series) | (tags["frame"] >= frames)
    if foreign.any():
        where = found.frame[foreign] if (found.frame >= 0).all() else np.flatnonzero(foreign)
        problems.append(f"{foreign.sum()} without the tag of series {series}: {ranges(where)}")
    misplaced = ~foreign & (found.frame >= 0) & (found.frame != tags["frame"].astype(np.int64))
    if misplaced.any():
        problems.append(f"{misplaced.sum()} in the place of another: {ranges(found.frame[misplaced])}")
    count = np.bincount(tags["frame"][~foreign].astype(np.int64), minlength=frames)
    if (count > 1).any():
        problems.append(f"{(count > 1).sum()} more than once: {ranges(np.flatnonzero(count > 1))}")
    if (count == 0).any():
        problems.append(f"{(count == 0).sum()} missing: {ranges(np.flatnonzero(count == 0))}")
    return problems


def ranges(numbers: np.ndarray) -> str:
    """0-3, 7, 9-12, ... of numbers in any order."""
    ordered = np.unique(numbers)
    pieces = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    texts = [f"{p[0]}" if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces[:SHOWN] if len(p)]
    return ", ".join(texts + ["..."] * (len(pieces) > SHOWN))


# --- files -----------------------------------------------------------------------------------------------------------


def flat(path: Path, payload: int, tag_at: int) -> Found:
    """Payloads of one size behind each other in PATH, PATH.1, PATH.2 ..., in the order of their arrival."""
    found = []
    for file in [path, *sorted(path.parent.glob(f"{path.name}.*"))]:
        if file.stat().st_size % payload:
            raise ValueError(f"{file.name} has {file.stat().st_size} bytes, not a multiple of {payload}")
        places = np.arange(file.stat().st_size // payload) * payload
        found.append(Found(np.full(len(places), -1), _tags(file, places + tag_at)))
    return Found.join(found)


def hdf5(path: Path, dataset: str, tag_at: int) -> Found:
    """Tags of all chunks, one a frame; of a virtual dataset those of its sources, placed as it maps them."""
    with h5py.File(path, locking=False) as file:
        images = file[dataset]
        if not images.is_virtual:
            return _chunks(path, images, tag_at)
        sources = images.virtual_sources()
    return Found.join(list(_mapped(path, sources, tag_at)))


def _chunks(path: Path, images: h5py.Dataset, tag_at: int) -> Found:
    frames, places = [], []

    def note(chunk: Any) -> None:
        frames.append(chunk.chunk_offset[0])
        places.append(chunk.byte_offset)

    if images.id.get_num_chunks():
        images.id.chunk_iter(note)
    return Found(np.array(frames, np.int64), _tags(path, np.array(places, np.int64) + tag_at))


def _mapped(master: Path, sources: list[Any], tag_at: int) -> Iterator[Found]:
    """A file may be the source of several mappings: it is read once."""
    files: dict[tuple[str, str], list[Any]] = {}
    for source in sources:
        files.setdefault((source.file_name, source.dset_name), []).append(source)
    for (name, dataset), mappings in files.items():
        path = master.parent / name
        with h5py.File(path, locking=False) as file:
            own = _chunks(path, file[dataset], tag_at)
            length = file[dataset].shape[0]
        place = np.full(length, -1)
        for mapping in mappings:
            inside = _selected(mapping.src_space, length)
            outside = _selected(mapping.vspace, len(inside))
            n = min(len(inside), len(outside))
            place[inside[:n]] = outside[:n]
        yield Found(place[own.frame], own.tags)


def _selected(space: Any, limit: int) -> np.ndarray:
    """Which frames a selection of whole frames holds; an unlimited one, the first `limit`."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return np.arange(limit)
    if not space.is_regular_hyperslab():
        raise ValueError("a mapping that is not a regular hyperslab")
    start, stride, count, block = (int(values[0]) for values in space.get_regular_hyperslab())
    count = -(-limit // min(block, limit)) if count > limit or count < 0 else count
    block = min(block, limit)
    steps = start + stride * np.arange(count)
    return (steps[:, None] + np.arange(block)).ravel()


def _tags(path: Path, places: np.ndarray) -> np.ndarray:
    if not len(places):
        return np.empty(0, TAG)
    content = np.memmap(path, np.uint8, "r")
    if places.max() + TAG.itemsize > len(content):
        raise ValueError(f"{path.name} ends before its last frame")
    return content[places[:, None] + np.arange(TAG.itemsize)].view(TAG).ravel()
