"""Where the modules of an image are: from what the sender or a YAML file says to the place of every pixel. Pure.

Positions are in pixels of the whole image: `x` columns, `y` rows, from its first pixel on. `rotation` is in degrees,
counter-clockwise as seen with the first row on top (as `numpy.rot90` turns). `rotation_about` says what `x`, `y` are
the place of where a module is turned: `box` (the first column and row that the turned module touches), `corner` (the
module's own first corner, about which it is turned) or `centre` (the module before it was turned about its centre).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError

KEYS = ("x", "y", "rotation", "full_shape", "rotation_about")
ABOUT = ("box", "corner", "centre")
MAX_PIXELS = 1 << 28  # of a whole image; nobody has more


@dataclass(frozen=True)
class Geometry:
    """One value for each module; `full_shape` (rows, columns) of the whole image, None: what the modules need."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    rotation: tuple[float, ...]
    full_shape: tuple[int, int] | None = None
    about: str = "box"

    @property
    def planes(self) -> bool:
        """Whether all lie at one place: thresholds of one image, not parts of it."""
        return len(set(zip(self.x, self.y, self.rotation, strict=True))) == 1

    @property
    def aligned(self) -> bool:
        """Whether no module is turned and each begins at a whole pixel."""
        return not any(self.rotation) and all(value.is_integer() for value in (*self.x, *self.y))


@dataclass(frozen=True)
class Placement:
    """First (row, column) of each module, of `shape`, in an image of `full_shape`; none is turned."""

    corners: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    full_shape: tuple[int, int]


@dataclass(frozen=True)
class _Block:
    """What one module covers: `pixels` from (`row`, `column`) on tell which of its own pixels lies there, -1: none."""

    row: int
    column: int
    pixels: NDArray[np.intp]


# --- what was said ---------------------------------------------------------------------------------------------------


def from_metadata(metadata: Mapping[str, Any], modules: int) -> Geometry | None:
    """What a start message says, in its `detector` part or beside it; None when it names no positions."""
    part = metadata.get("detector")
    said = {**metadata, **(part if isinstance(part, Mapping) else {})}
    values = {key: said[key] for key in KEYS if said.get(key) is not None}
    return parse(values, modules) if "x" in values or "y" in values else None


def parse(values: Mapping[str, Any], modules: int) -> Geometry:
    """Check the values of `KEYS`; ConfigError says what is wrong.

    `x`, `y`: a list of one number for each module; `rotation`: the same, one for all, or left out (0)."""
    if unknown := [str(key) for key in values if key not in KEYS]:
        raise ConfigError(f"{', '.join(unknown)}: not known; there are {', '.join(KEYS)}")
    rotation = values.get("rotation", 0)
    rotations = (rotation,) * modules if _is_number(rotation) else rotation
    about = values.get("rotation_about", "box")
    if not isinstance(about, str) or about not in ABOUT:
        raise ConfigError(f"rotation_about is {_show(about)}, not one of {', '.join(ABOUT)}")
    return Geometry(
        x=_numbers("x", values.get("x"), modules),
        y=_numbers("y", values.get("y"), modules),
        rotation=tuple(angle % 360 for angle in _numbers("rotation", rotations, modules)),
        full_shape=_full_shape(values.get("full_shape")),
        about=about,
    )


def _numbers(name: str, value: Any, modules: int) -> tuple[float, ...]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} is {_show(value)}, not a list of {modules} numbers, one for each module")
    if len(value) != modules:
        raise ConfigError(f"{name} has {len(value)} values, there are {modules} modules")
    for number in value:
        if not _is_number(number) or not abs(number) <= MAX_PIXELS:
            raise ConfigError(f"{name} holds {_show(number)}, not a number of pixels or degrees")
    return tuple(float(number) for number in value)


def _full_shape(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_is_size(n) for n in value):
        raise ConfigError(f"full_shape is {_show(value)}, not [rows, columns]")
    return _limited(int(value[0]), int(value[1]))


def _limited(rows: int, columns: int) -> tuple[int, int]:
    if rows * columns > MAX_PIXELS:
        raise ConfigError(f"the whole image would be {rows} x {columns}, more than {MAX_PIXELS} pixels")
    return rows, columns


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value) and 0 < value <= MAX_PIXELS and int(value) == value


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


# --- modules that are not turned -------------------------------------------------------------------------------------


