"""Images for the eye and for programs: cut out, made smaller, marked, coloured, encoded. Pure functions.

Of an image of several modules in one message the modules lie below each other, here and in all pixel coordinates."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from tangods_receiver import imaging
from tangods_receiver.protocol import SeriesStart

Array = np.ndarray[Any, Any]
Region = tuple[int, int, int, int]  # first row and column, row and column after the last

MASKED, SATURATED = 1, 2  # in the marks of a view
COLOURS = {MASKED: (32, 80, 16), SATURATED: (240, 160, 240)}  # far from every colour of every map
PERCENT = 99.9  # of the pixels are not brighter than the upper end of an automatic range
SAMPLE = 250_000  # pixels are enough to find it
EXTREME = 1e30  # ends of a range beyond it mean the same, and float32 can still take the difference
SIDE = 8192  # rows or columns of a picture that is drawn

Colours = Literal["grey", "grey_r", "viridis", "magma", "inferno", "plasma", "cividis", "turbo", "hot"]
# Name -> name in the package cmap and what people call it.
COLORMAPS: dict[Colours, tuple[str, str]] = {
    "grey": ("cmap:white", "Grey"),
    "grey_r": ("cmap:white_r", "Grey, inverted"),
    "viridis": ("bids:viridis", "Viridis"),
    "magma": ("bids:magma", "Magma"),
    "inferno": ("bids:inferno", "Inferno"),
    "plasma": ("bids:plasma", "Plasma"),
    "cividis": ("cividis:cividis", "Cividis"),
    "turbo": ("google:turbo", "Turbo"),
    "hot": ("matlab:hot", "Hot"),
}
_PLAIN = {"u1", "i1", "u2", "i2", "u4", "i4", "f4"}  # types that every viewer knows; others become float32


class Knowledge(NamedTuple):
    """What the stream says about pixels: `mask` True where one has no value, in the image's shape; `saturation` the
    value from which one is saturated; None: nothing."""

    mask: Array | None = None
    saturation: float | None = None


class View(NamedTuple):
    """A part of an image, made smaller: `region` is what is shown in full pixels, `marks` MASKED or SATURATED where a
    pixel has no value to trust (None: all have), `full` the size of the whole image."""

    pixels: Array
    marks: Array | None
    region: Region
    factor: int
    full: tuple[int, int]


def knowledge(masked: Array | None, start: SeriesStart | None) -> Knowledge:
    """Out of the mask that belongs to an image, and what announced its series."""
    for key in ("saturation_value", "countrate_correction_count_cutoff"):
        value = None if start is None else start.metadata.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return Knowledge(masked, float(value))
    return Knowledge(masked)


def flat(array: Array) -> Array:
    """Rows x columns; modules below each other."""
    return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])


def fitted(region: Region | None, full: tuple[int, int]) -> Region:
    """The part of the region that is in the image; the whole image when none is left, or none was asked for."""
    rows, columns = full
    if region is None:
        return 0, 0, rows, columns
    top, left = max(0, region[0]), max(0, region[1])
    bottom, right = min(rows, region[2]), min(columns, region[3])
    return (top, left, bottom, right) if top < bottom and left < right else (0, 0, rows, columns)


def aligned(region: Region, factor: int, full: tuple[int, int]) -> Region:
    """Grown to whole blocks, counted from the image's first pixel, so that blocks do not wander with the region."""
    rows, columns = (max(factor, n - n % factor) for n in full)
    top, left = (min(region[0], rows - 1) // factor * factor, min(region[1], columns - 1) // factor * factor)
    bottom, right = (
        min(end, -(-stop // factor) * factor) for stop, end in zip(region[2:], (rows, columns), strict=True)
    )
    return top, left, min(full[0], max(bottom, top + factor)), min(full[1], max(right, left + factor))


def view(
    array: Array,
    region: Region | None = None,
    factor: int = 0,
    size: tuple[int, int] | None = None,
    method: imaging.Method = "mean",
    known: Knowledge | None = None,
) -> View:
    """A part of an image, made smaller by `factor`, or (0) as much as it takes to fit into `size` (rows, columns)."""
    image = flat(array)
    full = image.shape[0], image.shape[1]
    part = fitted(region, full)
    if not factor:
        factor = imaging.factor_for((part[2] - part[0], part[3] - part[1]), size) if size else 1
    factor = min(factor, *full)
    part = aligned(part, factor, full)
    cut = image[part[0] : part[2], part[1] : part[3]]
    known = known or Knowledge()
    mask = None if known.mask is None or known.mask.size != image.size else flat(known.mask).reshape(full)
    marks, cut = _marked(cut, None if mask is None else mask[part[0] : part[2], part[1] : part[3]], known.saturation)
    return View(
        imaging.downsample(cut, factor, method),
        None if marks is None else _smaller_marks(marks, factor),
        part,
        factor,
        full,
    )


def _marked(pixels: Array, mask: Array | None, saturation: float | None) -> tuple[Array | None, Array]:
    """Marks of each pixel (None: none is marked), and the pixels, those under the mask without a value.

    The largest number of an unsigned type stands for a masked pixel, unless it is known which pixels are masked, or the
    type has one byte, or it is where saturation begins: then it is a counter that was full."""
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else None
    fills = largest is not None and (mask is not None or pixels.dtype.itemsize == 1 or saturation == largest)
    there = None if fills else imaging.valid(pixels)
    nothing = mask
    if there is not None:
        nothing = ~there if mask is None else ~there | mask
    limit = largest if saturation is None and fills else saturation
    over = None if limit is None else _reach(pixels, limit)
    marks = None
    if over is not None and over.any():
        marks = np.where(over, np.uint8(SATURATED), np.uint8(0))
    if nothing is not None and nothing.any():
        marks = np.zeros(pixels.shape, np.uint8) if marks is None else marks
        marks[nothing] = MASKED
    if mask is not None and mask.any():
        pixels = pixels.copy()
        pixels[mask] = imaging.no_value(pixels.dtype)
    return marks, pixels


def _reach(pixels: Array, limit: float) -> Array | None:
    """True where a value is at least so large; None: no value of this type can be."""
    if pixels.dtype.kind in "ui":
        limit = math.ceil(limit)  # a comparison with a real number would turn all pixels into real numbers first
        info = np.iinfo(pixels.dtype)
        if limit > info.max:
            return None
        limit = max(limit, info.min)
    return np.asarray(pixels >= limit)


def _smaller_marks(marks: Array, factor: int) -> Array | None:
    """A block is saturated when one of its pixels is, masked when all are."""
    if factor == 1:
        return marks
    rows, columns = (n // factor for n in marks.shape)
    parts = [
        marks[r : rows * factor : factor, c : columns * factor : factor] for r in range(factor) for c in range(factor)
    ]
    least, most = parts[0].copy(), parts[0].copy()
    for part in parts[1:]:
        np.minimum(least, part, out=least)
        np.maximum(most, part, out=most)
    smaller = np.where(most == SATURATED, np.uint8(SATURATED), least)
    return smaller if smaller.any() else None


def plain(pixels: Array) -> Array:
    """Little-endian, of a type that every viewer knows; what has more than 32 bits becomes float32."""
    kind = f"{pixels.dtype.kind}{pixels.dtype.itemsize}"
    if kind == "b1":
        return np.ascontiguousarray(pixels).view(np.uint8)
    return np.ascontiguousarray(pixels, np.dtype(kind if kind in _PLAIN else "f4").newbyteorder("<"))


def pixel(array: Array, row: int, column: int, known: Knowledge | None = None) -> dict[str, Any]:
    """One pixel of the full image: its value (None: not a number), whether it is masked or saturated. IndexError."""
    image = flat(array)
    if not (0 <= row < image.shape[0] and 0 <= column < image.shape[1]):
        raise IndexError(f"row {row}, column {column}: the image has {image.shape[0]} x {image.shape[1]} pixels")
    value = image[row, column].item()
    marks = view(image, (row, column, row + 1, column + 1), 1, known=known).marks
    mark = 0 if marks is None else int(marks[0, 0])
    finite = value == value and value not in (float("inf"), float("-inf"))
    return {
        "row": row,
        "column": column,
        "value": value if finite else None,
        "masked": mark == MASKED,
        "saturated": mark == SATURATED,
    }


# --- colours ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=len(COLORMAPS))
def colormap(name: Colours) -> Array:
    """256 colours, red green blue."""
    import cmap  # not everybody wants pictures

    colours: Array = np.rint(cmap.Colormap(COLORMAPS[name][0]).lut(256)[:, :3] * 255).astype(np.uint8)
    colours.flags.writeable = False
    return colours


def colormaps() -> dict[str, Any]:
    """All of them, for a page: title and base64 of 256 x red green blue; and the colours of what is marked."""
    maps = {
        name: {"title": title, "colours": base64.b64encode(colormap(name).tobytes()).decode()}
        for name, (_, title) in COLORMAPS.items()
    }
    return {"maps": maps, "masked": COLOURS[MASKED], "saturated": COLOURS[SATURATED]}


def contrast(shown: View, low: float | None, high: float | None, log: bool) -> tuple[float, float]:
    """The range of values that colours are spread over: what was asked for, else all but the brightest 0.1 percent."""
    values = _values(shown)
    if values.size == 0:
        found = 0.0, 1.0
    else:
        values = values[:: max(1, values.size // SAMPLE)].astype(np.float64)
        found = float(values.min()), float(np.percentile(values, PERCENT))
    bottom, top = (found[0] if low is None else low), (found[1] if high is None else high)
    if log and bottom <= 0:
        bottom = min(1.0, top) if top > 0 else 1.0
    return bottom, max(top, bottom + (bottom if log else 1.0))


def _values(shown: View) -> Array:
    there = imaging.valid(shown.pixels)
    if shown.marks is not None:
        there = (shown.marks == 0) if there is None else there & (shown.marks == 0)
    return shown.pixels.reshape(-1) if there is None else shown.pixels[there]


def drawn(
    shown: View, colours: Colours | None = None, low: float | None = None, high: float | None = None, log: bool = False
) -> Image.Image:
    """Eight bits for the eye. Without `colours`: grey, masked pixels black."""
    low, high = (max(-EXTREME, min(EXTREME, end)) for end in contrast(shown, low, high, log))
    values = np.nan_to_num(shown.pixels.astype(np.float32), nan=low, posinf=high, neginf=low)
    with np.errstate(over="ignore"):  # infinite is as bright as the brightest
        if log:
            low = max(low, 1 / EXTREME)
            scaled = np.log(np.maximum(values, low) / low) * (255.0 / max(np.log(high / low), 1e-9))
        else:
            scaled = (values - low) * (255.0 / max(high - low, 1e-30))
    index = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if colours is None:
        if shown.marks is not None:
            index[shown.marks == MASKED] = 0
            index[shown.marks == SATURATED] = 255
        return Image.fromarray(index)
    picture = colormap(colours)[index]
    if shown.marks is not None:
        for mark, colour in COLOURS.items():
            picture[shown.marks == mark] = colour
    return Image.fromarray(picture)


# --- bytes -----------------------------------------------------------------------------------------------------------


def encode_npy(array: Array) -> bytes:
    """NumPy's own file format; never a pickle, which would let a server run code in its clients."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def encode_raw(array: Array) -> tuple[bytes, Mapping[str, str]]:
    """The pixels alone, little-endian, rows first; headers say what they are."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return array.tobytes(), {"X-Shape": ",".join(map(str, array.shape)), "X-Dtype": array.dtype.str.replace("|", "<")}


def encode_picture(picture: Image.Image, format: Literal["png", "jpeg"]) -> bytes:
    out = io.BytesIO()
    if format == "png":
        picture.save(out, "png", compress_level=1)
    else:
        picture.save(out, "jpeg", quality=90)
    return out.getvalue()


def encode_png(array: Array) -> bytes:
    """Eight-bit grey for the eye: from the lowest value to the 99.9th percentile; masked pixels and gaps are black."""
    return encode_picture(drawn(view(array)), "png")
