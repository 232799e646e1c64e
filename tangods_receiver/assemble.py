"""Write the images of a file in modules anew, each put together as one plain chunk: for turned modules, or for programs
that cannot read virtual datasets. One frame at a time, whatever the length of the series.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import yaml
from numpy.typing import NDArray

from . import __version__, nexus
from .assembled import GAP, MASK, MODULE_MASK, gap_value
from .codecs import compress
from .errors import ConfigError, WriteError
from .geometry import KEYS, Geometry, from_metadata, index_map

Progress = Callable[[int, int], None]  # done, total

_BLOCK = 1 << 16  # values of a per-frame array that are copied at a time
_OWN = "series_file_"  # attributes of the root that belong to the records, which an assembled file has not


@dataclass(frozen=True)
class Assembled:
    path: Path
    frames: int
    full_shape: tuple[int, int]
    closed: bool  # False: the series was still being written, or its writer was killed


@dataclass(frozen=True)
class _Source:
    """What is assembled: (n, modules, rows, columns), of which the frames `first` to before `last` are wanted."""

    modules: h5py.Dataset
    detector: h5py.Group
    entry: h5py.Group
    first: int
    last: int

    @property
    def whole(self) -> bool:
        return self.last - self.first == len(self.modules)


def assemble(
    path: Path,
    output: Path,
    frames: str = ":",
    geometry: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Assembled:
    """Write `output` with the frames A to before B of `path` (`frames`: "A:B", either may be left out).

    `geometry`: what replaces or completes the positions that the file itself holds. ConfigError: what was asked for
    does not work, nothing is written. WriteError: the storage refused. Whatever happens, `output` is whole or not
    there."""
    with _opened(path) as h5:
        source = _source(h5, frames)
        where = _geometry(source, geometry or {})
        found = index_map(where, source.modules.shape[2:])
        with _created(output) as new:
            _copy_around(source, new)
            _write_images(source, new, found, progress)
            _write_history(source, new, where)
        closed = bool(source.entry["end_time"][()].strip(b"\0")) if "end_time" in source.entry else True
        return Assembled(output, source.last - source.first, (found.shape[0], found.shape[1]), closed)


def load_geometry(path: Path) -> dict[str, Any]:
    """Positions from a YAML file: `x`, `y`, `rotation`, `full_shape`, `rotation_about`; checked when they are used."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"cannot read the geometry {path}: {exc}") from exc
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{path}: no geometry in it; give some of {', '.join(KEYS)}, one `key: value` a line")
    return values


# --- what is there ---------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        h5 = h5py.File(path, "r", locking=False)
    except OSError as exc:
        raise ConfigError(f"cannot open {path}: {exc}") from exc
    with h5:
        yield h5


def _source(h5: h5py.File, frames: str) -> _Source:
    modules = _modules(h5)
    path = modules.name.strip("/")
    first, last = _range(frames, len(modules))
    return _Source(modules, h5[nexus.detector_path(path)], h5[path.split("/")[0]], first, last)


def _modules(h5: h5py.File) -> h5py.Dataset:
    """The module dataset: as the file itself says, else the only one of four dimensions."""
    named = h5.get(str(h5.attrs.get("series_file_dataset", "")) or "/")
    if isinstance(named, h5py.Dataset):
        if named.ndim != 4:
            raise ConfigError(f"{h5.filename}: its images are not in modules, there is nothing to assemble")
        return named
    found: list[h5py.Dataset] = []
    h5.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) and item.ndim == 4 else None)
    if len(found) != 1:
        names = ", ".join(item.name for item in found) or "none"
        raise ConfigError(
            f"{h5.filename}: needs one dataset (frames, modules, rows, columns) below a group, found {names}"
        )
    return found[0]


def _range(frames: str, length: int) -> tuple[int, int]:
    begin, colon, end = frames.partition(":")
    texts = [text.strip() for text in (begin, end)]
    if not colon or not all(text.isdecimal() for text in texts if text):
        raise ConfigError(f"frames {frames!r}: give A:B (from A to before B), A: or :B, counted from 0")
    first, last = int(texts[0] or 0), int(texts[1] or length)
    if last > length or first >= last:
        raise ConfigError(f"frames {frames!r}: there are {length} in the file, from 0 on, and one at least is needed")
    return first, last


