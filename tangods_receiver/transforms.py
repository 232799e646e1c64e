"""What is done to a frame between the socket and the file: ordered functions Frame -> Frame, chosen once a series."""

from __future__ import annotations

from collections.abc import Callable

from tangods_receiver import codecs
from tangods_receiver.errors import StreamError
from tangods_receiver.protocol import Frame

Transform = Callable[[Frame], Frame]

STORED = {"none": ("none", None), "bslz4": ("bslz4", None), "cbf": ("none", "int32")}  # what each codec becomes


def stored(codec: str, dtype: str) -> tuple[str, str]:
    """Codec and type in the file of what arrives as `codec` and `dtype`."""
    becomes, fixed = STORED[codec]
    return becomes, fixed or dtype


def decode_cbf(frame: Frame) -> Frame:
    """A CBF cannot be a chunk of HDF5: its pixels are stored as plain int32. StreamError: damaged data."""
    if frame.more:
        raise StreamError(f"image {frame.number}: cbf in several parts")
    try:
        pixels = codecs.decompress("cbf", frame.data, frame.shape, frame.dtype)
    except StreamError as exc:
        raise StreamError(f"image {frame.number}: {exc}") from exc
    return frame._replace(codec="none", dtype="int32", data=pixels.data.cast("B"))


NEEDED: dict[str, tuple[Transform, ...]] = {"cbf": (decode_cbf,)}


def apply(frame: Frame) -> Frame:
    """Everything that this frame needs; most need nothing."""
    for transform in NEEDED.get(frame.codec, ()):
        frame = transform(frame)
    return frame
