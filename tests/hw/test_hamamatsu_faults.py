"""What goes wrong with a camera, its library and its receiver: what is said of it, and that the next series is good."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tangods_detector.hw import hamamatsu, hamamatsu_run
from tangods_detector.hw.base import Phase
from tangods_detector.hw.hamamatsu import Hamamatsu
from tangods_detector.hw.hamamatsu_camera import Camera
from tangods_detector.hw.hamamatsu_dcam import Code, DcamError
from tangods_detector.hw.hamamatsu_options import HamamatsuOptions
from tangods_detector.settings import Series, TriggerMode
from tangods_receiver.errors import ConfigError, HardwareError
from tests.contract import Listener, wait_for
from tests.hw.dcam import FLASH, LIGHTNING, Fake, code, connected, exposure, fresh, number_in, pixels, small

LIMIT = 30.0
BY_NAME = {p.name: p for p in Hamamatsu.parameters}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fresh() as fake:
        yield fake


@pytest.fixture
def backend(fake: Fake) -> Iterator[Hamamatsu]:
    with connected(fake, LIGHTNING) as backend:
        yield backend


@pytest.fixture
def listener(backend: Hamamatsu) -> Iterator[Listener]:
    with Listener(backend.endpoints()) as listener:
        yield listener


def begin(backend: Hamamatsu, number: int = 1, **changes: Any) -> Series:
    series = Series(number, backend.configure(replace(small(LIGHTNING), **changes)))
    backend.arm(series)
    backend.start()
    return series


def end(backend: Hamamatsu) -> None:
    """However it ends."""
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), LIMIT)


def good(backend: Hamamatsu, listener: Listener, number: int = 99) -> None:
    """The next series is complete, image by image."""
    begin(backend, number)
    end(backend)
    backend.stop()
    assert backend.status().phase is Phase.DONE and backend.status().message == ""
    wait_for("the end message", lambda: listener.ended(number), LIMIT)
    assert [number_in(pixels(f)) for f in listener.frames(number)] == list(range(5))


def numbers(listener: Listener, series: int = 1) -> list[int]:
    """Of the frames that came; each is at its place."""
    wait_for("the end message", lambda: listener.ended(series), LIMIT)
    frames = listener.frames(series)
    assert [number_in(pixels(f)) for f in frames] == [f.number for f in frames]
    return [f.number for f in frames]


# --- no library, no camera --------------------------------------------------------------------------------------------


def test_no_library() -> None:
    with pytest.raises(
        ConfigError, match="library: /nowhere/libdcamapi.so cannot be loaded: .*install .*option library"
    ):
        Hamamatsu(HamamatsuOptions("/nowhere/libdcamapi.so"))


def test_another_library() -> None:
    with pytest.raises(ConfigError, match="libm.so.6 cannot be loaded: .*dcamapi_init"):
        Hamamatsu(HamamatsuOptions("libm.so.6"))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"init_error": code(Code.NOCAMERA)}, r"NOCAMERA \(0x80000206\) \(no cameras\); is it on"),
        ({"init_error": code(Code.NODRIVER)}, r"NODRIVER \(0x80000205\); install the driver"),
        ({"open_error": code(Code.EXCLUDED)}, "camera 000456: EXCLUDED .*; another program has the camera"),
        ({"open_error": -3}, r"camera 000456: error \(0xFFFFFFFD\)"),
    ],
)
def test_a_camera_that_cannot_be_had(fake: Fake, knobs: dict[str, float], words: str) -> None:
    backend = Hamamatsu(HamamatsuOptions(fake.path, LIGHTNING, memory=64_000_000))
    fake.set(**knobs)
    with pytest.raises(HardwareError, match=words):
        backend.connect()
    assert backend.status().phase is Phase.IDLE
    backend.connect()  # and then it is there
    with Listener(backend.endpoints()) as listener:
        good(backend, listener)
    backend.close()


def test_another_serial_number_is_told_with_those_that_are_there(fake: Fake) -> None:
    backend = Hamamatsu(HamamatsuOptions(fake.path, "4711"))
    with pytest.raises(HardwareError, match="number 4711; found: 000123, 000456, 000789; set the option serial_number"):
        backend.connect()
    backend.close()


# --- in a series ------------------------------------------------------------------------------------------------------


def test_unplugged_in_a_series(fake: Fake) -> None:
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        fake.set(unplug_at=20)
        backend.arm(Series(1, backend.configure(replace(small(FLASH), n_frames_per_trigger=1000))))
        backend.start()
        end(backend)
        status = backend.status()
        assert status.phase is Phase.ERROR and status.frames <= 20, "what waited then cannot be asked for any more"
        assert "NOCONNECTION (0x80000F07)" in status.message and "its cable is out" in status.message
        backend.stop()
        with pytest.raises(HardwareError, match="NOCONNECTION"):
            backend.configure(small(FLASH))
        with pytest.raises(HardwareError, match="no camera with the serial number 000123; found: .none., 000456"):
            backend.connect()
        fake.tell("plug")
        backend.connect()
        listener.messages.clear()
        backend.arm(Series(2, backend.configure(small(FLASH))))
        backend.start()
        end(backend)
        assert numbers(listener, 2) == list(range(5))


def test_unplugged_while_it_rests(fake: Fake) -> None:
    with connected(fake, FLASH) as backend:
        assert backend.status().phase is Phase.IDLE
        fake.tell("pull")
        begun = time.monotonic()
        with pytest.raises(HardwareError, match="NOCONNECTION"):
            while time.monotonic() < begun + LIMIT:
                backend.status()
                time.sleep(0.05)


def test_a_camera_that_falls_silent_can_be_stopped(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    """That no frame comes is told by who watches the series, by its own limit."""
    fake.set(stall_at=3)
    begin(backend)
    wait_for("the frames before", lambda: backend.status().frames == 3)
    time.sleep(0.3)
    assert backend.status() == replace(backend.status(), phase=Phase.ACQUIRING, frames=3, blocked=False, message="")
    begun = time.monotonic()
    backend.stop()
    assert time.monotonic() - begun < 2
    assert numbers(listener) == [0, 1, 2]
    fake.reset()
    good(backend, listener)


@pytest.mark.parametrize(
    ("knobs", "lost", "words"),
    [
        ({}, "3", r"lost frames: 3 \(1 between camera and computer\)"),
        ({"missing": 1}, "0 1", r"lost frames: 0-1 \(2 between"),
        ({"untold": 1}, "3 4 9", r"lost frames: 3-4, 9 \(3 between"),
        ({"jump_at": 5, "jump": 10}, "", r"lost frames: 5-14 \(10 between"),
        ({}, "18 19", r"lost frames: 18-19 \(2 between"),
    ],
)
def test_lost_frames_are_told_by_number(
    fake: Fake, backend: Hamamatsu, listener: Listener, knobs: dict[str, float], lost: str, words: str
) -> None:
    fake.set(**knobs)
    fake.tell(f"lose {lost}")
    begin(backend, n_frames_per_trigger=20)
    end(backend)
    backend.stop()
    gone = {int(n) for n in lost.split()} | set(range(5, 15) if "jump" in knobs else ())
    assert numbers(listener) == [n for n in range(20) if n not in gone]
    status = backend.status()
    assert status.phase is Phase.DONE and status.frames == 20 - len(gone)
    assert re.fullmatch(words + ".*", status.message), status.message
    fake.reset()
    good(backend, listener)


def test_the_last_frame_of_an_external_series_lost(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    """No other follows, so it ends by what the library tells."""
    fake.tell("lose 4")
    begin(backend, trigger_mode=TriggerMode.EXTERNAL_MULTI, n_triggers=5, n_frames_per_trigger=1)
    fake.tell("edge 5")
    end(backend)
    assert numbers(listener) == [0, 1, 2, 3] and "lost frames: 4" in backend.status().message
    backend.stop()
    good(backend, listener)


@pytest.mark.parametrize("untold", [0, 1])
@pytest.mark.parametrize(
    ("mode", "each"), [(TriggerMode.EXTERNAL_MULTI, 1), (TriggerMode.EXTERNAL_MULTI, 4), (TriggerMode.EXTERNAL_GATE, 1)]
)
def test_what_is_lost_among_triggered_frames_moves_no_other(
    fake: Fake, backend: Hamamatsu, listener: Listener, mode: TriggerMode, each: int, untold: int
) -> None:
    lost = {5, 6, 7, 12, 17}
    fake.set(untold=untold)
    fake.tell(f"lose {' '.join(map(str, sorted(lost)))}")
    begin(backend, trigger_mode=mode, n_triggers=20 // each, n_frames_per_trigger=each)
    fake.tell("edge 20 0.02 0.002" if mode is TriggerMode.EXTERNAL_GATE else f"edge {20 // each}")
    end(backend)
    assert numbers(listener) == [n for n in range(20) if n not in lost]
    status = backend.status()
    assert "lost frames: 5-7, 12, 17 (5 between" in status.message and status.triggers == 20 // each
    backend.stop()
    good(backend, listener)


@pytest.mark.parametrize("lost", ["0", "1", "5"])
def test_a_loss_in_a_burst_of_software_triggers_does_not_end_it(
    fake: Fake, backend: Hamamatsu, listener: Listener, lost: str
) -> None:
    fake.tell(f"lose {lost}")
    begin(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=2, n_frames_per_trigger=3)
    for n in (3, 6):
        backend.trigger()
        wait_for("its frames, or losses", lambda n=n: backend.numbers.next + backend.numbers.told == n)
    end(backend)
    assert numbers(listener) == [n for n in range(6) if n != int(lost)]


def test_the_frame_of_a_trigger_comes_before_the_call_returns(
    backend: Hamamatsu, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fire = Camera.fire

    def slowly(camera: Camera) -> None:
        fire(camera)
        time.sleep(0.05)

    monkeypatch.setattr(Camera, "fire", slowly)
    begin(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=2, n_frames_per_trigger=3)
    for n in (3, 6):
        backend.trigger()
        wait_for("its frames", lambda n=n: backend.numbers.next == n)
    end(backend)
    assert numbers(listener) == list(range(6))


def test_a_refused_trigger_leaves_nothing_to_fire(
    backend: Hamamatsu, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=1, n_frames_per_trigger=3)
    with monkeypatch.context() as patch:
        patch.setattr(Camera, "fire", raising(DcamError("dcamcap_firetrigger", Code.NOTREADY)))
        with pytest.raises(HardwareError, match="NOTREADY"):
            backend.trigger()
    assert backend.status().triggers == 0 and backend.status().phase is Phase.ACQUIRING
    backend.trigger()
    end(backend)
    assert numbers(listener) == [0, 1, 2]


def raising(exc: Exception) -> Callable[..., None]:
    def act(*_: object) -> None:
        raise exc

    return act


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": 99}, "pixel type 99"),
        ({"rowbytes": 1000}, "1000 bytes a row in memory, and told"),
        ({"address": 4096}, "has a frame at 0x1000 and not in the buffer"),
    ],
)
def test_a_frame_that_lies_otherwise_in_memory_is_not_sent(
    backend: Hamamatsu,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    words: str,
) -> None:
    frame = Camera.frame
    with monkeypatch.context() as patch:
        patch.setattr(Camera, "frame", lambda camera, index: replace(frame(camera, index), **changes))
        begin(backend, n_frames_per_trigger=100)
        end(backend)
    assert backend.status().phase is Phase.ERROR and words in backend.status().message
    assert backend.status().frames == 0
    backend.stop()
    good(backend, listener)


def test_all_edges_came_before_the_first_look(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    """The capture is over then: the library has nothing to wait for."""
    settings = replace(small(LIGHTNING), trigger_mode=TriggerMode.EXTERNAL_MULTI, n_triggers=3, n_frames_per_trigger=1)
    backend.arm(Series(1, backend.configure(settings)))
    assert backend._run is not None and backend._camera is not None
    for n in (1, 2, 3):
        fake.tell("edge 1")
        wait_for("a frame", lambda n=n: backend._camera.transferred() == n)
    fake.set(wait_error=code(Code.NOTBUSY), wait_error_at=1)
    backend.start()
    end(backend)
    assert backend.status().phase is Phase.DONE, backend.status().message
    assert numbers(listener) == [0, 1, 2]


def test_a_library_that_hangs_is_left_alone(
    backend: Hamamatsu, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, stop = threading.Event(), Camera.stop

    def hang(camera: Camera) -> None:
        with camera._lock:
            released.wait(LIMIT)
        stop(camera)

    monkeypatch.setattr(hamamatsu_run, "STOP_LIMIT", 0.2)
    begin(backend, n_frames_per_trigger=10_000)
    wait_for("frames", lambda: backend.status().frames > 2)
    run = backend._run
    assert run is not None
    with monkeypatch.context() as patch:
        patch.setattr(Camera, "stop", hang)
        begun = time.monotonic()
        backend.close()
        assert time.monotonic() - begun < 5.0
        assert run.is_alive() and hamamatsu._left_behind[-1][0] is run
        released.set()
        run.join(LIMIT)
    assert not run.is_alive()
    _, camera, ring = hamamatsu._left_behind.pop()
    camera.close()
    ring.close()
    backend._library.__exit__()


def test_a_lost_software_trigger_does_not_refuse_the_next(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    fake.tell("lose 1")
    begin(backend, trigger_mode=TriggerMode.SOFTWARE, n_triggers=3, n_frames_per_trigger=1)
    for n in (1, 2, 3):
        backend.trigger()
        wait_for("its frame, or the loss", lambda n=n: backend.numbers.next + backend.numbers.told == n)
    end(backend)
    assert numbers(listener) == [0, 2]


def test_an_error_while_waiting(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    fake.set(wait_error=code(Code.FAILREADCAMERA), wait_error_at=3)
    begin(backend, n_frames_per_trigger=100)
    end(backend)
    assert backend.status().phase is Phase.ERROR
    assert "dcamwait_start: FAILREADCAMERA (0x83001002)" in backend.status().message
    backend.stop()
    good(backend, listener)


@pytest.mark.parametrize(
    ("knob", "error", "words"),
    [
        ("alloc_error", Code.NOMEMORY, "dcambuf_attach .* buffers: NOMEMORY .*set memory to less"),
        ("start_error", Code.NORESOURCE, r"dcamcap_start: NORESOURCE \(0x80000201\)"),
    ],
)
def test_refused_when_armed(
    fake: Fake, backend: Hamamatsu, listener: Listener, knob: str, error: int, words: str
) -> None:
    fake.set(**{knob: code(error)})
    with pytest.raises(HardwareError, match=words):
        begin(backend, trigger_mode=TriggerMode.EXTERNAL_SINGLE)
    assert backend.status().phase is Phase.IDLE
    good(backend, listener)


def test_refused_when_started(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    fake.set(start_error=code(Code.NORESOURCE))
    begin(backend)
    end(backend)
    assert "dcamcap_start: NORESOURCE (0x80000201)" in backend.status().message
    backend.stop()
    good(backend, listener)


def test_images_that_do_not_fit_into_the_memory(fake: Fake) -> None:
    with connected(fake, LIGHTNING, 100_000_000) as backend, Listener(backend.endpoints()) as listener:
        with pytest.raises(ConfigError, match="95 MiB have room for 4 frames of 23887872 bytes"):
            begin(backend, roi=None)
        good(backend, listener)


def test_no_receiver(fake: Fake) -> None:
    with connected(fake, LIGHTNING, send_timeout=0.2) as backend:
        with pytest.raises(HardwareError, match="no receiver connected to tcp://127.0.0.1:"):
            begin(backend)
        assert backend.status().phase is Phase.IDLE
        with Listener(backend.endpoints()) as listener:
            good(backend, listener)


# --- cooling ----------------------------------------------------------------------------------------------------------


def test_arm_waits_until_the_sensor_is_cold(fake: Fake) -> None:
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()) as listener:
        BY_NAME["Cooler"].set(backend, "on")  # type: ignore[misc]
        backend.knobs.cooling_timeout = LIMIT
        assert BY_NAME["TemperatureStatus"].get(backend) == "BUSY"
        fake.set(cooling_speed=100)
        backend.arm(Series(1, backend.configure(small(FLASH))))
        assert BY_NAME["TemperatureStatus"].get(backend) == "READY"
        assert BY_NAME["SensorTemperature"].get(backend) == pytest.approx(-10, abs=1)
        backend.start()
        end(backend)
        assert numbers(listener) == list(range(5))


def test_a_sensor_that_does_not_get_cold(fake: Fake) -> None:
    fake.set(cooling_stuck=5, cooling_speed=1000)
    with connected(fake, FLASH) as backend, Listener(backend.endpoints()):
        BY_NAME["Cooler"].set(backend, "MAX")  # type: ignore[misc]
        backend.knobs.cooling_timeout = 0.5
        settings = backend.configure(small(FLASH))
        with pytest.raises(HardwareError, match=r"not reached its temperature within 0.5 s.*5.0 degC, cooler MAX BUSY"):
            backend.arm(Series(1, settings))
        backend.knobs.cooling_timeout = LIMIT
        breaker = threading.Timer(0.3, backend.stop)
        breaker.start()
        with pytest.raises(HardwareError, match="stopped while the sensor was being cooled"):
            backend.arm(Series(2, settings))
        breaker.join()
        backend.knobs.cooling_timeout = 0.0
        backend.arm(Series(3, settings))
        backend.stop()


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [1, 100])
def test_stop_during_a_software_trigger(fake: Fake, backend: Hamamatsu, listener: Listener, each: int) -> None:
    mode = {"trigger_mode": TriggerMode.SOFTWARE, "n_triggers": 5, "n_frames_per_trigger": each}
    begin(backend, exposure_time=exposure(LIGHTNING, 0.2), **mode)
    backend.trigger()
    time.sleep(0.05)
    begun = time.monotonic()
    backend.stop()
    assert time.monotonic() - begun < 2
    assert backend.status().phase is Phase.IDLE
    wait_for("the end message", lambda: listener.ended(1))
    good(backend, listener)


def test_stop_at_any_moment(fake: Fake, backend: Hamamatsu, listener: Listener) -> None:
    for n in range(1, 41):
        begin(backend, n, n_frames_per_trigger=1000)
        time.sleep(0.0007 * n)
        backend.stop()
        assert backend.status().phase is Phase.IDLE, backend.status().message
        wait_for("the end message", lambda n=n: listener.ended(n))
        assert [f.number for f in listener.frames(n)] == list(range(backend.status().frames))
    good(backend, listener)
