"""The arrays of a start message, such as flat field and pixel mask: which go into the file, where and how.

A file has each of them in one chunk, written when the file is made; the other files of a series have links to it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import h5py
import hdf5plugin
import numpy as np

from . import codecs
from .chunkindex import ChunkIndex
from .h5fields import ArrayFields
from .protocol import Array, Buffer
from .records import FileHeader, ImageLayout

log = logging.getLogger(__name__)

FLATFIELD, MASK = "flatfield", "pixel_mask"
#: As large as an image: name -> what it is. NXdetector and NXdetector_channel have the same names.
IMAGES = {
    FLATFIELD: "factors that correct the response of each pixel",
    MASK: "bit 0: gap, 1: dead, 2: too little response, 3: too much, 4: noisy, 31: virtual pixel; 0: a good one",
}
TABLES = {
    "countrate_correction_lookup_table": "corrected count, by measured count",
    "countrate_correction_table": "measured rates, and what they are corrected to",
}
NAMES = (*IMAGES, *TABLES)
LARGEST_TABLE = 16 << 20  # bytes
CHANNEL_GROUP = "_channel"  # NXdetector_channel is named after its channel with this

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One array: `path` below NXdetector, `data` plain."""

    path: str
    shape: Shape
    dtype: str
    data: Buffer

    @property
    def compressed(self) -> bool:
        """Masks become a hundredth of their size in no time; flat fields hardly shrink, tables are small."""
        return np.dtype(self.dtype).kind in "ui" and len(self.shape) > 1 and prod(self.shape) > 1 << 16


def without_data(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Those that can be stored, for the header of a file that has only links to them."""
    return {name: array._replace(data=b"") for name, array in arrays.items() if not _wrong(name, array)}


def chosen(header: FileHeader, layout: ImageLayout | None, whole: Shape | None = None) -> list[Stored]:
    """What of the header's arrays fits such images (`whole`: those that their modules make); the log says what not.

    None while the layout is not known: there is no image for which they could be meant."""
    if layout is None:
        return []
    found = []
    for name, array in header.arrays.items():
        linked = bool(header.arrays_in)
        if wrong := ("" if linked else _wrong(name, array)) or _misfit(name, array, layout, whole):
            if not linked:  # it is said once a series, by the file that would have it
                log.warning("series %d: %s of the start message is not stored: %s", header.series, name[:60], wrong)
            continue
        channel, _, what = name.rpartition("/")
        path = f"{channel}{CHANNEL_GROUP}/{what}" if channel else what
        found.append(Stored(path, tuple(array.shape), array.dtype, array.data))
    return found


def _wrong(name: str, array: Array) -> str:
    """Why it cannot be stored whatever the images are."""
    what = name.rpartition("/")[2]
    if what not in NAMES:
        return f"not one of {', '.join(NAMES)}"
    try:
        kind = np.dtype(array.dtype)
    except TypeError:
        return f"type {array.dtype!r} is not known"
    if kind.kind not in "uif" or kind.itemsize > 8 or kind.byteorder == ">":
        return f"type {array.dtype!r} is no little-endian number"
    if not 1 <= len(array.shape) <= 3 or not all(type(n) is int and n > 0 for n in array.shape):
        return f"shape {list(array.shape)[:5]}"
    size, there = prod(array.shape) * kind.itemsize, memoryview(array.data).nbytes
    if size >= 1 << 32:
        return f"{size} bytes are more than a chunk of HDF5 holds"
    if size != there:
        return f"{there} bytes, by shape and type {size}"
    return ""


def _misfit(name: str, array: Array, layout: ImageLayout, whole: Shape | None) -> str:
    """Why it does not fit these images."""
    channel, _, what = name.rpartition("/")
    if channel and channel not in layout.channels:
        return f"there is no channel {channel[:40]!r}"
    if what in TABLES:
        large = prod(array.shape) * np.dtype(array.dtype).itemsize > LARGEST_TABLE
        return "a table of more than 16 MiB" if large else ""
    shapes = {(layout.modules, *layout.shape), whole} if layout.axis else {layout.shape}
    if tuple(array.shape) not in shapes:
        return f"shape {list(array.shape)}, the images have {list(layout.shape)}"
    return ""


# --- in the file -----------------------------------------------------------------------------------------------------


def add(detector: h5py.Group, header: FileHeader, layout: ImageLayout | None, stored: Sequence[Stored]) -> None:
    """Make the datasets, still empty, or the links, in the detector's group and those of its channels."""
    names = {array.path for array in stored}
    for array in stored:
        _put(detector, header, array, array.path)
    for channel in layout.channels[:1] if layout is not None else ():
        for what in IMAGES:  # of the first one, for programs that know nothing of channels, as `data` is
            path = f"{channel}{CHANNEL_GROUP}/{what}"
            if path in names and what not in names:
                detector[what] = _link(detector, header, path) if header.arrays_in else detector[path]


def _put(detector: h5py.Group, header: FileHeader, array: Stored, path: str) -> None:
    if header.arrays_in:
        detector[path] = _link(detector, header, path)
        return
    filters = dict(hdf5plugin.Bitshuffle(cname="lz4")) if array.compressed else {}
    made = detector.create_dataset(path, array.shape, array.dtype, chunks=array.shape, fillvalue=0, **filters)
    what = path.rpartition("/")[2]
    made.attrs["description"] = (IMAGES | TABLES)[what]
    if what in IMAGES:
        made.attrs["interpretation"] = "image"


def _link(detector: h5py.Group, header: FileHeader, path: str) -> h5py.ExternalLink:
    return h5py.ExternalLink(os.fsencode(header.arrays_in), f"{detector.name}/{path}")


def read(dataset: h5py.Dataset) -> np.ndarray:
    """As `check` reads it: HDF5's own filter may crash on a damaged chunk. StreamError, OSError: it is damaged."""
    if dataset.chunks is None or not dataset.id.get_create_plist().get_nfilters():
        return np.asarray(dataset[()])
    _, chunk = dataset.id.read_direct_chunk((0,) * dataset.ndim)
    return codecs.decompress("bslz4", chunk, dataset.shape, dataset.dtype.name)


def most_bytes(array: Stored) -> int:
    """That it and its index take in the file, compressed or not."""
    size = memoryview(array.data).nbytes
    return size + size // 64 + 16384


def writes(
    stored: Sequence[Stored], places: Mapping[str, ArrayFields], place: Callable[[int], int]
) -> Iterator[tuple[int, Buffer]]:
    """The chunk of each, its index, and the root that leads there; `places` by path."""
    for array in stored:
        chunk: Buffer = array.data
        if array.compressed:
            chunk = codecs.compress("bslz4", np.frombuffer(array.data, array.dtype))
        size = memoryview(chunk).nbytes
        address = place(size)
        yield address, chunk
        index = ChunkIndex(len(array.shape), step=array.shape[0])
        index.add(*(np.array([value], kind) for value, kind in ((0, "u8"), (address, "u8"), (size, "u4"), (0, "u4"))))
        yield from index.build(place)
        assert index.root is not None
        yield places[array.path].root, index.root.to_bytes(8, "little")
