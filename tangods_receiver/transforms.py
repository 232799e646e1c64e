"""The pixel work between the socket and the file: a configured list of steps -> Chain, which treats each frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tangods_receiver import codecs, tables
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.pixelsteps import (
    Bin,
    Calibrate,
    Crop,
    Flip,
    Mask,
    Rectangle,
    Rotate,
    Shape,
    Step,
    TimeOverThreshold,
)
from tangods_receiver.protocol import Buffer, Frame

TARGETS = {"decode": "none", "bslz4": "bslz4", "lz4": "lz4"}  # steps that choose how pixels are stored
TOT_ARRAY = "tot_to_energy_tensor"


class Chain:
    """The steps of one configuration. It holds nothing of a frame: any number of threads may use it at a time.

    `untouched` codecs of frames that need no work at all."""

    def __init__(self, steps: Sequence[Step] = (), target: str | None = None) -> None:
        self._steps = tuple(steps)
        self._target = target
        # Compressed ones are looked at: readers of a file may crash on a chunk that is not one.
        self.untouched: frozenset[str] = frozenset() if steps or target not in (None, "none") else frozenset({"none"})

    @property
    def is_empty(self) -> bool:
        """No work is configured: frames are stored as they come, where HDF5 can do that."""
        return not self._steps and self._target is None

    def stored(self, shape: Shape, dtype: str, codec: str) -> tuple[Shape, str, str]:
        """Shape, type and codec in the file of what arrives so; StreamError when that cannot work."""
        codec, dtype = codecs.stored_as(codec, dtype)
        for step in self._steps:
            shape, dtype = step.layout(shape, dtype)
        return shape, dtype, self._target or codec

    def apply(self, frame: Frame) -> Frame:
        """The frame as it is stored, each of its modules for itself. StreamError: damaged data."""
        if frame.codec in self.untouched:
            return frame
        try:
            if frame.codec == "bslz4" and not self._steps and self._target in (None, "bslz4"):
                for part in (frame.data, *frame.more):
                    codecs.convert(part, frame.shape, frame.dtype, "bslz4", "bslz4")
                return frame
            shape, dtype, codec = self.stored(frame.shape, frame.dtype, frame.codec)
            data = self._work(frame, frame.module, frame.data, codec)
            more = tuple(self._work(frame, k, part, codec) for k, part in enumerate(frame.more, frame.module + 1))
        except StreamError as exc:
            raise StreamError(f"image {frame.number}: {exc}") from exc
        return frame._replace(shape=shape, dtype=dtype, codec=codec, data=data, more=more)

    def moved(self, marks: codecs.Array, module: int) -> codecs.Array:
        """Pixels that are marked True as they arrive, as they lie in what is stored."""
        for step in self._steps:
            if isinstance(step, Rotate | Flip | Crop | Bin):
                marks = step.apply(marks.astype(np.uint8), module) != 0
        return marks

    def placed(self, values: codecs.Array) -> codecs.Array | None:
        """Numbers that belong to the pixels as they arrive, as they lie in what is stored; None: pixels were summed."""
        for step in self._steps:
            if isinstance(step, Bin):
                return None
            if isinstance(step, Rotate | Flip | Crop):
                values = step.apply(values, 0)
        return values

    def _work(self, frame: Frame, module: int, data: Buffer, codec: str) -> Buffer:
        if not self._steps:
            return codecs.convert(data, frame.shape, frame.dtype, frame.codec, codec)
        pixels = codecs.decompress(frame.codec, data, frame.shape, frame.dtype)
        for step in self._steps:
            pixels = step.apply(pixels, module)
        return codecs.compress(codec, pixels)


def build(steps: Sequence[Any], root: Path | None = None) -> Chain:
    """The chain of these steps, read from YAML; relative file names begin at `root`.

    ConfigError lists all mistakes, and what exists."""
    found: list[Step] = []
    target, mistakes = None, []
    for number, given in enumerate(steps, 1):
        try:
            name, argument = _name_and_argument(given)
            if name in TARGETS:
                _no_argument(argument)
                target = TARGETS[name]
            else:
                found.append(_known(name)(argument, root))
        except ConfigError as exc:
            mistakes.append(f"step {number}, {given!r}: {exc}")
    if mistakes:
        raise ConfigError(f"transforms: {'; '.join(mistakes)}")
    return Chain(found, target)


def _known(name: str) -> Callable[[Any, Path | None], Step]:
    if name not in STEPS:
        raise ConfigError(f"no such step, there are: {', '.join(sorted([*STEPS, *TARGETS]))}")
    return STEPS[name]


def _name_and_argument(given: Any) -> tuple[str, Any]:
    """`bslz4`, `{rotate: 90}`, or the text "rotate: 90" as in a Tango property."""
    if isinstance(given, str) and ":" in given:
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError as exc:
            raise ConfigError(f"not YAML ({' '.join(str(exc).split())})") from exc
    if isinstance(given, str):
        return given.strip(), None
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, argument),) = given.items()
        if isinstance(name, str):
            return name, argument
    raise ConfigError("neither a step's name nor one 'name: argument'")


# --- the steps' arguments --------------------------------------------------------------------------------------------


def _no_argument(argument: Any) -> None:
    if argument is not None:
        raise ConfigError(f"takes no argument, found {argument!r}")


def _rotate(argument: Any, root: Path | None) -> Step:
    if type(argument) is not int or argument not in (90, 180, 270):
        raise ConfigError(f"by 90, 180 or 270 degrees (counter-clockwise), not {argument!r}")
    return Rotate(argument // 90)


def _flip(axis: int) -> Callable[[Any, Path | None], Step]:
    def flip(argument: Any, root: Path | None) -> Step:
        _no_argument(argument)
        return Flip(axis)

    return flip


def _crop(argument: Any, root: Path | None) -> Step:
    given = _keys(argument, "rows", "columns")
    if not given:
        raise ConfigError("needs rows: [first, last] or columns: [first, last] (or both); the last is left out")
    return Crop(_rectangle(given))


def _bin(argument: Any, root: Path | None) -> Step:
    sizes = list(argument) if isinstance(argument, list | tuple) else [argument, argument]
    if len(sizes) != 2 or not all(type(n) is int and 1 <= n <= 1 << 16 for n in sizes) or sizes == [1, 1]:
        raise ConfigError(f"by a number of pixels or [rows, columns], not {argument!r}")
    return Bin(*sizes)


def _mask(argument: Any, root: Path | None) -> Step:
    given = _keys(argument, "rows", "columns", "file", "value")
    value = given.pop("value", None)
    if type(value) not in (int, float) or (type(value) is int and not -(2**63) <= value < 2**64):
        raise ConfigError(f"needs value: the number that masked pixels get, found {value!r}")
    if "file" not in given:
        if not given:
            raise ConfigError("needs rows and columns, or file")
        return Mask(value, _rectangle(given))
    if len(given) > 1:
        raise ConfigError("rows and columns, or file: not both")
    return Mask(value, where=_image(given["file"], root) != 0)


def _calibrate(argument: Any, root: Path | None) -> Step:
    given = _keys(argument, "dark", "flat", "gain")
    if not given:
        raise ConfigError("needs one or more of dark: FILE, flat: FILE, gain: FILE")
    read = {what: _image(file, root).astype(np.float64) for what, file in given.items()}
    if len({table.shape for table in read.values()}) > 1:
        raise ConfigError("; ".join(f"{what} has the shape {table.shape}" for what, table in read.items()))
    divisors = [table for what, table in read.items() if what != "dark"]
    with np.errstate(all="ignore"):
        dark = read["dark"].astype(np.float32) if "dark" in read else None
        factor = (1 / np.prod(divisors, axis=0)).astype(np.float32) if divisors else None
    if factor is not None:
        factor[~np.isfinite(factor)] = np.nan
    return Calibrate(dark, factor)


def _tot(argument: Any, root: Path | None) -> Step:
    name = _keys(argument, "file").get("file") if isinstance(argument, Mapping) else argument
    if isinstance(name, str) and name.endswith(".npz"):
        name = f"{name}::{TOT_ARRAY}"
    table = tables.load(name, root)
    if table.ndim != 3:
        raise ConfigError(f"{name}: a table of shape {table.shape}, not (rows, columns, times)")
    with np.errstate(all="ignore"):
        return TimeOverThreshold(np.ascontiguousarray(table, np.float32))


def _image(name: Any, root: Path | None) -> codecs.Array:
    array = tables.load(name, root)
    if array.ndim not in (2, 3):
        raise ConfigError(f"{name}: shape {array.shape}, not (rows, columns) or (modules, rows, columns)")
    return array


def _keys(argument: Any, *known: str) -> dict[str, Any]:
    if not isinstance(argument, Mapping):
        raise ConfigError(f"needs {', '.join(known)} as 'key: value', found {argument!r}")
    unknown = [str(key) for key in argument if key not in known]
    if unknown:
        raise ConfigError(f"unknown {', '.join(unknown)}, there are: {', '.join(known)}")
    return dict(argument)


def _rectangle(given: Mapping[str, Any]) -> Rectangle:
    return Rectangle(**{what: _range(what, given[what]) for what in ("rows", "columns") if what in given})


def _range(what: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(n) is int for n in value):
        raise ConfigError(f"{what}: {value!r} is not [first, last]")
    if not 0 <= value[0] < value[1]:
        raise ConfigError(f"{what}: {list(value)} is empty; the last one is left out, and both count from 0")
    return value[0], value[1]


STEPS: dict[str, Callable[[Any, Path | None], Step]] = {
    "bin": _bin,
    "calibrate": _calibrate,
    "crop": _crop,
    "fliplr": _flip(1),
    "flipud": _flip(0),
    "mask": _mask,
    "rotate": _rotate,
    "tot": _tot,
}