def _geometry(source: _Source, values: Mapping[str, Any]) -> Geometry:
    """From the file's header, with `values` over it."""
    header = source.detector.get("header")
    said = _said(header) if isinstance(header, h5py.Group) else {}
    part = said.get("detector")
    said = {**said, **(part if isinstance(part, dict) else {})}
    known = {key: said[key] for key in KEYS if key in said}
    if unknown := [str(key) for key in values if key not in KEYS]:
        raise ConfigError(f"geometry: {', '.join(unknown)} not known; there are {', '.join(KEYS)}")
    geometry = from_metadata({**known, **values}, source.modules.shape[1])
    if geometry is None:
        raise ConfigError(
            f"{source.modules.file.filename}: nothing in it says where the modules are: write `x: [...]` and `y: [...]`"
            " into a YAML file and give it with --geometry"
        )
    if geometry.planes and source.modules.shape[1] > 1:
        raise ConfigError(
            f"all {source.modules.shape[1]} modules lie at one place: these are planes of an image (thresholds), not"
            " its parts; where that is wrong, give --geometry"
        )
    return geometry


def _said(header: h5py.Group) -> dict[str, Any]:
    """Those values of a kept header (see `nexus.put_json`) that can hold positions."""
    if "json" in header and not any(key in header for key in KEYS):
        kept = _value(header["json"])
        return kept if isinstance(kept, dict) else {}
    said: dict[str, Any] = {key: _value(header[key]) for key in KEYS if isinstance(header.get(key), h5py.Dataset)}
    if isinstance(part := header.get("detector"), h5py.Group):
        said["detector"] = {key: _value(part[key]) for key in KEYS if isinstance(part.get(key), h5py.Dataset)}
    return said


def _value(dataset: h5py.Dataset) -> Any:
    value = dataset[()]
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return json.loads(text) if dataset.attrs.get("encoding") == "json" else text
    return value.tolist()


# --- the new file ----------------------------------------------------------------------------------------------------


@contextmanager
def _created(output: Path) -> Iterator[h5py.File]:
    """A file that takes its name when all of it is on the disk, and goes when anything fails."""
    if os.path.lexists(output):
        raise ConfigError(f"{output} exists and is never overwritten: choose another name, or move it away")
    beside = output.with_name(f".{uuid.uuid4().hex}.h5")
    try:
        try:
            with h5py.File(beside, "x", libver="earliest") as h5:
                yield h5
            with open(beside, "rb") as written:
                os.fsync(written.fileno())
            _take_name(beside, output)
        except (OSError, RuntimeError) as exc:
            raise WriteError(f"cannot write {output}: {exc}") from exc
    finally:
        beside.unlink(missing_ok=True)


def _take_name(beside: Path, output: Path) -> None:
    """Unlike a renaming, a link does not replace what came there meanwhile; not every file system has them."""
    try:
        os.link(beside, output)
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or os.path.lexists(output):
            raise
        os.rename(beside, output)


def _write_images(source: _Source, new: h5py.File, found: NDArray[np.intp], progress: Progress | None) -> None:
    modules, total = source.modules, source.last - source.first
    data = new.create_dataset(
        modules.name,
        shape=(total, *found.shape),
        maxshape=(None, *found.shape),
        chunks=(1, *found.shape),
        dtype=modules.dtype,
        **hdf5plugin.Bitshuffle(cname="lz4"),
    )
    data.attrs.update({"interpretation": "image", "description": f"between the modules: {gap_value(modules.dtype)}"})
    pixels = int(np.prod(modules.shape[1:]))
    taken = np.empty(pixels + 1, modules.dtype)
    taken[pixels] = gap_value(modules.dtype)  # where `found` leads for gaps
    frame, image = taken[:pixels].reshape(modules.shape[1:]), np.empty(found.shape, modules.dtype)
    for number in range(total):
        _read(modules, source.first + number, frame)
        np.take(taken, found, out=image, mode="clip")
        data.id.write_direct_chunk((number, 0, 0), compress("bslz4", image))
        if progress:
            progress(number + 1, total)
    detector = new[source.detector.name]
    mask = np.where(found == pixels, GAP, 0).astype(np.uint32)
    detector.create_dataset(MASK, data=mask, chunks=mask.shape, **hdf5plugin.Bitshuffle(cname="lz4"))
    detector[MASK].attrs["description"] = "bit 0: gap between the modules"
    _show_by_default(source, new, data)


