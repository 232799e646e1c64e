"""Andor cameras when something goes wrong: every fault that the pretended SDK can have, and the series after it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from tangods_detector.hw.andor import Andor
from tangods_detector.hw.andor_frames import Losses
from tangods_detector.hw.andor_settings import AndorOptions
from tangods_detector.hw.base import Phase
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_detector.simulators import andor as simulator
from tangods_receiver import codecs
from tangods_receiver.errors import ConfigError, HardwareError
from tangods_receiver.protocol import Frame, stins
from tests.contract import Listener, wait_for
from tests.hw.andor_library import Fake, numbers_in

ROW = 9.25e-6  # s
GOOD = Settings(exposure_time=100 * ROW, n_frames_per_trigger=10, roi=(0, 0, 128, 64))
LIMIT = 30.0  # s for what must come
SLOTS = 100  # for small frames; a frame of 205 kB has 9 in MEMORY
MEMORY = 2_000_000


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulator.make(tmp_path_factory.mktemp("andor"), ["zyla SN-1", "balor SN-2"], ["ramp 0.05"])


@pytest.fixture
def fake(library: Path) -> Iterator[Fake]:
    fake = Fake(library)
    yield fake
    fake.tell("calm", "ramp 0.05")


def options(fake: Fake, **more: Any) -> AndorOptions:
    return AndorOptions(**{"library": fake.path, "memory": MEMORY, "buffers": SLOTS} | more)


@pytest.fixture
def large_backend(fake: Fake) -> Iterator[Andor]:
    """With more memory than the sockets have."""
    backend = Andor(options(fake, memory=30_000_000, buffers=64))
    backend.connect()
    yield backend
    backend.close()


@pytest.fixture
def backend(fake: Fake) -> Iterator[Andor]:
    backend = Andor(options(fake))
    backend.connect()
    yield backend
    backend.close()


@pytest.fixture
def listener(backend: Andor) -> Iterator[Listener]:
    with Listener(backend.endpoints()) as listener:
        yield listener


def armed(backend: Andor, number: int = 1, live: bool = False, **changes: Any) -> Series:
    series = Series(number, backend.configure(replace(GOOD, **changes)), live=live)
    backend.arm(series)
    return series


def done(backend: Andor) -> str:
    """The message when the series is over."""
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), LIMIT)
    return backend.status().message


def good_series(backend: Andor, fake: Fake, listener: Listener | None = None) -> None:
    """Whatever happened before. Two listeners would share the frames."""
    fake.tell("calm")
    number = 99
    with ExitStack() as stack:
        listener = listener or stack.enter_context(Listener(backend.endpoints()))
        armed(backend, number)
        backend.start()
        assert done(backend) == ""
        assert backend.status() == replace(backend.status(), phase=Phase.DONE, frames=10)
        backend.stop()
        wait_for("the end message", lambda: listener.ended(number), LIMIT)
        assert [f.number for f in listener.frames(number)] == list(range(10)) == tags(listener.frames(number))


def tags(frames: list[Frame]) -> list[int]:
    return numbers_in([codecs.decompress(f.codec, f.data, f.shape, f.dtype) for f in frames])  # type: ignore[arg-type]


# --- the library and the camera --------------------------------------------------------------------------------------


def test_no_library() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/libatcore.so.* is not Andor's SDK3: .*cannot open"):
        Andor(AndorOptions(library="/nowhere/libatcore.so"))
    with pytest.raises(ConfigError, match="libc.so.6.*AT_InitialiseLibrary"):
        Andor(AndorOptions(library="libc.so.6"))


def test_only_the_cameras_that_the_sdk_makes_up(tmp_path: Path) -> None:
    """And the one that is switched on later is found."""
    library = simulator.make(tmp_path, [])
    backend = Andor(AndorOptions(library=str(library), memory=2_000_000))
    with pytest.raises(HardwareError, match="no camera; the SDK finds none"):
        backend.connect()
    assert backend.status().phase is Phase.IDLE
    simulator.make(tmp_path, ["marana M-1"])
    assert backend.connect().serial_number == "M-1"
    backend.close()


def test_the_camera_is_found_by_its_number(fake: Fake) -> None:
    with pytest.raises(HardwareError, match="serial number SN-3; found: ZYLA-5.5-CL10 SN-1, BALOR-X-17F12 SN-2"):
        Andor(options(fake, serial_number="SN-3")).connect()
    both = [Andor(options(fake, serial_number=number)) for number in ("SN-2", "SN-1")]
    try:
        assert [backend.connect().shape for backend in both] == [(4104, 4128), (2160, 2560)]
        with pytest.raises(HardwareError, match="no camera; found: one that another program has, one that another"):
            Andor(options(fake)).connect()
        for backend in both:
            good_series(backend, fake)
    finally:
        for backend in both:
            backend.close()
    fake.tell("busy SN-1")
    backend = Andor(options(fake))
    assert backend.connect().serial_number == "SN-2"
    backend.close()


def test_unplugged_while_idle(backend: Andor, fake: Fake) -> None:
    fake.tell("unplug")
    with pytest.raises(HardwareError, match=r"CameraAcquiring: CONNECTION \(10\): .*cable"):
        wait_for("its loss", lambda: backend.status() and False)
    backend.close()
    with pytest.raises(HardwareError, match="no camera"):
        backend.connect()
    fake.tell("plug")
    backend.connect()
    good_series(backend, fake)


@pytest.mark.parametrize("how", ["unplug", "unplug quiet"])
def test_unplugged_in_a_series(backend: Andor, fake: Fake, listener: Listener, how: str) -> None:
    armed(backend, n_frames_per_trigger=100_000)
    backend.start()
    wait_for("frames", lambda: backend.status().frames > 20)
    fake.tell(how)
    assert "CONNECTION (10)" in done(backend)
    backend.stop()
    with pytest.raises(HardwareError, match="no camera"):
        backend.connect()
    fake.tell("plug")
    backend.connect()
    good_series(backend, fake, listener)


def test_what_was_turned_is_turned_again_after_the_camera_was_away(backend: Andor) -> None:
    named = {p.name: p for p in backend.parameters}
    chosen = {"ShutterMode": "Global", "Gain": "12-bit (low noise)", "SpuriousNoiseFilter": False, "Cooling": True}
    for name, value in chosen.items():
        named[name].set(backend, value)  # type: ignore[misc]
    backend.connect()  # the library begins anew, and its camera with it
    assert {name: named[name].get(backend) for name in chosen} == chosen


# --- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [TriggerMode.INTERNAL, TriggerMode.EXTERNAL_SINGLE, TriggerMode.SOFTWARE])
def test_no_frame_comes_any_more(backend: Andor, fake: Fake, listener: Listener, mode: TriggerMode) -> None:
    backend._pump._options = options(fake, frame_timeout=0.3)  # type: ignore[union-attr]
    armed(backend, n_frames_per_trigger=1_000_000, trigger_mode=mode)
    backend.start()
    fake.tell("edge 1")
    if mode is TriggerMode.SOFTWARE:
        backend.trigger()
    wait_for("a frame", lambda: backend.status().frames > 0)
    fake.tell("silent 1")
    assert "the camera gave no frame for 0.3" in done(backend)
    backend.stop()
    backend.connect()
    good_series(backend, fake, listener)


def test_edges_may_take_their_time(backend: Andor, fake: Fake, listener: Listener) -> None:
    for mode in (TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE, TriggerMode.SOFTWARE):
        armed(backend, n_triggers=2, n_frames_per_trigger=1, trigger_mode=mode)
        backend.start()
        time.sleep(0.5)  # longer than frame_timeout
        assert backend.status().phase is Phase.ACQUIRING
        backend.stop()
        assert backend.status().phase is Phase.IDLE


def test_frames_that_come_late_are_none_lost(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend, n_frames_per_trigger=50)
    fake.tell("stall 0.2")
    backend.start()
    assert done(backend) == ""
    backend.stop()
    wait_for("all", lambda: len(listener.frames(1)) == 50)
    assert [f.number for f in listener.frames(1)] == list(range(50)) == tags(listener.frames(1))


def test_the_last_frame_comes_after_the_camera_has_stopped(backend: Andor, fake: Fake, listener: Listener) -> None:
    fake.tell("tail 0.05")
    armed(backend)
    backend.start()
    assert done(backend) == "" and backend.status().frames == 10
    backend.stop()
    wait_for("all", lambda: len(listener.frames(1)) == 10)
    assert tags(listener.frames(1)) == list(range(10))


def full(backend: Andor) -> None:
    """Wait until nothing more fits anywhere: the kernel's buffers grow while they are filled."""
    since = before = -1.0
    while time.monotonic() - since < 0.2 or backend.lost < 20:
        wait_for("back-pressure", lambda: backend.status().blocked, LIMIT)
        if backend.status().frames != before:
            since, before = time.monotonic(), backend.status().frames
        time.sleep(0.01)


