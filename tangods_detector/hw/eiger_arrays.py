"""Arrays of a control unit: SIMPLON's `__darray__`, TIFF; pixel masks and flat fields as files (.npy, .tif)."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tangods_receiver.errors import ConfigError, HardwareError

MARK = "__darray__"
SUFFIXES = (".npy", ".tif", ".tiff")


def to_json(array: NDArray[Any], dtype: str) -> dict[str, Any]:
    """What a PUT wants: rows first, little-endian."""
    plain = np.ascontiguousarray(array, np.dtype(dtype))
    return {
        MARK: [1, 0, 0],
        "type": dtype,
        "shape": list(plain.shape),
        "filters": ["base64"],
        "data": base64.b64encode(plain.tobytes()).decode(),
    }


def from_json(value: Any) -> NDArray[Any]:
    """HardwareError: that is no array."""
    try:
        if MARK not in value or value["filters"] != ["base64"]:
            raise ValueError("no __darray__ in base64")
        return np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["type"])).reshape(value["shape"])
    except (KeyError, TypeError, ValueError, binascii.Error) as exc:
        raise HardwareError(f"the array of the control unit makes no sense: {exc}") from exc


def from_tiff(data: bytes) -> NDArray[Any]:
    """Counts, rows x columns. HardwareError: that is no image."""
    try:
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            array = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, struct.error, Image.DecompressionBombError) as exc:
        raise HardwareError(f"the image of the control unit makes no sense: {exc}") from exc
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise HardwareError(f"the image of the control unit makes no sense: {array.shape}, {array.dtype}")
    return array.view(np.uint32) if array.dtype == np.int32 else array  # what Pillow makes of 32 bits without sign


def load(path: str) -> NDArray[Any]:
    """Of a file, rows x columns. ConfigError."""
    try:
        if _suffix(path) == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                array = np.asarray(image)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    if array.ndim != 2:
        raise ConfigError(f"{path}: {array.ndim} dimensions; rows and columns are wanted")
    return array


def save(path: str, array: NDArray[Any]) -> None:
    """ConfigError."""
    try:
        if _suffix(path) == ".npy":
            np.save(path, array)
        else:
            signed = array.astype(np.int32) if array.dtype == np.uint32 else array  # what Pillow's TIFF can hold
            Image.fromarray(signed).save(path)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path!r}: the name must end in {', '.join(SUFFIXES)}")
    return suffix