def _read(modules: h5py.Dataset, number: int, frame: NDArray[Any]) -> None:
    try:
        modules.read_direct(frame, np.s_[number])
    except (OSError, RuntimeError) as exc:
        name = modules.file.filename
        raise ConfigError(f"cannot read frame {number} of {name}: {exc} (look with: tangods-detector check)") from exc


def _show_by_default(source: _Source, new: h5py.File, data: h5py.Dataset) -> None:
    name = source.entry.attrs.get("default", "data")
    plot = new[source.entry.name].require_group(name)
    if "data" not in plot:
        plot["data"] = data
    plot.attrs.update({"NX_class": "NXdata", "signal": "data"})
    new[source.entry.name].attrs["default"] = name
    new.attrs["default"] = source.entry.name.strip("/")


def _copy_around(source: _Source, new: h5py.File) -> None:
    """Everything but the images: tree, metadata, per-frame arrays of the frames that are taken."""
    root = source.modules.file
    new.attrs.update({key: value for key, value in root.attrs.items() if not key.startswith(_OWN)})
    _copy_group(source, root, new)


def _copy_group(source: _Source, old: h5py.Group, new: h5py.Group) -> None:
    for name in old:
        if not isinstance(old.get(name, getlink=True), h5py.HardLink):  # what lies in other files stays there
            continue
        item = old[name]
        if isinstance(item, h5py.Group):
            below = new.create_group(name)
            below.attrs.update(item.attrs)
            _copy_group(source, item, below)
        elif isinstance(item, h5py.Dataset) and not _is_replaced(source, old, name, item):
            if old == source.detector and name in nexus.ALL_COLUMNS:
                _copy_column(source, item, new)
            elif item.is_virtual:
                new[name] = item[()]
                new[name].attrs.update(item.attrs)
            else:
                old.copy(item, new, name)


def _is_replaced(source: _Source, group: h5py.Group, name: str, item: h5py.Dataset) -> bool:
    """Images and masks are written anew; the books of the whole series say nothing of a part of it."""
    if item == source.modules or (item.is_virtual and item.ndim > 2):
        return True
    if group != source.detector:
        return False
    return name.rstrip("_") in (MASK, MODULE_MASK) or (name.startswith("frames_") and not source.whole)


def _copy_column(source: _Source, old: h5py.Dataset, new: h5py.Group) -> None:
    array = new.create_dataset(Path(old.name).name, (source.last - source.first,), old.dtype)
    array.attrs.update(old.attrs)
    for begin in range(0, len(array), _BLOCK):
        part = old[source.first + begin : min(source.first + begin + _BLOCK, source.last)]
        array[begin : begin + len(part)] = part


def _write_history(source: _Source, new: h5py.File, geometry: Geometry) -> None:
    """How these images were made."""
    process = new[source.entry.name].create_group("assembly")
    process.attrs["NX_class"] = "NXprocess"
    process["program"], process["version"] = nexus.PROGRAM, __version__
    process["date"] = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    process["source"] = os.fsdecode(Path(source.modules.file.filename).name).encode("utf-8", "replace").decode()
    process["frames"] = [source.first, source.last]
    process["frames"].attrs["description"] = "first frame taken, and the one after the last"
    process["geometry"] = json.dumps(asdict(geometry))
    process["geometry"].attrs["encoding"] = "json"
