"""Hamamatsu cameras by the pretended library: the contract, every pixel, settings with the camera's own limits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tangods_detector.hw.base import Backend, Phase
from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.settings import Settings
from tests.contract import BackendContract, Listener, wait_for
from tests.hw.dcam import FLASH, FUSION, LIGHTNING, Fake, exposure

MEMORY = 64_000_000


@pytest.fixture(scope="module")
def fake() -> Fake:
    return Fake()


@pytest.fixture(autouse=True)
def as_at_the_beginning(fake: Fake) -> Iterator[None]:
    fake.reset()
    yield
    fake.reset()
    assert fake.get("allocated") == 0, "buffers, waits or threads of the library are left"


def connected(fake: Fake, serial: str, **options: Any) -> Hamamatsu:
    backend = Hamamatsu(HamamatsuOptions(fake.path, serial, buffer_bytes=MEMORY, **options))
    backend.connect()
    return backend


class CameraContract(BackendContract):
    """For all models."""

    serial: ClassVar[str]
    longest: ClassVar[float]

    @pytest.fixture
    def backend(self, fake: Fake) -> Iterator[Hamamatsu]:
        backend = connected(fake, self.serial)
        self.fake = fake
        yield backend
        backend.close()

    def fire(self, backend: Backend) -> None:
        self.fake.tell("edge 1")

    def test_stop_breaks_off_a_long_exposure(self, backend: Backend, listener: Listener) -> None:
        """As long as the camera can."""
        self.ready(backend, exposure_time=self.longest)
        backend.start()
        wait_for("the exposure", lambda: self.status(backend, listener).phase is Phase.ACQUIRING)
        begun = time.monotonic()
        backend.stop()
        assert time.monotonic() - begun < 2
        assert backend.status().phase in (Phase.IDLE, Phase.DONE)


def small(serial: str) -> Settings:
    return Settings(exposure(serial, 0.002), n_frames_per_trigger=5, roi=(64, 32, 128, 64))


class TestFlash(CameraContract):
    serial, longest, settings = FLASH, 9.0, small(FLASH)


class TestLightning(CameraContract):
    serial, longest, settings = LIGHTNING, 1.7, small(LIGHTNING)


class TestFusion(CameraContract):
    serial, longest, settings = FUSION, 9.0, small(FUSION)
