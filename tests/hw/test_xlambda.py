"""The Lambda against a simulated xspd: the contract, in one process and with a unit's process beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tangods_detector.hw.base import Backend
from tangods_detector.hw.lambda_client import LambdaUnit, UnitOptions
from tangods_detector.hw.lambda_units import LambdaOptions
from tangods_detector.hw.xlambda import XLambda
from tangods_detector.settings import Settings
from tangods_detector.simulators.xspd import XspdOptions, XspdSimulator
from tests.contract import BackendContract

CHIP = 16


def write(backend: XLambda, name: str, given: Any) -> Any:
    """Set a parameter, and what it reads then."""
    p = next(p for p in backend.parameters if p.name == name)
    assert p.set is not None
    p.set(backend, given)
    return p.get(backend)


class LambdaContract(BackendContract):
    """In 24 bit, where an edge is a frame."""

    settings = Settings(exposure_time=0.002, n_triggers=1, n_frames_per_trigger=5, bit_depth=24)
    ports: ClassVar[Any] = "modules"

    @pytest.fixture
    def xspd(self) -> Iterator[XspdSimulator]:
        with XspdSimulator(XspdOptions(chip=CHIP, max_frames=200_000, ports=self.ports, readout=0.0005)) as xspd:
            yield xspd

    @pytest.fixture
    def backend(self, xspd: XspdSimulator) -> Iterator[XLambda]:
        self.xspd = xspd
        backend = XLambda(LambdaOptions(xspd=xspd.address, port=0))
        backend.connect()
        write(backend, "Energy", 12000.0)
        yield backend
        backend.close()

    def fire(self, backend: Backend) -> None:
        self.xspd.edge()


class TestOneModule(LambdaContract):
    pass


class TestTheWholeImageByOnePort(LambdaContract):
    ports: ClassVar[Any] = "combined"
