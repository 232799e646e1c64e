"""Series files: a copy of their tree, and single frames. Each call opens and closes: files may grow. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  registers the compression filters
import numpy as np
from silx.io import commonh5

from taurus_gui.pictures import Picture, Region

SMALL = 64  # elements of a dataset that are copied into the tree
MOST = 5000  # nodes of a tree
CURVE = 200_000  # elements of a one-dimensional dataset that are drawn


@dataclass(frozen=True)
class Images:
    """A dataset of images: `frames` of them, each `shape` rows x columns (what is between is put below each other);
    `there`: so many are in the file's index by now."""

    path: str
    frames: int
    there: int
    shape: tuple[int, int]
    dtype: str


@dataclass(frozen=True)
class Opened:
    """A file as it was read: `tree` holds no open file; `images` by path; `default` the one to show first."""

    file: str
    tree: commonh5.File
    images: dict[str, Images]
    default: str
    nbytes: int


class FileError(Exception):
    """In words for people."""


def _outline(name: str, node: h5py.Dataset) -> commonh5.Dataset:
    """A dataset whose values stay in the file: zeros that take no memory."""
    zeros = np.broadcast_to(np.zeros((), node.dtype), node.shape or ())
    return commonh5.Dataset(name, zeros, attrs=_attrs(node))


def opened(path: str) -> Opened:
    """FileError: it cannot be read."""
    with _open(path) as h5:
        images: dict[str, Images] = {}
        tree = commonh5.File(path, "r", attrs=_attrs(h5))
        _copy(h5, tree, images, [MOST])
        default = max(images, key=lambda name: (images[name].frames > 1, _size(images[name])), default="")
    size = Path(path).stat()
    return Opened(path, tree, images, default, min(size.st_size, 512 * size.st_blocks))  # a growing file has a hole


def _open(path: str) -> h5py.File:
    if not Path(path).exists():
        raise FileError(f"{path}: not to be seen from this computer, or not there any more")
    try:
        return h5py.File(path, "r")
    except OSError as exc:
        raise FileError(f"{path}: cannot be opened ({exc})") from exc


def _size(images: Images) -> int:
    return images.frames * images.shape[0] * images.shape[1]


def _attrs(node: Any) -> dict[str, Any]:
    found = {}
    for key in node.attrs:
        try:
            found[key] = node.attrs[key]
        except (OSError, TypeError, KeyError):
            continue
    return found


def _copy(source: h5py.Group, target: commonh5.Group, images: dict[str, Images], left: list[int]) -> None:
    for name in source:
        left[0] -= 1
        if left[0] < 0:
            return
        try:
            node = source[name]
        except (KeyError, OSError):  # a part that is not there (yet)
            continue
        if isinstance(node, h5py.Group):
            if isinstance(source.get(name, getlink=True), h5py.SoftLink):  # it is shown at its place
                continue
            group = commonh5.Group(name, attrs=_attrs(node))
            target.add_node(group)
            _copy(node, group, images, left)
        elif isinstance(node, h5py.Dataset):
            target.add_node(_copied(name, node))
            if node.ndim >= 2 and node.dtype.kind in "uifb" and node.shape[-1] > 1 and node.shape[-2] > 1:
                images[f"{source.name.rstrip('/')}/{name}"] = _images(node)


def _copied(name: str, node: h5py.Dataset) -> commonh5.Dataset:
    if node.shape is not None and node.size is not None and node.size <= SMALL:
        try:
            value = node[()]
            if isinstance(value, bytes):
                value = value.decode(errors="replace")
            return commonh5.Dataset(name, np.asarray(value) if node.shape else _scalar(value), attrs=_attrs(node))
        except (OSError, TypeError):
            pass
    return _outline(name, node)


def _scalar(value: Any) -> Any:
    return np.array(value, dtype=h5py.string_dtype()) if isinstance(value, str) else value


def _images(node: h5py.Dataset) -> Images:
    frames = 1 if node.ndim == 2 else node.shape[0]
    shape = node.shape if node.ndim == 2 else node.shape[1:]
    return Images(node.name, frames, _there(node, frames), (int(np.prod(shape[:-1])), shape[-1]), str(node.dtype))


def _there(node: h5py.Dataset, frames: int) -> int:
    """The file counts its chunks, of which each is a frame or a part of one."""
    if node.ndim < 3 or not node.chunks or node.chunks[0] != 1:
        return frames
    per_frame = np.prod([-(-n // c) for n, c in zip(node.shape[1:], node.chunks[1:], strict=True)])
    return min(frames, int(node.id.get_num_chunks() // max(1, per_frame)))


def frame(path: str, dataset: str, number: int, region: Region | None, size: tuple[int, int]) -> Picture:
    """A part of a frame that fits into `size` rows x columns; of each block the first pixel. FileError."""
    with _open(path) as h5:
        try:
            node = h5[dataset]
            images = _images(node)
            if not images.frames:
                raise FileError(f"{path}: {dataset} has no frames in it")
            number = max(0, min(number, images.frames - 1))
            array = node[()] if node.ndim == 2 else node[number]
        except (KeyError, OSError, ValueError) as exc:
            raise FileError(f"{path}: frame {number} cannot be read ({exc})") from exc
    array = array.reshape(images.shape)
    top, left, bottom, right = region or (0, 0, *images.shape)
    factor = max(1, int(np.ceil(max((bottom - top) / size[0], (right - left) / size[1]))))
    top, left = top // factor * factor, left // factor * factor
    pixels = array[top:bottom:factor, left:right:factor]
    marks = None
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize > 1:
        full = pixels == np.iinfo(pixels.dtype).max
        marks = full.astype(np.uint8) if full.any() else None
    elif pixels.dtype.kind == "i":
        gaps = pixels < 0
        marks = gaps.astype(np.uint8) if gaps.any() else None
    rows, columns = pixels.shape
    place = top, left, top + rows * factor, left + columns * factor
    return Picture(pixels, marks, place, images.shape, factor, number=number, source=images.dtype)


def curve(path: str, dataset: str) -> np.ndarray[Any, Any]:
    """Values of a one-dimensional dataset. FileError."""
    with _open(path) as h5:
        try:
            return np.asarray(h5[dataset][:CURVE])
        except (KeyError, OSError, ValueError) as exc:
            raise FileError(f"{path}: {dataset} cannot be read ({exc})") from exc
