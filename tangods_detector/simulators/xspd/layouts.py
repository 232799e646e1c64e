"""Where the modules of a simulated Lambda lie, and what is drawn over them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangods_detector.simulators.xspd.options import XspdOptions
from tangods_receiver.errors import ConfigError

CHIPS = (2, 6)  # rows, columns of chips in a module
WIDER = {"single": (4, 20), "ten": (4, 18)}  # rows, columns that interpolation adds: 516 x 1556 and 516 x 1554
REAL = (516, 1554)  # rows, columns of a module of the ten-module unit
TEN = ((0, 2), (0, 655), (0, 1306), (1, 1958), (2, 2610), (1578, 2610), (1580, 1960), (1580, 1307), (1579, 654),
       (1581, 0))  # x, y of its modules  # fmt: skip
HOLE = 0.4  # of a module's length that a windmill of real modules is larger than length and width together
BITS, MODULE_BITS = 32, 8  # pixels of the stamp: number, module, counter


@dataclass(frozen=True)
class Place:
    """One module: `x`, `y` first column and row that the turned module touches; `rotation` counter-clockwise, degrees;
    `number` counts from 1 over the layout."""

    number: int
    x: int
    y: int
    rotation: int = 0


def module_shape(options: XspdOptions, interpolation: bool = True, roi_rows: int = 0) -> tuple[int, int]:
    """Rows, columns of a module's image. Interpolation widens the pixels between chips; `roi_rows` of each chip."""
    rows = CHIPS[0] * (roi_rows or options.chip)
    more = WIDER.get(options.layout, WIDER["single"]) if interpolation else (0, 0)
    return rows + more[0], CHIPS[1] * options.chip + more[1]


def layout(name: str, shape: tuple[int, int]) -> tuple[Place, ...]:
    """All modules of `shape` (rows, columns)."""
    h, w = shape
    if name == "single":
        return (Place(1, 0, 0),)
    if name == "pair":
        return Place(1, 0, 0), Place(2, 0, h + 8)
    if name == "square":
        return Place(1, 0, 0), Place(2, w + 5, 0), Place(3, 0, h + 8), Place(4, w + 5, h + 8)
    if name == "windmill":
        side = w + h + round(HOLE * w)
        return (
            Place(1, 0, 0, 0),
            Place(2, side - h, 0, 270),
            Place(3, side - w, side - h, 180),
            Place(4, 0, side - w, 90),
        )
    scaled = [(round(x * w / REAL[1]), round(y * h / REAL[0])) for x, y in TEN]
    return tuple(Place(n, x, y) for n, (x, y) in enumerate(scaled, 1))


def chosen(places: tuple[Place, ...], wanted: str) -> tuple[Place, ...]:
    """`3-4`, `2` or `` (all). ConfigError: there are no such modules."""
    if not wanted:
        return places
    first, _, last = wanted.partition("-")
    try:
        found = places[int(first) - 1 : int(last or first)]
    except ValueError:
        found = ()
    if not found or int(first) < 1 or int(last or first) > len(places):
        raise ConfigError(f"modules: {wanted!r} is none of 1 to {len(places)}; give such as 3-4")
    return found


def full_shape(places: tuple[Place, ...], shape: tuple[int, int]) -> tuple[int, int]:
    """Rows, columns of the image that holds all modules."""
    boxes = [box(place, shape) for place in places]
    return max(y + h for _, y, h, _ in boxes), max(x + w for x, _, _, w in boxes)


def box(place: Place, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """x, y, rows, columns that the turned module covers."""
    h, w = shape if place.rotation % 180 == 0 else shape[::-1]
    return place.x, place.y, h, w


def view(whole: NDArray[Any], place: Place, shape: tuple[int, int]) -> NDArray[Any]:
    """Of the whole image what the module sees, as it sees it; a view, so that what is written there is in the image."""
    x, y, h, w = box(place, shape)
    return np.rot90(whole[y : y + h, x : x + w], -(place.rotation // 90))


class Drawing:
    """What the detector counts: images in turn, each pixel another value, each module stamped with its number, the
    frame's number and the counter (DUAL: 0 low, 1 high), one bit a pixel in its first row."""

    TURN = 4  # pictures in turn

    def __init__(self, places: tuple[Place, ...], shape: tuple[int, int], depth: int, of: tuple[int, int]) -> None:
        """`depth` in bits; `of` rows, columns of the image of all modules of the layout."""
        self.places, self.shape = places, shape
        self.dtype = np.dtype(dtype_of(depth))
        rows, columns = np.ogrid[: of[0], : of[1]]
        self._wholes = []
        for k in range(self.TURN):
            whole = np.zeros(of, self.dtype)
            counts = ((rows * 31 + columns * 7 + (rows * columns >> 3) + k * 101) % (1 << depth)).astype(self.dtype)
            for place in places:
                view(whole, place, shape)[:] = view(counts, place, shape)
            self._wholes.append(whole)
        self._modules = [[np.ascontiguousarray(view(whole, p, shape)) for p in places] for whole in self._wholes]

    def module(self, k: int, number: int, counter: int = 0) -> NDArray[Any]:
        """Image `number` (from 0) of the `k`-th module here; rows, columns."""
        image = self._modules[number % self.TURN][k].copy()
        stamp(image, self.places[k].number, number, counter)
        return image

    def whole(self, number: int, counter: int = 0) -> NDArray[Any]:
        """All modules at their places, 0 between them."""
        image = self._wholes[number % self.TURN].copy()
        for place in self.places:
            stamp(view(image, place, self.shape), place.number, number, counter)
        return image


def dtype_of(depth: int) -> str:
    return {1: "uint8", 6: "uint8", 12: "uint16", 24: "uint32"}[depth]


def stamp(image: NDArray[Any], module: int, number: int, counter: int) -> None:
    image[0, : BITS + MODULE_BITS + 1] = [
        *(number >> bit & 1 for bit in range(BITS)),
        *(module >> bit & 1 for bit in range(MODULE_BITS)),
        counter,
    ]


def stamped(image: NDArray[Any]) -> tuple[int, int, int]:
    """Module, number, counter that an image carries."""
    bits = [int(pixel) for pixel in image[0, : BITS + MODULE_BITS + 1]]
    number = sum(bit << k for k, bit in enumerate(bits[:BITS]))
    return sum(bit << k for k, bit in enumerate(bits[BITS:-1])), number, bits[-1]
