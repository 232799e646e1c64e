"""What can be done to the pixels of one image or module, step by step: pure functions of arrays, GIL-free where large.

Each step has `layout`, which says what becomes of shape and type (StreamError: such an image cannot be treated), and
`apply`. What a step gets may be the message itself: it is then read only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tangods_receiver import kernels
from tangods_receiver.errors import StreamError

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
WIDTHS = (8, 16, 32, 64)  # bits of an integer


class Step(Protocol):
    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]: ...

    def apply(self, pixels: Array, module: int) -> Array: ...


@dataclass(frozen=True)
class Rotate:
    """By so many quarter turns counter-clockwise."""

    turns: int

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        return (shape[1], shape[0]) if self.turns % 2 else shape, dtype

    def apply(self, pixels: Array, module: int) -> Array:
        straight = pixels.flags.c_contiguous and pixels.flags.aligned
        if self.turns % 2 == 0 or kernels.pixels is None or not straight:
            return np.rot90(pixels, self.turns)
        out = np.empty(pixels.shape[::-1], pixels.dtype)  # NumPy's copy of a rotated image misses the cache each time
        source, target = (array.reshape(-1).view(np.uint8) for array in (pixels, out))
        kernels.pixels.rotate(source, target, pixels.shape[0], pixels.shape[1], pixels.itemsize, self.turns)
        return out


@dataclass(frozen=True)
class Flip:
    """Axis 0: upside down, 1: left to right."""

    axis: int

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        return shape, dtype

    def apply(self, pixels: Array, module: int) -> Array:
        return np.flip(pixels, self.axis)


@dataclass(frozen=True)
class Rectangle:
    """Rows and columns from the first to before the last; last None: up to the edge."""

    rows: tuple[int, int | None] = (0, None)
    columns: tuple[int, int | None] = (0, None)

    def within(self, shape: Shape) -> tuple[slice, slice]:
        """StreamError when the image does not contain it."""
        found = []
        for (first, last), size, what in zip((self.rows, self.columns), shape, ("rows", "columns"), strict=True):
            end = size if last is None else last
            if not first < end <= size:
                raise StreamError(f"{what} {first} to {end} of an image of {shape[0]} x {shape[1]}")
            found.append(slice(first, end))
        return found[0], found[1]


@dataclass(frozen=True)
class Crop:
    rectangle: Rectangle

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        rows, columns = self.rectangle.within(shape)
        return (rows.stop - rows.start, columns.stop - columns.start), dtype

    def apply(self, pixels: Array, module: int) -> Array:
        return pixels[self.rectangle.within(pixels.shape)]


@dataclass(frozen=True)
class Bin:
    """Sums of `rows` x `columns` pixels; what does not fill a bin at the lower and right edge is left out."""

    rows: int
    columns: int

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        if shape[0] < self.rows or shape[1] < self.columns:
            raise StreamError(f"bins of {self.rows} x {self.columns} in an image of {shape[0]} x {shape[1]}")
        return (shape[0] // self.rows, shape[1] // self.columns), self._wide(np.dtype(dtype)).name

    def _wide(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Integers that hold any sum of a bin, up to 64 bits; floats stay as they are."""
        if dtype.kind == "f":
            return dtype
        need = min(64, dtype.itemsize * 8 + (self.rows * self.columns - 1).bit_length())
        return np.dtype(f"{dtype.kind}{min(width for width in WIDTHS if width >= need) // 8}")

    def apply(self, pixels: Array, module: int) -> Array:
        (rows, columns), _ = self.layout(pixels.shape, pixels.dtype.name)
        wide, high, broad = self._wide(pixels.dtype), self.rows, self.columns
        pixels = pixels[: rows * high, : columns * broad]
        strips = pixels[0::high].astype(wide)
        for row in range(1, high):
            strips += pixels[row::high]
        sums = strips[:, 0::broad].copy()
        for column in range(1, broad):
            sums += strips[:, column::broad]
        return sums


