"""Arrays that the pixel work needs, read from files once, at the start: masks, dark and flat fields, tables."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tangods_receiver.errors import ConfigError

Array = np.ndarray[Any, Any]

SUFFIXES = ".npy, .npz, .h5, .hdf5, .nxs, .tif, .tiff, .edf, .cbf"


def load(name: Any, root: Path | None = None) -> Array:
    """The array in a file, `root` being where relative names begin. Which one of several says `file::name`.

    ConfigError: what was looked for and what is there."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{name!r} is not the name of a file")
    file, _, inside = name.partition("::")
    path = Path(file).expanduser()
    if root is not None:
        path = root / path
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        array = _read(path, inside.strip("/"))
    except ConfigError:
        raise
    except Exception as exc:  # whatever a reader makes of a file that is not what its name says
        raise ConfigError(f"{path}: cannot be read ({exc or type(exc).__name__})") from exc
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or not array.size:
        raise ConfigError(f"{path}: holds {array.dtype} of shape {array.shape}, not an array of numbers")
    return array


def _read(path: Path, inside: str) -> Array:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if suffix == ".npz":
        return _from_npz(path, inside)
    if suffix in (".h5", ".hdf5", ".nxs"):
        return _from_hdf5(path, inside)
    if suffix in (".tif", ".tiff", ".edf", ".cbf"):
        import fabio  # half a second to import

        with fabio.open(str(path)) as image:
            return np.array(image.data)
    raise ConfigError(f"{path}: not a kind of file that is read: {SUFFIXES}")


def _from_npz(path: Path, inside: str) -> Array:
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"{path}: not an npz file")
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[_chosen(path, inside, list(arrays.files))])


def _from_hdf5(path: Path, inside: str) -> Array:
    with h5py.File(path, "r") as file:
        if not inside:
            found: list[str] = []
            file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
            inside = _chosen(path, inside, found)
        if not isinstance(file.get(inside), h5py.Dataset):
            raise ConfigError(f"{path}: no dataset {inside!r}")
        return np.asarray(file[inside][()])


def _chosen(path: Path, inside: str, names: list[str]) -> str:
    if inside in names:
        return inside
    there = f"there are: {', '.join(sorted(names)[:20]) or 'none'}"
    if inside:
        raise ConfigError(f"{path}: no array {inside!r}; {there}")
    if len(names) != 1:
        raise ConfigError(f"{path}: say which array, like {path.name}::name; {there}")
    return names[0]
