"""Andor cameras by the pretended SDK: the contract, what is sent, what is lost, settings, and every fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tangods_detector.hw.andor import Andor
from tangods_detector.hw.andor_settings import MODES, AndorOptions
from tangods_detector.hw.base import Backend
from tangods_detector.settings import Settings, TriggerMode
from tangods_detector.simulators import andor as simulator
from tangods_receiver import codecs
from tangods_receiver.errors import ConfigError
from tangods_receiver.protocol import Frame
from tests.contract import BackendContract, Listener
from tests.hw.andor_library import Fake, expected_image

MEMORY = 40_000_000
WITHOUT = ("marana", "sona")  # all the trigger modes there are


def pixels(frame: Frame) -> np.ndarray:
    return codecs.decompress(frame.codec, frame.data, frame.shape, frame.dtype)


class AndorContract(BackendContract):
    """Of one model; every image that comes in any of these tests is compared pixel by pixel."""

    model: ClassVar[str]
    lines: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture(scope="class")
    @classmethod
    def library(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return simulator.make(tmp_path_factory.mktemp("andor"), [f"{cls.model} SN-1"], cls.lines)

    @pytest.fixture
    def fake(self, library: Path) -> Fake:
        return Fake(library)

    @pytest.fixture
    def backend(self, fake: Fake) -> Iterator[Andor]:
        backend = Andor(AndorOptions(library=fake.path, memory=MEMORY))
        backend.connect()
        yield backend
        backend.close()

    @pytest.fixture(autouse=True)
    def _fake(self, fake: Fake) -> None:
        self.fake = fake

    def fire(self, backend: Backend) -> None:
        self.fake.tell("edge 1")

    def finish(self, backend: Backend, listener: object) -> None:
        super().finish(backend, listener)  # type: ignore[arg-type]
        assert isinstance(backend, Andor)
        for frame in listener.frames(self.series.id):  # type: ignore[attr-defined]
            settings = self.series.settings
            image = expected_image(frame.number, settings, backend.sensor_shape, settings.bit_depth)
            np.testing.assert_array_equal(pixels(frame), image)

    @pytest.mark.parametrize("mode", [m for m in TriggerMode if m.value.startswith("EXTERNAL")])
    def test_external_triggers(self, backend: Backend, listener: Listener, mode: TriggerMode) -> None:
        assert isinstance(backend, Andor)
        if MODES[mode] in backend.camera.choices("TriggerMode"):
            super().test_external_triggers(backend, listener, mode)
        else:
            assert self.model in WITHOUT
            with pytest.raises(ConfigError, match=f"this camera has no {mode.value} .* can be INTERNAL, SOFTWARE, EXT"):
                self.ready(backend, trigger_mode=mode, n_triggers=3, n_frames_per_trigger=1)


class TestZyla(AndorContract):
    model = "zyla"
    lines = ("padding 64",)
    settings = Settings(exposure_time=200 * 9.25e-6, n_frames_per_trigger=5, roi=(100, 200, 260, 128))


class TestBalor(AndorContract):
    model = "balor"
    settings = Settings(exposure_time=200 * 9.0e-6, n_frames_per_trigger=5, roi=(96, 200, 256, 128), binning=(2, 2))


class TestMarana(AndorContract):
    """Regions in steps, its gain is GainMode, the target temperature can be set; no External Start."""

    model = "marana"
    settings = Settings(exposure_time=200 * 20e-6, n_frames_per_trigger=5, roi=(100, 200, 256, 128))


class TestSona(AndorContract):
    """One readout rate, gains of another name; neither External Start nor External Exposure."""

    model = "sona"
    settings = Settings(exposure_time=200 * 20e-6, n_frames_per_trigger=5, roi=(100, 200, 256, 128), bit_depth=12)
