"""The Lambda against a simulated xspd: the contract, and what it does not ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tangods_detector.hw.base import Backend, Phase
from tangods_detector.hw.lambda_control import UnitOrders
from tangods_detector.hw.lambda_geometry import full_shape, told
from tangods_detector.hw.lambda_system import Module
from tangods_detector.hw.lambda_unit import Unit, UnitOptions
from tangods_detector.hw.lambda_units import LambdaOptions
from tangods_detector.hw.lambda_xspd import LambdaXspd
from tangods_detector.hw.lambda_xspd import XspdOptions as SystemOptions
from tangods_detector.hw.xlambda import XLambda
from tangods_detector.options import parse_options
from tangods_detector.orders import Control
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.simulators.xspd import Failures, XspdOptions, XspdSimulator, layouts
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.geometry import from_metadata, index_map
from tangods_receiver.protocol import SeriesStart
from tests.contract import BackendContract, Listener, wait_for
from tests.hw import fake_lambda

CHIP = 16
LIMIT = 30.0  # s


def parameter(backend: XLambda, name: str) -> Any:
    return next(p for p in backend.parameters if p.name == name).get(backend)


def write(backend: XLambda, name: str, given: Any) -> Any:
    """Set a parameter, and what it reads then."""
    p = next(p for p in backend.parameters if p.name == name)
    assert p.set is not None
    p.set(backend, given)
    return p.get(backend)


def connected(xspd: XspdSimulator, **options: Any) -> XLambda:
    backend = XLambda(LambdaOptions(xspd=xspd.address, port=0, **{"ready_limit": 5.0, **options}))
    backend.connect()
    return backend


class TestOneModule(BackendContract):
    """In 24 bit, where each edge is a frame."""

    settings = Settings(exposure_time=0.002, n_triggers=1, n_frames_per_trigger=5, bit_depth=24)

    @pytest.fixture
    def xspd(self) -> Iterator[XspdSimulator]:
        with XspdSimulator(XspdOptions(chip=CHIP, max_frames=200_000)) as xspd:
            yield xspd

    @pytest.fixture
    def backend(self, xspd: XspdSimulator) -> Iterator[XLambda]:
        self.xspd = xspd
        backend = connected(xspd)
        write(backend, "Energy", 12000.0)
        yield backend
        backend.close()

    def fire(self, backend: Backend) -> None:
        self.xspd.edge()


# --- modules to an image ---------------------------------------------------------------------------------------------


def acquired(backend: XLambda, n: int, **changes: Any) -> tuple[SeriesStart, dict[tuple[int, int], np.ndarray]]:
    """The start message and the pixels of each (frame, module) of a series."""
    series = Series(1, backend.configure(Settings(exposure_time=0.002, n_frames_per_trigger=n, **changes)))
    backend.check(series.settings)
    with Listener(backend.endpoints()) as listener:
        backend.arm(series)
        backend.start()
        wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), LIMIT)
        backend.stop()
        wait_for("the end messages", lambda: ends(listener) == len(backend.endpoints()), LIMIT)
        frames = {(f.number, f.module): np.frombuffer(f.data, f.dtype).reshape(f.shape) for f in listener.frames()}
        start = next(m for m in listener.messages if isinstance(m, SeriesStart))
    return start, frames


def ends(listener: Listener) -> int:
    return sum(type(message).__name__ == "SeriesEnd" for message in list(listener.messages))


@pytest.mark.parametrize("layout", ["windmill", "ten"])
def test_modules_make_the_image_that_was_drawn(layout: Any) -> None:
    with XspdSimulator(XspdOptions(layout=layout, chip=CHIP)) as xspd, closing(connected(xspd)) as backend:
        write(backend, "Threshold", 6000.0)
        start, frames = acquired(backend, 3)
        drawing = xspd.unit._drawing
        assert drawing is not None
        modules = len(drawing.places)
        assert start.modules == modules and sorted(frames) == [(n, m) for n in range(3) for m in range(modules)]
        geometry = from_metadata(start.metadata, modules)
        assert geometry is not None and geometry.full_shape == backend.image_format(Settings())[0]
        where = index_map(geometry, drawing.shape)
        for number in range(3):
            pixels = np.concatenate([frames[number, m].ravel() for m in range(modules)] + [np.zeros(1, np.uint16)])
            np.testing.assert_array_equal(pixels[where], drawing.whole(number))


def test_the_whole_image_by_one_port() -> None:
    with XspdSimulator(XspdOptions(layout="square", chip=CHIP, ports="combined")) as xspd:
        with closing(connected(xspd)) as backend:
            write(backend, "Threshold", 6000.0)
            start, frames = acquired(backend, 3)
            assert start.modules == 1 and "x" not in start.metadata
            assert xspd.unit._drawing is not None
            for number in range(3):
                np.testing.assert_array_equal(frames[number, 0], xspd.unit._drawing.whole(number))


def test_positions_in_the_words_of_the_start_message() -> None:
    a, b = Module("lambda/1", (10, 30), 0, 5), Module("lambda/2", (10, 30), 40.5, 0, 90)
    assert told([a]) == {} and full_shape([a]) == (10, 30)
    said = told([a, b])
    assert (said["x"], said["y"], said["rotation"], said["full_shape"]) == ([0, 40.5], [5, 0], [0, 90], [30, 51])
    assert told([a, b], clockwise=True)["rotation"] == [0, 270]
    assert "full_shape" not in told([a, b], about="corner")
    assert full_shape([a, Module("lambda/2", (10, 30), rotation=45)]) is None


@pytest.mark.parametrize("compressor", ["zlib", "blosc/lz4"])
def test_compressed_frames_are_unpacked(compressor: str) -> None:
    with XspdSimulator(XspdOptions(chip=CHIP)) as xspd:
        put(xspd, "lambda/compressor", compressor)
        with closing(connected(xspd)) as backend:
            write(backend, "Threshold", 6000.0)
            _, frames = acquired(backend, 3)
            assert xspd.unit._drawing is not None
            assert [layouts.stamped(frames[n, 0]) for n in range(3)] == [(1, n, 0) for n in range(3)]
            np.testing.assert_array_equal(frames[2, 0], xspd.unit._drawing.module(0, 2))


def test_through_libxsp(tmp_path: Path) -> None:
    path = fake_lambda.library()
    fake = fake_lambda.Fake(path)
    options = LambdaOptions(libxsp=str(path), config=fake_lambda.config(tmp_path), port=0)
    with closing(XLambda(options)) as backend:
        backend.connect()
        assert backend.max_frames == 2000
        write(backend, "Energy", 12000.0)
        _, frames = acquired(backend, 4)
        assert sorted(frames) == [(n, m) for n in range(4) for m in range(2)]
        for (number, module), pixels in frames.items():
            np.testing.assert_array_equal(pixels, fake_lambda.image(module, number + 1))
        edges = threading.Timer(1.0, fake.edges, (2,))
        edges.start()
        _, frames = acquired(backend, 2, n_triggers=2, trigger_mode=TriggerMode.EXTERNAL_MULTI)
        edges.join()
        assert len(frames) == 8


def put(xspd: XspdSimulator, path: str, value: str) -> None:
    """By somebody else."""
    url = f"http://{xspd.address}/api/v1/devices/lambda01/variables"
    httpx.put(url, params={"path": path, "value": value}).raise_for_status()


def value(xspd: XspdSimulator, path: str) -> Any:
    return xspd.unit.read(path)


# --- several units ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_units() -> Iterator[tuple[list[XspdSimulator], list[str]]]:
    """Modules 1 and 2 here, 3 and 4 there; where their orders are taken."""
    with ExitStack() as stack:
        xspds, orders = [], []
        for first, modules in ((0, "1-2"), (2, "3-4")):
            xspds.append(stack.enter_context(XspdSimulator(XspdOptions("square", modules, chip=CHIP))))
            system = LambdaXspd(SystemOptions(xspds[-1].address))
            unit = stack.enter_context(Unit(system, UnitOptions(port=0, first=first, start=1.0)))
            orders.append(stack.enter_context(Control(UnitOrders(unit), "127.0.0.1", 0)).endpoint)
        yield xspds, orders


def test_two_units_are_one_detector(two_units: tuple[list[XspdSimulator], list[str]]) -> None:
    xspds, orders = two_units
    backend = XLambda(LambdaOptions(units=(orders[1], orders[0])))
    with closing(backend):
        info = backend.connect()
        assert (info.model, info.shape) == ("X-Spectrum Lambda, 4 modules", (80, 237))
        assert len(backend.endpoints()) == 4
        write(backend, "Energy", 12000.0)
        assert [value(xspd, "lambda/thresholds") for xspd in xspds] == [[6.0], [6.0]]
        _, frames = acquired(backend, 4)
        assert sorted(frames) == [(n, m) for n in range(4) for m in range(4)]
        assert {layouts.stamped(frames[k])[:2] for k in frames} == {(m + 1, n) for n, m in frames}
        xspds[1].fail(Failures(start_ignored=1))
        with Listener(backend.endpoints()):
            backend.arm(Series(2, backend.configure(Settings())))
            with pytest.raises(HardwareError, match="ignored"):
                backend.start()
            backend.stop()
        assert {value(xspd, "lambda/status") for xspd in xspds} == {"ready"}


def test_units_that_do_not_make_one_detector(two_units: tuple[list[XspdSimulator], list[str]]) -> None:
    _, orders = two_units
    with closing(XLambda(LambdaOptions(units=(orders[1],)))) as backend:
        with pytest.raises(HardwareError, match="modules 2, 3, not 0 to 1"):
            backend.connect()
        assert backend.status().phase is Phase.IDLE and backend.endpoints() == []
        for act in (backend.stop, backend.close, backend.start):
            act()
        with pytest.raises(HardwareError, match="not connected"):
            backend.configure(Settings())


def test_nobody_there() -> None:
    backend = XLambda(LambdaOptions(units=("tcp://127.0.0.1:1",), timeout=0.2))
    with closing(backend), pytest.raises(HardwareError, match="does stream-lambda run"):
        backend.connect()
    with closing(XLambda(LambdaOptions(xspd="127.0.0.1:1", port=0))) as alone:
        with pytest.raises(HardwareError, match="refused"):
            alone.connect()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def xspd() -> Iterator[XspdSimulator]:
    with XspdSimulator(XspdOptions(chip=CHIP, sensor="CdTe")) as xspd:
        yield xspd


@pytest.fixture
def backend(xspd: XspdSimulator) -> Iterator[XLambda]:
    with closing(connected(xspd, readout_time=0.005)) as backend:
        yield backend


def test_without_a_threshold_arm_is_refused(xspd: XspdSimulator, backend: XLambda) -> None:
    settings = backend.configure(Settings())
    with pytest.raises(ConfigError, match="no threshold is set"):
        backend.check(settings)
    assert write(backend, "Energy", 12400.0) == 12400.0
    assert (parameter(backend, "Threshold"), parameter(backend, "Thresholds")) == (6200.0, "6200")
    backend.check(settings)
    assert write(backend, "Thresholds", "4000, 8000") == "4000, 8000"
    write(backend, "Energy", 20000.0)
    assert parameter(backend, "Thresholds") == "4000, 8000", "only a single one follows the energy"
    for wrong in ("8000, 4000", "abc", "", "-1"):
        with pytest.raises(ConfigError, match="Thresholds"):
            write(backend, "Thresholds", wrong)


def test_what_was_set_is_set_again_after_a_restart(xspd: XspdSimulator, backend: XLambda) -> None:
    write(backend, "Energy", 12000.0)
    xspd.fail(Failures(restart=True, restart_seconds=0.1))
    wait_for("its return", lambda: value(xspd, "lambda/status") == "ready")
    settings = backend.configure(Settings(exposure_time=0.001, n_frames_per_trigger=2))
    backend.check(settings)
    _, frames = acquired(backend, 2)
    assert len(frames) == 2 and value(xspd, "lambda/thresholds") == [6.0]


def test_modules_that_stay_behind_are_initialised_or_named(xspd: XspdSimulator) -> None:
    xspd.fail(Failures(restart=True, restart_seconds=2.0))
    backend = XLambda(LambdaOptions(xspd=xspd.address, port=0, initialize_limit=0.5))
    with closing(backend):
        backend.connect()  # `reset` takes 0.05 s here
        xspd.fail(Failures(never_ready=[1]))
        wait_for("the loss", lambda: backend.status().phase is Phase.ERROR, LIMIT)
        assert "lambda/1 is not ready" in backend.status().message
        with pytest.raises(HardwareError, match="lambda/1 is not ready, 0.5 s after it was initialised"):
            backend.connect()


def test_sizes_follow_settings(xspd: XspdSimulator, backend: XLambda) -> None:
    settings = backend.configure(Settings())
    assert backend.image_format(settings) == ((36, 116), "uint16")
    assert write(backend, "Interpolation", False) is False
    assert backend.image_format(settings)[0] == (32, 96)
    assert write(backend, "RoiRows", 8) == 8
    for depth, dtype in ((1, "uint8"), (6, "uint8"), (24, "uint32")):
        settings = backend.configure(Settings(bit_depth=depth))
        assert backend.image_format(settings) == ((16, 96), dtype)
        assert backend.frame_bytes(settings) == 16 * 96 * np.dtype(dtype).itemsize
    assert backend.latency_time(settings) == 0.005
    with pytest.raises(ConfigError, match="RoiRows: .*400 .*17"):
        write(backend, "RoiRows", 17)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(n_triggers=100, n_frames_per_trigger=100), "10000 exposures of one start; .*6930"),
        (Settings(trigger_mode=TriggerMode.EXTERNAL_MULTI, n_frames_per_trigger=2), "one frame a trigger"),
    ],
)
def test_what_does_not_go_together_is_refused_at_arm(backend: XLambda, settings: Settings, words: str) -> None:
    write(backend, "Threshold", 6000.0)
    accepted = backend.configure(settings)
    with pytest.raises(ConfigError, match=words):
        backend.check(accepted)
    backend.check(backend.configure(Settings(trigger_mode=TriggerMode.SOFTWARE, n_triggers=100)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(frame_time=2.0), "FrameTime: 2 s; .*every 0.1 s"),
        (Settings(rotation=90), "let the receiver turn them"),
        (Settings(roi=(0, 0, 10, 10)), "RoiRows"),
        (Settings(binning=(2, 2)), "Binning: 2 x 2"),
        (Settings(exposure_time=1e6), "ExposureTime: .*400"),
    ],
)
def test_what_it_cannot_do(backend: XLambda, settings: Settings, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        backend.configure(settings)


def test_a_frame_time_that_is_as_it_is_is_taken(backend: XLambda) -> None:
    assert backend.configure(Settings(exposure_time=0.01, frame_time=0.015, bit_depth=24)).frame_time == 0.015
    assert backend.configure(Settings(exposure_time=0.1, frame_time=0.01)).frame_time == 0.01, "Arm refuses that"


def test_arm_waits_for_the_high_voltage(xspd: XspdSimulator, backend: XLambda) -> None:
    write(backend, "Threshold", 6000.0)
    assert write(backend, "HighVoltage", 280.0) == 280.0
    settings = backend.configure(Settings(exposure_time=0.001))
    xspd.fail(Failures(voltage_seconds=1.5))
    begun = time.monotonic()
    with Listener(backend.endpoints()):
        backend.arm(Series(1, settings))
        assert time.monotonic() - begun > 1.0
        backend.stop()


def test_what_others_set_by_hand_is_set_right_at_arm(xspd: XspdSimulator, backend: XLambda) -> None:
    write(backend, "Threshold", 6000.0)
    settings = backend.configure(Settings(exposure_time=0.002, n_frames_per_trigger=3))
    for path, wrong in (("trigger_mode", "EXT_FRAMES"), ("n_frames", "77"), ("bit_depth", "24"), ("shutter_time", "9")):
        put(xspd, f"lambda/{path}", wrong)
    with Listener(backend.endpoints()) as listener:
        backend.arm(Series(1, settings))
        now = [value(xspd, f"lambda/{name}") for name in ("trigger_mode", "n_frames", "bit_depth", "shutter_time")]
        assert now == ["SOFTWARE", 3, 12, 2.0]
        backend.start()
        wait_for("the frames", lambda: len(listener.frames()) == 3, LIMIT)
        backend.stop()


def test_nothing_is_turned_in_a_series(backend: XLambda) -> None:
    write(backend, "Threshold", 6000.0)
    settings = backend.configure(Settings(exposure_time=60.0))
    with Listener(backend.endpoints()):
        backend.arm(Series(1, settings))
        for name, given in (("Energy", 9000.0), ("HighVoltage", 100.0), ("RoiRows", 4)):
            with pytest.raises(ConfigError, match=f"{name}: not while a series is armed"):
                write(backend, name, given)
        assert parameter(backend, "ModuleStates") in ("ready", "busy")
        backend.stop()


def test_all_wrong_options_in_one_message() -> None:
    lines = ["units = dcu1", "timeout = 0", "ready_limit = -1", "port = 70000", "xspd = dcu2", "readout_time = -1"]
    with pytest.raises(ConfigError) as caught:
        parse_options(LambdaOptions, lines)
    assert all(
        word in str(caught.value) for word in ("units and xspd", "dcu1", "timeout", "ready_limit", "port", "read")
    )
    with pytest.raises(ConfigError, match="give one of units, xspd and libxsp"):
        parse_options(LambdaOptions, [])
    with pytest.raises(ConfigError, match="given twice"):
        LambdaOptions(units=("tcp://a:9009", "tcp://a:9009"))
    assert parse_options(LambdaOptions, ["units = tcp://a:9009, tcp://b:9009"]).units == (
        "tcp://a:9009",
        "tcp://b:9009",
    )


def test_a_stop_need_not_wait_for_arm(xspd: XspdSimulator, backend: XLambda) -> None:
    write(backend, "Threshold", 6000.0)
    settings, over = backend.configure(Settings()), threading.Event()

    def stopper() -> None:
        """Again and again, as the acquisition does."""
        while not over.wait(0.3):
            backend.stop()

    thread = threading.Thread(target=stopper)
    thread.start()
    try:
        with pytest.raises(HardwareError, match="stopped"):
            backend.arm(Series(1, settings))  # nobody is there who takes the start message
    finally:
        over.set()
        thread.join()
    _, frames = acquired(backend, 2)
    assert len(frames) == 2