def place(geometry: Geometry, shape: tuple[int, int]) -> Placement:
    """Where modules of `shape` (rows, columns) begin; ConfigError when one is turned, outside or over another."""
    if not geometry.aligned:
        raise ConfigError("modules are turned or do not begin at whole pixels")
    corners = tuple((int(y), int(x)) for y, x in zip(geometry.y, geometry.x, strict=True))
    (rows, columns), (height, width) = np.array(corners).T, shape
    full = geometry.full_shape or _limited(int(rows.max()) + height, int(columns.max()) + width)
    for module, (row, column) in enumerate(corners):
        _must_be_inside(module, row, column, row + height, column + width, full)
    near = (abs(np.subtract.outer(rows, rows)) < height) & (abs(np.subtract.outer(columns, columns)) < width)
    np.fill_diagonal(near, False)
    if near.any():
        first, second = (int(n) for n in np.argwhere(near)[0])
        raise ConfigError(f"modules {first} and {second} overlap: they begin at {corners[first]} and {corners[second]}")
    return Placement(corners, shape, full)


def _must_be_inside(module: int, row: int, column: int, rows: int, columns: int, full: Sequence[int]) -> None:
    """ConfigError unless rows from `row` to before `rows` are in the image, and columns alike."""
    if row < 0 or column < 0 or rows > full[0] or columns > full[1]:
        raise ConfigError(
            f"module {module} reaches from row {row}, column {column} to row {rows - 1}, column {columns - 1}: "
            f"outside the image of {full[0]} x {full[1]}"
        )


# --- modules of any angle --------------------------------------------------------------------------------------------


def index_map(geometry: Geometry, shape: tuple[int, int]) -> NDArray[np.intp]:
    """For each pixel of the whole image the one that lies there, counted through all modules in C order (in the gaps:
    their number of pixels, one beyond the last). ConfigError when a module is outside or over another.

    Turns by 90, 180 and 270 degrees are exact, positions rounded to whole pixels. At other angles each pixel of the
    image is that of the module in which its centre lies: nothing is interpolated, a count stays a count; a few pixels
    of the module appear twice or not at all."""
    blocks = [_block(geometry, module, shape) for module in range(len(geometry.x))]
    full = geometry.full_shape or _limited(
        max(block.row + block.pixels.shape[0] for block in blocks),
        max(block.column + block.pixels.shape[1] for block in blocks),
    )
    size = shape[0] * shape[1]
    gap = len(blocks) * size
    found = np.full(full, gap, np.intp)
    for module, block in enumerate(blocks):
        rows, columns = block.pixels.shape
        _must_be_inside(module, block.row, block.column, block.row + rows, block.column + columns, full)
        window = found[block.row : block.row + rows, block.column : block.column + columns]
        covered = block.pixels >= 0
        taken = window[covered & (window != gap)]
        if taken.size:
            other = int(taken[0]) // size
            raise ConfigError(
                f"modules {other} and {module} overlap in {taken.size} pixels of the whole image: correct x and y"
            )
        window[covered] = block.pixels[covered] + module * size
    return found


def _block(geometry: Geometry, module: int, shape: tuple[int, int]) -> _Block:
    height, width = shape
    angle = geometry.rotation[module]
    cosine, sine = _turn(angle)
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], float)  # x, y
    turned = np.stack((corners[:, 0] * cosine + corners[:, 1] * sine, corners[:, 1] * cosine - corners[:, 0] * sine), 1)
    origin = np.array((geometry.x[module], geometry.y[module]))
    if geometry.about == "box":
        origin = origin - turned.min(0)
    elif geometry.about == "centre":
        origin = origin + corners[3] / 2 - turned[3] / 2
    # A pixel belongs to what lies at its centre: the first is the one whose centre is not before the border.
    first = np.ceil(origin + turned.min(0) - 0.5).astype(int)
    if not angle % 90:
        pixels = np.rot90(np.arange(height * width).reshape(shape), int(angle // 90))
        return _Block(int(first[1]), int(first[0]), pixels)
    last = np.ceil(origin + turned.max(0) - 0.5).astype(int)
    x = np.arange(first[0], last[0]) + 0.5 - origin[0]
    y = (np.arange(first[1], last[1]) + 0.5 - origin[1])[:, None]
    column, row = np.floor(x * cosine - y * sine).astype(np.intp), np.floor(x * sine + y * cosine).astype(np.intp)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return _trimmed(_Block(int(first[1]), int(first[0]), np.where(inside, row * width + column, -1)))


def _trimmed(block: _Block) -> _Block:
    """Without the rows and columns at the border in which no centre lies in the module."""
    rows, columns = np.nonzero(block.pixels >= 0)
    if not rows.size:
        return block
    top, left = int(rows.min()), int(columns.min())
    pixels = block.pixels[top : int(rows.max()) + 1, left : int(columns.max()) + 1]
    return _Block(block.row + top, block.column + left, pixels)


def _turn(angle: float) -> tuple[float, float]:
    """Cosine and sine, exact at multiples of 90 degrees."""
    if not angle % 90:
        return [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][int(angle // 90)]
    return math.cos(math.radians(angle)), math.sin(math.radians(angle))