@dataclass(frozen=True)
class Mask:
    """`value` in a rectangle, or (`where`, boolean: rows x columns, or modules x rows x columns) in single pixels."""

    value: int | float
    rectangle: Rectangle = Rectangle()
    where: Array | None = None

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        if self.where is None:
            self.rectangle.within(shape)
        else:
            _fits("mask", self.where, shape)
        kind = np.dtype(dtype)
        if kind.kind == "f":
            fits = not np.isfinite(self.value) or abs(self.value) <= float(np.finfo(kind).max)
        else:
            limits = np.iinfo(kind)
            fits = limits.min <= self.value <= limits.max and self.value == int(self.value)
        if not fits:
            raise StreamError(f"mask: {dtype} cannot hold {self.value}")
        return shape, dtype

    def apply(self, pixels: Array, module: int) -> Array:
        if not pixels.flags.writeable:
            pixels = pixels.copy()
        if self.where is None:
            pixels[self.rectangle.within(pixels.shape)] = self.value
        else:
            np.copyto(pixels, pixels.dtype.type(self.value), where=_of_module("mask", self.where, module))
        return pixels


@dataclass(frozen=True)
class Calibrate:
    """(pixel - dark) * factor as float32; both rows x columns, or modules x rows x columns."""

    dark: Array | None = None
    factor: Array | None = None

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        for what, table in (("dark", self.dark), ("flat and gain", self.factor)):
            if table is not None:
                _fits(what, table, shape)
        return shape, "float32"

    def apply(self, pixels: Array, module: int) -> Array:
        with np.errstate(all="ignore"):  # what is not a number in a table is none in the image
            out = pixels.astype(np.float32)
            if self.dark is not None:
                out -= _of_module("dark", self.dark, module)
            if self.factor is not None:
                out *= _of_module("flat and gain", self.factor, module)
        return out


@dataclass(frozen=True)
class TimeOverThreshold:
    """`energies` float32, rows x columns x times: below 0 becomes -1, beyond the table -2, else the energy."""

    energies: Array

    def layout(self, shape: Shape, dtype: str) -> tuple[Shape, str]:
        if self.energies.shape[:2] != tuple(shape):
            raise StreamError(f"tot: a table of {_size(self.energies.shape)} for an image of {_size(shape)}")
        if np.dtype(dtype).kind == "f":
            raise StreamError(f"tot: pixels of type {dtype}, not whole numbers")
        return shape, "float32"

    def apply(self, pixels: Array, module: int) -> Array:
        out = np.empty(pixels.shape, np.float32)
        if kernels.pixels is not None and pixels.dtype.itemsize <= 4:
            values = np.ascontiguousarray(pixels).reshape(-1)
            kernels.pixels.lookup(values, self.energies.reshape(-1), out.reshape(-1))
            return out
        return self._by_numpy(pixels, out)

    def _by_numpy(self, pixels: Array, out: Array) -> Array:
        times = self.energies.shape[2]
        below, beyond = pixels < 0, pixels >= times
        index = np.arange(0, out.size * times, times).reshape(out.shape)
        index += np.where(below | beyond, 0, pixels).astype(np.intp)
        np.take(self.energies.reshape(-1), index, out=out, mode="clip")
        np.copyto(out, np.float32(-1), where=below)
        np.copyto(out, np.float32(-2), where=beyond)
        return out


def _fits(what: str, table: Array, shape: Shape) -> None:
    if table.shape[-2:] != tuple(shape):
        raise StreamError(f"{what}: {_size(table.shape)} pixels for an image of {_size(shape)}")


def _of_module(what: str, table: Array, module: int) -> Array:
    if table.ndim == 2:
        return table
    if module >= len(table):
        raise StreamError(f"{what}: module {module}, the table has {len(table)}")
    return np.asarray(table[module])


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))
