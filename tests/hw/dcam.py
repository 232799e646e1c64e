"""The pretended DCAM library for tests: built once, told what to do, and what its images look like."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.settings import Settings
from tangods_detector.simulators.build import build
from tangods_receiver import codecs
from tangods_receiver.protocol import Frame

FLASH, LIGHTNING, FUSION = "000123", "000456", "000789"  # serial numbers
LINE = {FLASH: 9.74436e-6, LIGHTNING: 3.188e-6, FUSION: 4.8676e-6}  # s; exposures are multiples


def exposure(serial: str, seconds: float) -> float:
    """The nearest that the camera takes."""
    return LINE[serial] * round(seconds / LINE[serial])


class Fake:
    """The library in this process; everything that was wished for is forgotten at `reset`."""

    def __init__(self) -> None:
        self.path = str(build("fake_dcam.c"))
        self._library = ctypes.CDLL(self.path)
        self._library.fake_dcam_command.restype = ctypes.c_char_p
        self._library.fake_dcam_command.argtypes = (ctypes.c_char_p,)

    def tell(self, text: str) -> str:
        answer = bytes(self._library.fake_dcam_command(text.encode())).decode()
        assert not answer.startswith("not known"), answer
        return answer

    def set(self, **knobs: float) -> None:
        for name, value in knobs.items():
            self.tell(f"set {name} {value:.17g}")

    def get(self, name: str) -> float:
        return float(self.tell(f"get {name}"))

    def reset(self) -> None:
        self.tell("reset")
        self.tell("plug")


@lru_cache
def _fake() -> Fake:
    return Fake()


@contextmanager
def fresh() -> Iterator[Fake]:
    """The library as at the beginning; AssertionError: something of it is left when the test is over."""
    fake = _fake()
    fake.reset()
    yield fake
    fake.reset()
    assert fake.get("allocated") == 0, "buffers, waits or threads of the library are left"


@contextmanager
def connected(fake: Fake, serial: str, memory: int = 64_000_000, **options: Any) -> Iterator[Hamamatsu]:
    backend = Hamamatsu(HamamatsuOptions(fake.path, serial, memory=memory, **options))
    try:
        backend.connect()
        yield backend
    finally:
        backend.close()


def small(serial: str, **more: Any) -> Settings:
    return Settings(exposure(serial, 0.002), n_frames_per_trigger=5, roi=(64, 32, 128, 64), **more)


def code(name: int) -> float:
    """An error as the library returns it: negative."""
    return float(name - (1 << 32))


def expected(shape: tuple[int, int], bits: int, number: int) -> np.ndarray[Any, Any]:
    """The image with this number. `bits` 8: uint8; 12 and 16: values of 12 bits."""
    mask, width = (255, 8) if bits == 8 else (4095, 12)
    image = 4 * np.arange(shape[0], dtype=np.uint16)[:, None] + np.arange(shape[1], dtype=np.uint16)
    image &= np.uint16(mask)
    image[:, :4] = [number >> width * k & mask for k in range(4)]
    return image.astype(np.uint8 if bits == 8 else np.uint16, copy=False)


def pixels(frame: Frame) -> np.ndarray[Any, Any]:
    """As the receiver decodes them."""
    return codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype)


def number_in(image: np.ndarray[Any, Any]) -> int:
    """Of the exposure that it is of; AssertionError: it is of several."""
    width = 8 if image.dtype == np.uint8 else 12
    tags = image[:, :4].astype(np.uint64)
    assert (tags == tags[0]).all(), f"rows of several images: {tags[0]} to {tags[-1]}"
    return sum(int(tag) << width * k for k, tag in enumerate(tags[0]))