def missing(numbers: list[int], total: int) -> str:
    """As ranges, in words."""
    losses = Losses()
    for number in sorted(set(range(total)) - set(numbers)):
        losses.add(number, 1)
    return str(losses)


class Sink:
    """A receiver that takes messages only when it is told to."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.rcvhwm, self._socket.linger = 1, 0
        self._socket.connect(endpoint)
        self.frames: list[Frame] = []
        self.ended = False

    def take(self, messages: int, limit: float = LIMIT) -> None:
        """As many, or until the end message."""
        deadline = time.monotonic() + limit
        while messages and not self.ended:
            assert self._socket.poll(100) or time.monotonic() < deadline, f"{len(self.frames)} frames came"
            if self._socket.poll(0):
                message = stins.decode(self._socket.recv_multipart())
                self.ended = type(message).__name__ == "SeriesEnd"
                self.frames += [message] if isinstance(message, Frame) else []
                messages -= 1

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.mark.parametrize(
    "mode", [TriggerMode.INTERNAL, TriggerMode.EXTERNAL_SINGLE, TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE]
)
def test_what_a_full_ring_loses_is_counted_and_moves_nothing(
    large_backend: Andor, fake: Fake, mode: TriggerMode
) -> None:
    """The sink stops for a while: the ring fills, the camera loses frames, all others are where they belong."""
    backend, total = large_backend, 400
    large = {"roi": (0, 0, 1280, 160), "bit_depth": 16, "exposure_time": 100 * ROW, "frame_time": 400 * ROW}
    counts = {"n_triggers": total, "n_frames_per_trigger": 1} if "MULTI" in mode.value or "GATE" in mode.value else {}
    sink = Sink(backend.endpoints()[0])
    try:
        armed(backend, trigger_mode=mode, **({"n_frames_per_trigger": total} | large | counts))
        backend.start()
        fake.tell("edge 1" if mode is TriggerMode.EXTERNAL_SINGLE else f"edge {total} {400 * ROW} {100 * ROW}")
        sink.take(20)
        full(backend)
        sink.take(10_000)
        assert done(backend)
        status, lost = backend.status(), backend.lost
        assert status.phase is Phase.DONE
        assert fake.count("exposed") == total and fake.count("ignored") == 0
        assert lost + status.frames == total
        numbers = [f.number for f in sink.frames]
        assert numbers == sorted(numbers) and len(numbers) == status.frames
        by_clock = mode in (TriggerMode.INTERNAL, TriggerMode.EXTERNAL_SINGLE)
        if by_clock or not fake.count("lost"):  # else this thread stood still for long: events may come late
            assert numbers == tags(sink.frames)
        assert f"{lost} frames were lost: {missing(numbers, total)}; the receiver was too slow" in status.message
        backend.stop()
    finally:
        sink.close()
    backend.connect()  # a new stream, which never knew the sink
    good_series(backend, fake)


@pytest.mark.parametrize("mode", [TriggerMode.INTERNAL, TriggerMode.EXTERNAL_MULTI])
def test_what_the_camera_loses_while_the_library_hangs(
    backend: Andor, fake: Fake, listener: Listener, mode: TriggerMode
) -> None:
    """It has no buffer then; its clock, or its overflow events, tell which frames these were."""
    backend._options = options(fake, buffers=8)
    counts = {"n_triggers": 300} if mode is TriggerMode.EXTERNAL_MULTI else {"n_frames_per_trigger": 300}
    armed(backend, trigger_mode=mode, **({"n_frames_per_trigger": 1, "frame_time": 200 * ROW} | counts))
    backend.start()
    fake.tell(f"edge 300 {200 * ROW}")
    wait_for("frames", lambda: backend.status().frames > 10)
    fake.tell("slow AT_WaitBuffer 0.2")
    message, lost = done(backend), fake.count("lost")
    assert lost > 10 and f"{lost} of them by the camera" in message
    backend.stop()
    wait_for("the rest", lambda: len(listener.frames(1)) == 300 - backend.lost)
    numbers = [f.number for f in listener.frames(1)]
    assert mode is TriggerMode.EXTERNAL_MULTI or numbers == tags(listener.frames(1))
    assert f"{backend.lost} frames were lost: {missing(numbers, 300)}" in message


def test_software_triggers_wait_for_a_buffer(backend: Andor, fake: Fake) -> None:
    sink = Sink(backend.endpoints()[0])
    try:
        armed(backend, trigger_mode=TriggerMode.SOFTWARE, n_frames_per_trigger=80, roi=(0, 0, 640, 160), bit_depth=16)
        backend.start()
        backend.trigger()
        wait_for("back-pressure", lambda: backend.status().blocked, LIMIT)
        with pytest.raises(HardwareError, match="busy with frame"):
            backend.trigger()
        sink.take(10_000)
        assert done(backend) == "" and fake.count("lost") == 0
        assert [f.number for f in sink.frames] == list(range(80)) == tags(sink.frames)
    finally:
        sink.close()


def test_a_frame_may_come_before_its_software_trigger_returns(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=3, n_frames_per_trigger=1)
    backend.start()
    fake.tell("linger 0.2")
    for number in range(3):
        backend.trigger()
        wait_for("its frame", lambda n=number: backend.status().frames == n + 1)
    assert done(backend) == "" and fake.count("exposed") == 3
    good_series(backend, fake, listener)


def test_a_software_trigger_that_is_refused_is_none(backend: Andor, fake: Fake, listener: Listener) -> None:
    """The camera does not get it later instead."""
    armed(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=2, n_frames_per_trigger=3)
    backend.start()
    fake.tell("fail AT_Command:SoftwareTrigger 17")
    with pytest.raises(HardwareError, match=r"SoftwareTrigger: COMM \(17\)"):
        backend.trigger()
    time.sleep(0.2)
    assert (fake.count("exposed"), backend.status().triggers, backend.status().phase) == (0, 0, Phase.ACQUIRING)
    for number in (3, 6):
        backend.trigger()
        wait_for("its frames", lambda n=number: backend.status().frames == n)
    assert done(backend) == "" and fake.count("exposed") == 6
    good_series(backend, fake, listener)


def test_the_cameras_own_memory_was_full(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend, n_frames_per_trigger=300, frame_time=300 * ROW)
    backend.start()
    wait_for("frames", lambda: backend.status().frames > 10)
    fake.tell("lose 5")
    message, lost = done(backend), fake.count("lost")
    assert f"{lost} frames were lost: " in message and "AT_ERR_HARDWARE_OVERFLOW" in message and lost >= 5
    backend.stop()
    wait_for("the rest", lambda: len(listener.frames(1)) == 300 - lost)
    numbers = [f.number for f in listener.frames(1)]
    assert numbers == tags(listener.frames(1)) and numbers[-1] == 299


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "how, words",
    [
        ("ends", "it has ended the acquisition"),
        ("repeats", r"for 1[.\d]* s it has told so and given no frame"),
        ("hangs", r"it has given no frame for 0[.\d]* s, although it says that it acquires"),
    ],
)
def test_an_overflow_that_the_camera_does_not_survive(
    backend: Andor, fake: Fake, listener: Listener, how: str, words: str, live: bool
) -> None:
    if how == "hangs":
        backend._pump._options = options(fake, frame_timeout=0.3)  # type: ignore[union-attr]
    armed(backend, n_frames_per_trigger=100_000, frame_time=300 * ROW, live=live)
    backend.start()
    wait_for("frames", lambda: backend.status().frames > 10)
    fake.tell(f"burst {how}", "lose 1")
    message = done(backend)
    assert re.search(f"AT_ERR_HARDWARE_OVERFLOW.* after \\d+ of them, and {words}; use a lower rate", message), message
    assert backend.status().phase is Phase.ERROR
    backend.stop()
    backend.connect()
    good_series(backend, fake, listener)


@pytest.mark.parametrize("mode", [TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE])
@pytest.mark.parametrize("how", ["ends", "hangs"])
def test_a_camera_without_a_buffer_that_does_not_go_on(
    backend: Andor, fake: Fake, listener: Listener, mode: TriggerMode, how: str
) -> None:
    """Where it says that it acquires, it may as well be the edges that do not come: Status tells what is known."""
    backend._options = options(fake, buffers=8)
    armed(backend, trigger_mode=mode, n_triggers=300, n_frames_per_trigger=1)
    backend.start()
    fake.tell(f"edge 300 {200 * ROW} {100 * ROW}", f"burst {how}")
    wait_for("frames", lambda: backend.status().frames > 10)
    fake.tell("slow AT_WaitBuffer 0.2")
    if how == "ends":
        assert re.search("BufferOverflowEvent.* and it has ended the acquisition", done(backend))
    else:
        wait_for("what is known", lambda: "had no buffer for 1 frames" in backend.status().message)
        time.sleep(0.3)
        assert backend.status().phase is Phase.ACQUIRING
    backend.stop()
    backend.connect()
    good_series(backend, fake, listener)


@pytest.mark.parametrize("mode", [TriggerMode.EXTERNAL_MULTI, TriggerMode.EXTERNAL_GATE])
def test_a_loss_among_triggered_frames_that_nothing_locates_ends_the_series(
    backend: Andor, fake: Fake, listener: Listener, mode: TriggerMode
) -> None:
    armed(backend, trigger_mode=mode, n_triggers=300, n_frames_per_trigger=1)
    backend.start()
    fake.tell("edge 10")
    wait_for("frames", lambda: backend.status().frames == 10)
    fake.tell("lose 5", "edge 290")
    assert re.search("AT_ERR_HARDWARE_OVERFLOW.* after 1?[0-9] frames, and nothing tells which ones", done(backend))
    assert backend.status().phase is Phase.ERROR
    backend.stop()
    sent = backend.status().frames
    wait_for("what was sent", lambda: len(listener.frames(1)) == sent)
    assert [f.number for f in listener.frames(1)] == tags(listener.frames(1)) == list(range(sent))
    good_series(backend, fake, listener)


def test_the_last_frames_are_lost(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend, n_frames_per_trigger=100)
    fake.tell("lose 100")
    backend.start()
    assert "100 frames were lost: 0-99; 100 of them by the camera: it had no buffer, or its own memory" in done(backend)
    assert backend.status().phase is Phase.DONE


def test_damaged_metadata(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend)
    fake.tell("corrupt 1")
    backend.start()
    assert "10 frames came with damaged metadata" in done(backend)
    backend.stop()
    wait_for("all", lambda: len(listener.frames(1)) == 10)
    assert [f.number for f in listener.frames(1)] == list(range(10)) == tags(listener.frames(1))
    good_series(backend, fake, listener)


# --- what the library refuses ----------------------------------------------------------------------------------------


def test_a_refused_setting(backend: Andor, fake: Fake) -> None:
    for words, found in (
        ("fail AT_SetFloat:ExposureTime 17", r"AT_SetFloat ExposureTime = 0.000925: COMM \(17\)"),
        ("fail AT_SetEnumString:TriggerMode 18", r"TriggerMode = 'Internal': STRINGNOTAVAILABLE \(18\)"),
        ("fail AT_SetInt:AOIWidth 5", r"AOIWidth = \d+: NOTWRITABLE \(5\): not at this moment"),
        ("fail AT_GetInt:AOILeft 77", r"AT_GetInt AOILeft: unknown error \(77\)"),
    ):
        backend.configure(replace(GOOD, roi=None))
        fake.tell(words)
        with pytest.raises(HardwareError, match=found):
            backend.configure(GOOD)
    good_series(backend, fake)


def test_gates_that_overlap_are_exposed_from_edge_to_edge(backend: Andor, fake: Fake, listener: Listener) -> None:
    backend._there._options = options(fake, overlap_gates=True)
    armed(backend, trigger_mode=TriggerMode.EXTERNAL_GATE, n_triggers=10, n_frames_per_trigger=1)
    backend.start()
    fake.tell(f"edge 10 {200 * ROW} {10 * ROW}")
    wait_for("nine frames", lambda: backend.status().frames == 9)
    time.sleep(0.2)
    assert (fake.count("exposed"), backend.status().phase) == (9, Phase.ACQUIRING)
    fake.tell("edge 1")
    assert done(backend) == "" and backend.status().frames == 10
    good_series(backend, fake, listener)


def test_a_period_that_overlap_does_not_have(backend: Andor, fake: Fake, listener: Listener) -> None:
    """Overlap is for those between one frame and one frame and the exposure."""
    camera, readout = backend.camera, 32 * ROW
    for period, overlaps in ((0.0, True), (0.00095, True), (100 * ROW + readout, True), (0.003, False), (2.0, False)):
        accepted = backend.configure(replace(GOOD, frame_time=period))
        assert accepted.frame_time == period and camera.get_bool("Overlap") is overlaps
        assert camera.get_float("FrameRate") == pytest.approx(1 / (period or 100 * ROW))
    with pytest.raises(ConfigError, match="FrameTime: 3000 s; .* it takes 2000 s at most; set a shorter one, "):
        backend.configure(replace(GOOD, frame_time=3000.0))
    armed(backend, frame_time=0.02, n_frames_per_trigger=20)
    begun = time.monotonic()
    backend.start()
    assert done(backend) == "" and time.monotonic() - begun > 19 * 0.02
    good_series(backend, fake, listener)


def test_an_exposure_that_overlap_does_not_have(backend: Andor) -> None:
    """Of a global shutter it is one frame at least: the reference is read in it."""
    shutter = next(p for p in backend.parameters if p.name == "ShutterMode")
    shutter.set(backend, "Global")  # type: ignore[misc]
    for rows, overlaps in ((100, True), (20, False)):  # 32 are the readout
        accepted = backend.configure(replace(GOOD, exposure_time=rows * ROW))
        assert accepted.exposure_time == pytest.approx(rows * ROW)
        assert backend.camera.get_bool("Overlap") is overlaps
    shutter.set(backend, "Rolling")  # type: ignore[misc]


@pytest.mark.parametrize(
    "words, found",
    [
        ("fail AT_QueueBuffer 37 3", r"AT_QueueBuffer of \d+ bytes: NOMEMORY \(37\)"),
        ("size 64", r"AT_QueueBuffer of \d+ bytes: INVALIDSIZE \(15\)"),
        ("size -20000", "AOIStride and ImageSizeBytes of the camera cannot be"),
        ("fail AT_Flush 17", r"COMM \(17\)"),
    ],
)
def test_it_cannot_be_armed(backend: Andor, fake: Fake, listener: Listener, words: str, found: str) -> None:
    backend.configure(GOOD)
    fake.tell(words)
    with pytest.raises(HardwareError, match=found):
        armed(backend)
    backend.stop()
    good_series(backend, fake, listener)


def test_it_does_not_start(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend)
    fake.tell("fail AT_Command:AcquisitionStart 17")
    with pytest.raises(HardwareError, match=r"AcquisitionStart: COMM \(17\)"):
        backend.start()
    assert backend.status().phase is Phase.ERROR
    backend.stop()
    good_series(backend, fake, listener)


@pytest.mark.parametrize("words", ["fail AT_Command:AcquisitionStop 17", "fail AT_Command:AcquisitionStop 5"])
def test_a_stop_that_is_refused_is_none_of_our_business(
    backend: Andor, fake: Fake, listener: Listener, words: str
) -> None:
    armed(backend)
    fake.tell(words)
    backend.start()
    assert done(backend) == ""
    good_series(backend, fake, listener)


def test_a_call_that_lasts(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend, n_frames_per_trigger=100_000)
    backend.start()
    wait_for("frames", lambda: backend.status().frames > 5)
    fake.tell("slow AT_WaitBuffer 1.5")
    time.sleep(0.1)
    assert backend.status().phase is Phase.ACQUIRING
    backend.stop()
    assert backend.status().phase is Phase.IDLE
    good_series(backend, fake, listener)


def test_nobody_receives(backend: Andor, fake: Fake) -> None:
    backend._pump._options = options(fake, send_timeout=0.2)  # type: ignore[union-attr]
    with pytest.raises(HardwareError, match="no receiver connected to tcp://.* within 0.2 s"):
        armed(backend)
    good_series(backend, fake)


# --- stop ------------------------------------------------------------------------------------------------------------


def test_stop_during_a_software_trigger(backend: Andor, fake: Fake, listener: Listener) -> None:
    armed(backend, trigger_mode=TriggerMode.SOFTWARE, n_frames_per_trigger=5, n_triggers=3)
    backend.start()
    fake.tell("slow AT_Command:SoftwareTrigger 1")
    stopper = threading.Timer(0.2, backend.stop)
    stopper.start()
    backend.trigger()
    stopper.join()
    assert backend.status().phase is Phase.IDLE
    wait_for("the end message", lambda: listener.ended(1))
    good_series(backend, fake, listener)


def test_frames_of_the_series_before_come_first(backend: Andor, fake: Fake) -> None:
    """Slots that ZeroMQ still has are left alone until they are back."""
    sink = Sink(backend.endpoints()[0])
    backend._pump._options = options(fake, send_timeout=0.3)  # type: ignore[union-attr]
    large: dict[str, Any] = {"n_frames_per_trigger": 100_000, "roi": (0, 0, 640, 160), "bit_depth": 16}
    try:
        armed(backend, 1, **large)
        backend.start()
        full(backend)
        backend.stop()
        with pytest.raises(HardwareError, match=r"\d frames of the series before are not taken by the receiver within"):
            armed(backend, 2, **large)
        backend._pump._options = options(fake)  # type: ignore[union-attr]
        taker = threading.Timer(0.3, sink.take, [10_000])
        taker.start()
        armed(backend, 3, **large)
        taker.join()
        backend.start()
        sink.ended = False
        sink.take(20)
        backend.stop()
        sink.take(10_000)
        assert {f.series for f in sink.frames} == {1, 3}
        assert [f.number for f in sink.frames] == tags(sink.frames)
    finally:
        sink.close()
    backend.connect()  # a new stream, which never knew the sink
    good_series(backend, fake)


def test_another_size_waits_for_what_is_under_way(backend: Andor, fake: Fake) -> None:
    """The memory is divided anew only when nothing of it is being sent."""
    sink = Sink(backend.endpoints()[0])
    try:
        armed(backend, n_frames_per_trigger=100_000, roi=(0, 0, 640, 160), bit_depth=16)
        backend.start()
        full(backend)
        backend.stop()
        taker = threading.Timer(0.3, sink.take, [10_000])
        taker.start()
        armed(backend, 2, roi=(0, 0, 320, 160))
        taker.join()
        assert [f.number for f in sink.frames] == tags(sink.frames)
        backend.stop()
    finally:
        sink.close()


# --- cooling ---------------------------------------------------------------------------------------------------------


def cooled(backend: Andor, limit: float) -> None:
    backend._options = replace(backend._options, cooling_timeout=limit)
    named = {p.name: p for p in backend.parameters}
    named["Cooling"].set(backend, True)  # type: ignore[misc]


def test_arm_waits_for_a_stable_temperature(backend: Andor, fake: Fake, listener: Listener) -> None:
    fake.tell("ramp 0.2")
    cooled(backend, LIMIT)
    begun = time.monotonic()
    armed(backend)
    assert time.monotonic() - begun > 0.2
    named = {p.name: p for p in backend.parameters}
    assert named["TemperatureStatus"].get(backend) == "Stabilised"
    assert abs(named["SensorTemperature"].get(backend) - named["TargetTemperature"].get(backend)) < 1
    backend.stop()


def test_the_temperature_is_not_reached(backend: Andor, fake: Fake, listener: Listener) -> None:
    fake.tell("ramp never")
    cooled(backend, 0.5)
    with pytest.raises(
        HardwareError, match=r"the sensor is at 5\.\d degC and not stable at 0 degC within 0.5 s \(Not St"
    ):
        armed(backend)
    backend.stop()
    good_series(backend, fake, listener)


def test_a_fault_of_the_cooling(backend: Andor, fake: Fake, listener: Listener) -> None:
    fake.tell("cooler fault")
    with pytest.raises(HardwareError, match="a fault of its cooling"):
        armed(backend)
    good_series(backend, fake, listener)


def test_stop_while_the_sensor_is_cooled(backend: Andor, fake: Fake, listener: Listener) -> None:
    fake.tell("ramp never")
    cooled(backend, LIMIT)
    stopper = threading.Timer(0.3, backend.stop)
    stopper.start()
    with pytest.raises(HardwareError, match="stopped while the sensor was being cooled"):
        armed(backend)
    stopper.join()
    good_series(backend, fake, listener)
