"""The arrays of a start message, such as flat field and pixel mask: which go into the file, where and how.

A file has each of them in one chunk, written when the file is made; the other files of a series have links to it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import h5py
import hdf5plugin
import numpy as np

from . import codecs
from .chunkindex import ChunkIndex
from .errors import StreamError
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
MOST = 80  # arrays in a file: each of these for 20 channels
_PLAIN_NAME = re.compile(r"\w{1,40}", re.ASCII)
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


def moved(arrays: Mapping[str, Array], move: Callable[[np.ndarray], np.ndarray | None]) -> dict[str, Array]:
    """Turned and cut as the images are, so that each value is still that of its pixel; the log says what cannot be."""
    found = dict(arrays)
    for name, array in arrays.items():
        if name.rpartition("/")[2] not in IMAGES or len(array.shape) < 2 or _wrong(name, array):
            continue
        values = np.frombuffer(array.data, array.dtype).reshape(-1, *array.shape[-2:])
        try:
            planes = [move(plane) for plane in values]
        except StreamError as exc:
            log.warning("%s of the start message is not stored: the transforms cannot be applied to it: %s", name, exc)
            del found[name]
            continue
        if any(plane is None for plane in planes):
            log.warning("%s of the start message is not stored: it has no meaning for pixels put together", name)
            del found[name]
            continue
        out = np.ascontiguousarray(planes)
        found[name] = Array((*array.shape[:-2], *out.shape[1:]), array.dtype, out.reshape(-1).data)
    return found


def chosen(header: FileHeader, layout: ImageLayout | None, whole: Shape | None = None) -> list[Stored]:
    """What of the header's arrays fits such images (`whole`: those that their modules make); the log says what not.

    None while the layout is not known: there is no image for which they could be meant."""
    if layout is None:
        return []
    found, refused, linked = [], [], bool(header.arrays_in)
    for name, array in header.arrays.items():
        if wrong := ("" if linked else _wrong(name, array)) or _misfit(name, array, layout, whole):
            refused.append(f"{name[:60]!r}: {wrong}")
            continue
        channel, _, what = name.rpartition("/")
        path = f"{channel}{CHANNEL_GROUP}/{what}" if channel else what
        found.append(Stored(path, tuple(array.shape), array.dtype, array.data))
    if refused and not linked:  # it is said once a series, by the file that would have them
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        log.warning("series %d: of the start message is not stored: %s%s", header.series, "; ".join(refused[:3]), more)
    return found[:MOST]


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
    if channel and channel not in layout.channels and not _PLAIN_NAME.fullmatch(channel):
        return f"{channel[:40]!r} is no name of a channel"
    if what in TABLES:
        large = prod(array.shape) * np.dtype(array.dtype).itemsize > LARGEST_TABLE
        return "a table of more than 16 MiB" if large else ""
    shapes = {(layout.modules, *layout.shape), whole} if layout.axis and not channel else {layout.shape}
    if tuple(array.shape) not in shapes:
        return f"shape {list(array.shape)}, the images have {list(layout.shape)}"
    return ""


# --- in the file -----------------------------------------------------------------------------------------------------


def add(detector: h5py.Group, header: FileHeader, layout: ImageLayout | None, stored: Sequence[Stored]) -> None:
    """Make the datasets, still empty, or the links, in the detector's group and those of its channels."""
    paths = [array.path for array in stored]
    for array in stored:
        _put(detector, header, array, array.path)
    if layout is None or layout.axis:
        return
    for what in IMAGES:  # of the first channel, for programs that know nothing of channels, as `data` is
        of_channels = [path for path in paths if path.endswith(f"{CHANNEL_GROUP}/{what}")]
        if layout.channels:
            of_channels = [path for path in of_channels if path == f"{layout.channels[0]}{CHANNEL_GROUP}/{what}"]
        if of_channels and what not in paths:
            first = of_channels[0]
            detector[what] = _link(detector, header, first) if header.arrays_in else detector[first]


def _put(detector: h5py.Group, header: FileHeader, array: Stored, path: str) -> None:
    if "/" in path:
        detector.require_group(path.partition("/")[0]).attrs["NX_class"] = "NXdetector_channel"
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


def own(detector: h5py.Group) -> Iterator[h5py.Dataset]:
    """Those in this file, not those that it has links to."""
    groups = [detector[name] for name in detector if name.endswith(CHANNEL_GROUP)]
    for group in [detector, *groups]:
        for name in NAMES:
            if isinstance(group.get(name, getlink=True) if name in group else None, h5py.HardLink):
                yield group[name]


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
