"""A Lambda unit: from the rings of its modules to the receiver, with all that can go wrong on the way."""

import json
import random
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from math import inf

import h5py
import hdf5plugin  # noqa: F401  the filters
import numpy as np
import pytest
import zmq
from zmq.utils.garbage import gc

from tangods_detector.hw.lambda_job import Course, Job, Look
from tangods_detector.hw.lambda_stream import ModuleStream
from tangods_detector.hw.lambda_system import LambdaSystem
from tangods_receiver import security
from tangods_receiver.errors import HardwareError
from tangods_receiver.protocol import SeriesEnd, SeriesStart
from tests.contract import Listener
from tests.hw.fake_lambda import (
    LONG,
    SHAPE,
    Fake,
    arm,
    config,
    given_back,
    image,
    library,
    module,
    over,
    pixels_of,
    set_up,
    two_ports,
    unit,
)
from tests.receiver.streaming import DATASET, running, wait_closed, wait_opened
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def path():
    return library()


@pytest.fixture
def fake(path):
    return Fake(path)


@pytest.fixture(autouse=True)
def pyzmqs_own_thread():
    """Without compiled loans pyzmq frees what was sent in a thread that stays."""
    yield
    gc.stop()


@pytest.fixture
def make(path, tmp_path):
    """Makes units here, by what their fake modules do."""
    made = []

    def new(modules=2, first=0, options=None, **values):
        context = unit(path, config(tmp_path, modules, **values), first, **(options or {}))
        made.append(context)
        return context.__enter__()

    yield new
    for context in reversed(made):
        context.__exit__(None, None, None)


# --- series ----------------------------------------------------------------------------------------------------------


def test_series_after_series_every_pixel(make, fake, tmp_path):
    client = make(ring=64)
    with running(tmp_path, *client.endpoints()) as engine:
        for series, (depth, mode) in enumerate([(12, "SINGLE"), (24, "SINGLE"), (6, "SINGLE"), (12, "DUAL")], 1):
            dual = 2 if mode == "DUAL" else 1
            accepted = set_up(client, 30, bit_depth=depth, counter_mode=mode)
            assert (accepted["bit_depth"], accepted["n_frames"]) == (depth, 30)
            arm(client, series, f"{series}.h5", 30 * dual)
            wait_opened(engine, series)
            client.start()
            status = client.wait_over(LONG)
            assert (status.phase, status.message, status.frames) == ("done", "", 30 * dual)
            assert wait_closed(engine, series).missing == 0
            with h5py.File(tmp_path / f"{series}.h5") as file:
                data = file[DATASET][()]
            assert data.shape == (30 * dual, 2, *SHAPE)
            for frame in range(30 * dual):
                for k in range(2):
                    assert (data[frame, k] == image(k, frame // dual + 1, depth=depth)).all(), (series, frame, k)
            given_back(fake)
        assert engine.snapshot().error == ""


def test_what_the_messages_say(make):
    client = make(first=2)
    set_up(client, 3)
    assert client.modules() == [2, 3]
    for position, endpoint in enumerate(client.endpoints()):
        with Listener([endpoint]) as listener, Listener(client.endpoints()[1 - position :][:1]):
            arm(client, 7 + position, "a.h5", 3, modules=4)
            client.start()
            wait_for(lambda x=listener, p=position: x.ended(7 + p), LONG)
        start, *frames, end = listener.messages
        assert isinstance(start, SeriesStart) and isinstance(end, SeriesEnd)
        assert (start.series, start.nframes, start.modules, start.filename) == (7 + position, 3, 4, "a.h5")
        assert (start.shape, start.dtype, start.codec) == (SHAPE, "uint16", "none")
        assert start.metadata["y"] == [0, 32, 64, 96]
        assert [f.number for f in frames] == [0, 1, 2] and {f.module for f in frames} == {2 + position}
        assert [m.serial for m in listener.messages] == [*range(start.serial, start.serial + 5)]
        assert all(abs(f.timestamp - time.time()) < 60 for f in frames)
        client.wait_over(LONG)


def test_one_module_is_a_plain_image(make):
    client = make(1)
    set_up(client, 2)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 2, modules=1)
        client.start()
        over(client, listener, 1, 1)
    assert all(b"module" not in str(f.extra).encode() and f.module == 0 for f in listener.frames())
    assert listener.messages[0].modules == 1


def test_software_triggers_are_starts_that_each_count_from_one(make, fake):
    client = make(lose_one=[0, 2])
    set_up(client, 3)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 12, frames_per_start=3)
        for start in (1, 2, 3, 4):
            client.start()
            wait_for(lambda s=start: client.status().frames >= 3 * s, LONG)
        status = over(client, listener, 1)
    assert (fake.get("starts"), status.starts, status.phase) == (4, 4, "done")
    assert sorted(pixels_of(listener, 0)) == [*range(12)]
    assert sorted(pixels_of(listener, 1)) == [0, 2, 3, 5, 6, 8, 9, 11]
    assert status.modules[1].missing_numbers == [[1, 1], [4, 4], [7, 7], [10, 10]]
    for k in range(2):
        assert all((p == image(k, n % 3 + 1)).all() for n, p in pixels_of(listener, k).items())


def test_a_start_that_comes_while_the_one_before_is_found_over():
    """The new one is not over by that."""

    class Module:
        frames_queued = 0

        @property
        def busy(self):
            course.confirmed_at = inf
            course.starts += 1
            return False

    class System(LambdaSystem):
        settle = 0.0
        connect = close = describe = get = set = start = stop = reset = status = None

        def next_frame(self, module, timeout):
            return None

    system = type("System", (System,), {"__abstractmethods__": frozenset()})()
    job = Job(1, "", 4, 2, 1, SHAPE, "uint16", False, {}, 1.0)
    course, look = Course(job), Look(time.monotonic(), (Module(),))
    stream = ModuleStream(system, 0, 0, "", lambda: look, host="", port=0, memory=0, guard=None)
    course.starts, course.confirmed_at = 1, look.at - 1
    stream._step(course)
    assert (course.starts, stream.finished) == (2, 1)


def test_a_unit_that_another_program_has_begun(make, fake):
    """It is stopped, and what is in the rings is of nobody."""
    client = make()
    set_up(client, 30, trigger_mode="EXT_FRAMES")
    client._unit._hardware.system.start()
    wait_for(lambda: client.status().busy, LONG)
    fake.edges(3)
    wait_for(lambda: client.status().busy and module(client).queued, LONG)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 30)
        assert (fake.get("stops"), client.status().busy) == (1, False)
        client.start()
        fake.edges(30)
        assert over(client, listener, 1).message == ""
    assert [len(pixels_of(listener, k)) for k in range(2)] == [30, 30]
    given_back(fake)


def test_a_start_while_busy_is_refused_and_harms_nothing(make, fake):
    client = make()
    set_up(client, 2, shutter_time=300.0)
    with pytest.raises(HardwareError, match="start: the unit is idle; arm it first"):
        client.start()
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 4, frames_per_start=2)
        client.start()
        with pytest.raises(HardwareError, match="start: the unit is busy with the one before, number 1"):
            client.start()
        wait_for(lambda: client.status().frames == 2, LONG)
        client.start()
        assert over(client, listener, 1).phase == "done"
    assert fake.get("starts") == 2
    with pytest.raises(HardwareError, match="the unit is done"):
        client.start()


def test_edges(make, fake):
    """Where triggers come from outside, start has returned when all modules wait for them."""
    client = make(begin_ms=200)
    set_up(client, 5, trigger_mode="EXT_FRAMES")
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 5)
        client.start()
        assert client.status().busy
        for edge in range(1, 6):
            fake.edges()
            wait_for(lambda e=edge: client.status().frames == e, LONG)
        assert over(client, listener, 1).phase == "done"


@pytest.mark.parametrize("frames, lag", [(300, 30), pytest.param(2000, 200, marks=pytest.mark.soak)])
def test_units_that_each_have_some_of_the_modules(path, tmp_path, frames, lag):
    """Two units, each with two modules of the image, now one and now the other ahead; one module loses some."""
    with_two = [config(_folder(tmp_path, k), 2, seed=7 * k, lag=[lag] * 2, lose=[0, k]) for k in range(2)]
    libraries = [shutil.copy(path, tmp_path / f"{k}.so") for k in range(2)]  # each has one system at a time
    with unit(libraries[0], with_two[0]) as one, unit(libraries[1], with_two[1], first=2) as other:
        units = [one, other]
        endpoints = [endpoint for u in units for endpoint in u.endpoints()]
        with running(tmp_path, *endpoints, end_timeout=1.0) as engine:
            for u in units:
                u.begin_configure({"n_frames": frames, "shutter_time": 1.0})
            for u in units:
                u.wait_configured()
            for u in units:
                arm(u, 1, "a.h5", frames, modules=4, wait=False)
            for u in units:
                u.wait_armed()
            wait_opened(engine, 1)
            starts = [u.begin_start() for u in units]
            for u, start in zip(units, starts, strict=True):
                u.wait_started(start)
            told = [u.wait_over(LONG) for u in units]
            closed = wait_closed(engine, 1)
    lost = {n for first, last in told[1].modules[1].missing_numbers for n in range(first, last + 1)}
    assert 0 < len(lost) < 0.05 * frames and told[1].modules[1].missing == len(lost)
    assert (told[0].message, closed.missing) == ("", len(lost))
    assert told[1].message.startswith(f"lambda/2: {len(lost)} of {frames} frames missing: ")
    with h5py.File(tmp_path / "a.h5") as file:
        for number, pixels in enumerate(file[DATASET]):
            for k in range(4):
                expected = 0 if k == 3 and number in lost else image(k % 2, number + 1)
                assert (pixels[k] == expected).all(), (number, k)


def _folder(tmp_path, name):
    folder = tmp_path / str(name)
    folder.mkdir()
    return folder


# --- frames that do not come as they should --------------------------------------------------------------------------


def test_a_frame_that_one_module_lost(make):
    client = make(lose_one=[0, 7])
    set_up(client, 20)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 20)
        client.start()
        status = over(client, listener, 1)
    assert sorted(pixels_of(listener, 0)) == [*range(20)]
    assert sorted(pixels_of(listener, 1)) == [n for n in range(20) if n != 6]
    assert (status.phase, status.message) == ("done", "lambda/2: 1 of 20 frames missing: 6")
    assert [(m.sent, m.missing) for m in status.modules] == [(20, 0), (19, 1)]


def test_the_last_frames_of_a_module_are_lost(make):
    """Nothing comes after them by which they could be missed; the module is no longer busy, its ring empty."""
    client = make(lose_one=[20, 0])
    set_up(client, 20)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 20)
        client.start()
        assert over(client, listener, 1).message == "lambda/1: 1 of 20 frames missing: 19"


def test_frames_that_are_incomplete_missing_or_failed(make, tmp_path):
    client = make(incomplete=[5, 0], missing=[0, 4], failed=[0, 7])
    set_up(client, 20)
    with running(tmp_path, *client.endpoints()) as engine:
        arm(client, 1, "a.h5", 20)
        client.start()
        status = client.wait_over(LONG)
        closed = wait_closed(engine, 1)
    one, other = status.modules
    assert (one.sent, one.incomplete, one.missing) == (20, 4, 0)
    assert (other.sent, other.failed, other.missing) == (13, 7, 7)
    assert other.missing_numbers == [[3, 3], [6, 7], [11, 11], [13, 13], [15, 15], [19, 19]]
    assert closed.missing == 7
    incomplete = next(loss for loss in closed.lost if loss.kind == "incomplete")
    assert incomplete.count == 4


def test_one_module_lags_and_holds_nobody_up(make, fake):
    client = make(lag=[0, 400], ring=64)
    set_up(client, 40)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 40)
        client.start()
        wait_for(lambda: len(pixels_of(listener, 0)) == 40, LONG)
        late = len(pixels_of(listener, 1))
        assert over(client, listener, 1).message == ""
    assert late < 40, "the other had not come so far"
    assert sorted(pixels_of(listener, 1)) == [*range(40)]


def test_a_silent_module_ends_the_series_at_last(make):
    client = make(silent=[0, 8], options={"lag": 0.5})
    set_up(client, 20)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 20)
        client.start()
        status = over(client, listener, 1)
    assert status.phase == "error"
    assert status.message == (
        "lambda/2 sent nothing for 0.5 s after the others were over; lambda/2: 12 of 20 frames missing: 8-19"
    )
    assert sorted(pixels_of(listener, 0)) == [*range(20)] and sorted(pixels_of(listener, 1)) == [*range(8)]
    set_up(client, 20)
    assert client.status().phase == "idle"


def test_a_module_that_restarts(make, fake):
    """It is connected, not ready and not busy: the others go on; what it owed is missing."""
    client = make(restart=[0, 5])
    set_up(client, 20)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 20)
        client.start()
        status = over(client, listener, 1)
        assert status.phase == "error"
        assert status.message == "lambda/2 is not ready; lambda/2: 15 of 20 frames missing: 5-19"
        assert sorted(pixels_of(listener, 0)) == [*range(20)]
        fake.tell("restart", 0, 1)
        client.reset()
        set_up(client, 20)
        arm(client, 2, "", 20)
        client.start()
        assert over(client, listener, 2).phase == "done"


def test_a_lost_module_does_not_end_a_series_that_waits(make, fake):
    """Nothing comes for longer than a silent module is waited for: there was no edge."""
    client = make(broken=[2, 0], options={"lag": 0.3})
    set_up(client, 6, trigger_mode="EXT_FRAMES")
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 6)
        client.start()
        fake.edges(2)
        wait_for(lambda: module(client).over and module(client, 1).sent == 2, LONG)
        time.sleep(0.6)
        assert client.status().phase == "running" and "lambda/1: " in client.status().message
        fake.edges(4)
        status = over(client, listener, 1)
    assert (status.phase, [m.sent for m in status.modules]) == ("error", [2, 6])


def test_a_module_whose_link_breaks(make):
    client = make(broken=[5, 0])
    set_up(client, 20)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 20)
        client.start()
        status = over(client, listener, 1)
    assert status.phase == "error" and "0x8005 communication (connection to module 1 was lost)" in status.message
    assert len(pixels_of(listener, 0)) == 5 and len(pixels_of(listener, 1)) == 20
    assert status.modules[0].missing_numbers == [[5, 19]]


def test_a_unit_that_goes_deaf(make, fake):
    client = make(options={"deaf": 0.5})
    set_up(client, 2000, shutter_time=10.0)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 2000)
        client.start()
        fake.tell("deaf", 1)
        status = over(client, listener, 1)
        assert status.phase == "error" and "the unit does not tell of its modules" in status.message
        client.reset()  # it does not answer: connected anew
        set_up(client, 5)
        arm(client, 2, "", 5)
        client.start()
        assert over(client, listener, 2).phase == "done"


@pytest.mark.parametrize("skip_zero", [0, 1])
def test_frames_after_the_roll_over_of_the_counter(make, skip_zero):
    """33 554 430 frames are asked for, the most in DUAL; those before the roll-over are lost but for the last."""
    begin, count = (1 << 24) - 10, 40
    client = make(first_number=begin, skip_zero=skip_zero, shared_dual=0)
    set_up(client, count // 2, counter_mode="DUAL")
    total = 2 * ((1 << 24) - 1)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", total)
        client.start()
        wait_for(lambda: len(listener.frames()) == 2 * count, LONG)
        client.stop()
        status = over(client, listener, 1)
    assert sorted(pixels_of(listener, 1)) == [*range(begin - 1, begin - 1 + count)]
    assert status.modules[1].missing_numbers == [[0, begin - 2]]
    assert status.modules[1].foreign == 0


def test_a_frame_too_many(make):
    """An edge too many, or fewer frames expected than were set: told, and not sent."""
    client = make()
    set_up(client, 6)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 5)
        client.start()
        status = over(client, listener, 1)
        assert (status.phase, status.frames) == ("done", 5)
        arm(client, 2, "", 6)
        client.start()
        assert over(client, listener, 2).frames == 6
    assert {f.number for f in listener.frames(1)} == {*range(5)}
    assert {f.number for f in listener.frames(2)} == {*range(6)}


def test_frames_of_another_size(make):
    client = make(cut=[0, 100])
    set_up(client, 5)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 5)
        client.start()
        status = over(client, listener, 1)
    assert status.phase == "error"
    assert "a frame has 3996 bytes, 4096 are those of 32 x 64 uint16; was the unit set up by another" in status.message
    assert len(pixels_of(listener, 0)) == 5 and not pixels_of(listener, 1)


# --- before the first frame ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, words",
    [
        ("unready", "lambda/2 is not ready, after 0.3 s"),
        ("unsettled", "the high voltage of lambda/2 is not settled, after 0.3 s"),
        ("no_ram", "the RAM of lambda/2 is not allocated, after 0.3 s"),
    ],
)
def test_a_module_that_is_not_ready(make, fake, fault, words):
    client = make()
    set_up(client)
    fake.tell(fault, 1, 1)
    with Listener(client.endpoints()) as listener:
        with pytest.raises(HardwareError, match=words):
            arm(client, 1, "", 20, ready_limit=0.3)
        assert not listener.started(1)
        assert client.status().phase == "error"
        threading.Timer(0.3, lambda: fake.tell(fault, 0, 1)).start()
        arm(client, 2, "", 20)
        client.start()
        assert over(client, listener, 2).phase == "done"


def test_modules_settle_before_the_first_exposure(make):
    client = make()
    set_up(client)
    client.set("voltage", 298.0, 1)
    assert (client.get("voltage", 0), client.get("voltage", 1)) == (0, 298)
    with pytest.raises(HardwareError, match="module 2 is not of this unit"):
        client.get("voltage", 2)
    with pytest.raises(HardwareError, match="set: humidity is not one of voltage"):
        client.set("humidity", 3.0, 0)


def test_without_thresholds_nothing_is_armed(make):
    client = make(cold=1)
    client.begin_configure({"n_frames": 5})
    client.wait_configured()
    with pytest.raises(HardwareError, match="no thresholds are set since power-up: it would count noise"):
        arm(client, 1, "", 5)
    set_up(client, 5)
    with Listener(client.endpoints()) as listener:
        arm(client, 2, "", 5)
        client.start()
        assert over(client, listener, 2).phase == "done"


def test_a_start_that_is_ignored(make, fake):
    client = make(options={"start": 0.3})
    set_up(client, 5)
    fake.tell("ignore_start", 1)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 5)
        with pytest.raises(HardwareError, match="lambda/1, lambda/2 did not begin, the start was ignored, after 0.3 s"):
            client.start()
        assert over(client, listener, 1).phase == "error"
        fake.tell("ignore_start", 0)
        arm(client, 2, "", 5)
        client.start()
        assert over(client, listener, 2).phase == "done"


def test_a_start_that_is_refused(make, fake):
    client = make()
    set_up(client, 5)
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 5)
        fake.tell("refuse_start", 0x8014)
        with pytest.raises(HardwareError, match="start: libxsp: start: 0x8014 failure .start failed on module 1"):
            client.start()
        assert over(client, listener, 1).phase == "error"
        fake.tell("refuse_start", 0)
        arm(client, 2, "", 5)
        client.start()
        assert over(client, listener, 2).phase == "done"


def test_only_one_frame_per_trigger(make):
    client = make(max_per_trigger=1)
    with pytest.raises(HardwareError, match="setting frames_per_trigger to 4: 0x8042 not supported"):
        set_up(client, frames_per_trigger=4)
    assert client.status().phase == "error"
    assert set_up(client, frames_per_trigger=1)["frames_per_trigger"] == 1


def test_settings_that_cannot_be(make, fake):
    client = make()
    with pytest.raises(HardwareError, match="configure: shutter: not one of bit_depth"):
        client.begin_configure({"shutter": 1.0})
    with pytest.raises(HardwareError, match="exposure is not a number|thresholds is .*, not a number"):
        client.begin_configure({"thresholds": {"low": 5}})
    with pytest.raises(HardwareError, match="0x804a argument out of range"):
        set_up(client, shutter_time=-5.0)
    with pytest.raises(HardwareError, match="frames_per_start is 3, no part of 20 frames"):
        arm(client, 1, "", 20, frames_per_start=3)
    with pytest.raises(HardwareError, match="an image of 1 modules; those of this unit are 0 to 1"):
        arm(client, 1, "", 20, modules=1)


def test_what_is_as_wanted_is_left_alone(make, fake):
    """Setting the bit depth again would allocate all memory anew."""
    client = make()
    set_up(client, 5)
    fake.tell("refuse_set", 0x8013)
    set_up(client, 5)
    with pytest.raises(HardwareError, match="n_frames"):
        set_up(client, 6)


def test_without_a_receiver_nothing_is_armed(make):
    client = make()
    set_up(client, 5)
    with pytest.raises(HardwareError, match="lambda/1: no receiver connected to tcp.*lambda/2: no receiver"):
        arm(client, 1, "", 5, receiver_limit=0.2)
    with Listener(client.endpoints()[:1]) as listener:
        with pytest.raises(HardwareError, match="lambda/2: no receiver connected"):
            arm(client, 2, "", 5, receiver_limit=0.5)
        wait_for(lambda: listener.ended(2), LONG, "the end of what was begun")
    with Listener(client.endpoints()) as listener:
        arm(client, 3, "", 5)
        client.start()
        assert over(client, listener, 3).phase == "done"


def test_a_reset_in_the_middle_of_a_series(make, fake):
    """What was open ends at once, and the next can be armed at once."""
    client = make(1)
    with Listener(client.endpoints()) as listener:
        for series in (1, 2, 3):
            set_up(client, 100_000)
            arm(client, series, "", 100_000, modules=1)
            client.start()
            wait_for(lambda: client.status().frames > 5, LONG)
            client.reset()
            assert client.status().phase == "idle"
            with pytest.raises(HardwareError, match="no thresholds"):
                arm(client, 9, "", 5, modules=1)
        wait_for(lambda: listener.ended(3), LONG)
    assert fake.get("resets") == 3
    given_back(fake, 1)


def test_a_port_that_is_taken(path, tmp_path):
    with socket.socket() as other:
        port = two_ports(other)
        with unit(path, config(tmp_path), connect=False, port=port - 1) as client:
            wait_for(lambda: client.status().phase == "error", LONG)
            assert f"cannot bind the stream to tcp://127.0.0.1:{port}" in client.status().message
            assert client.endpoints() == []
            other.close()
            assert len(client.describe().modules) == 2
            assert client.endpoints() == [f"tcp://127.0.0.1:{port - 1}", f"tcp://127.0.0.1:{port}"]


def test_who_may_connect(make):
    """Refused connections are told where a receiver is missed."""
    client = make(1, options={"guard": security.guard("", "", ["192.0.2.0/24"])})
    set_up(client, 5)
    with Listener(client.endpoints()):
        with pytest.raises(HardwareError, match="no receiver connected to .* within 1 s.*Refused were: .*127.0.0.1"):
            arm(client, 1, "", 5, modules=1, receiver_limit=1.0)


# --- stop ------------------------------------------------------------------------------------------------------------


def test_a_stop_sends_what_is_there(make, fake):
    client = make()
    set_up(client, 100_000)
    client.stop()
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 100_000)
        client.start()
        wait_for(lambda: client.status().frames > 10, LONG)
        client.stop()
        client.stop()
        status = over(client, listener, 1)
        made = [fake.get("made", k) for k in range(2)]
        assert (status.phase, status.message) == ("done", "")
        assert [len(pixels_of(listener, k)) for k in range(2)] == made
        given_back(fake)
        arm(client, 2, "", 100_000)
        client.stop()
        assert over(client, listener, 2).phase == "done"
        assert not listener.frames(2)
        set_up(client, 3)
        arm(client, 3, "", 3)
        client.start()
        assert over(client, listener, 3).frames == 3


def test_a_stop_while_the_receiver_is_waited_for(make):
    client = make()
    set_up(client, 5)
    arm(client, 1, "", 5, wait=False, receiver_limit=60)
    wait_for(lambda: client.status().phase == "arming")
    client.stop()
    with pytest.raises(HardwareError, match="stopped before a receiver had taken the start message"):
        client.wait_armed(LONG)
    assert client.wait_over(LONG).phase == "error"


def test_a_stop_while_a_module_is_waited_for(make, fake):
    client = make()
    set_up(client, 5)
    fake.tell("unsettled", 1, 0)
    arm(client, 1, "", 5, wait=False, ready_limit=600)
    client.stop()
    with pytest.raises(HardwareError, match="stopped; the high voltage of lambda/1 is not settled"):
        client.wait_armed(LONG)


def test_a_stop_while_triggers_are_waited_for(make, fake):
    client = make()
    set_up(client, 5, trigger_mode="EXT_SEQUENCE")
    with Listener(client.endpoints()) as listener:
        arm(client, 1, "", 5)
        client.start()
        client.stop()
        status = over(client, listener, 1)
    assert (status.phase, status.frames) == ("done", 0)


# --- the receiver ----------------------------------------------------------------------------------------------------


@contextmanager
def lazy_receiver(endpoints):
    """Takes one message of each at first, then what it is asked for."""
    with zmq.Context() as context:
        sockets = [context.socket(zmq.PULL) for _ in endpoints]
        for pull, endpoint in zip(sockets, endpoints, strict=True):
            pull.linger, pull.rcvhwm, pull.rcvbuf = 0, 1, 4096
            pull.connect(endpoint)
        try:
            yield sockets
        finally:
            for pull in sockets:
                pull.close()


def test_a_slow_receiver_fills_the_ring_and_gets_every_pixel_of_what_was_kept(make, fake):
    """Frames of 1 MB do not hide in the kernel's buffers. Nothing that waits is overwritten."""
    client = make(1, ring=40, width=1024, height=512, options={"memory": 16 << 20})
    set_up(client, 200)
    with lazy_receiver(client.endpoints()) as (pull,):
        arm(client, 1, "", 200, modules=1)
        client.start()
        wait_for(lambda: module(client).blocked, LONG)
        wait_for(lambda: fake.get("made") == 200, LONG)
        assert fake.get("overflowed") > 100, "what finds no room in the ring is lost"
        assert client.status().phase == "running"
        numbers = []
        while (head := json.loads((parts := pull.recv_multipart())[0]))["htype"] != "series_end":
            if head["htype"] == "image":
                pixels = np.frombuffer(parts[1], np.uint16).reshape(512, 1024)
                assert (pixels == image(0, head["frame"] + 1, (512, 1024))).all()
                numbers.append(head["frame"])
        status = client.wait_over(LONG)
    assert (status.modules[0].sent, status.modules[0].missing) == (len(numbers), 200 - len(numbers))
    assert len(numbers) == 200 - fake.get("overflowed")
    given_back(fake, 1)


def test_a_stop_gives_up_on_a_receiver_that_takes_nothing(make, fake):
    client = make(1, ring=40, width=1024, height=512, options={"memory": 16 << 20, "stop": 0.5})
    set_up(client, 200)
    with lazy_receiver(client.endpoints()):
        arm(client, 1, "", 200, modules=1)
        client.start()
        wait_for(lambda: module(client).blocked, LONG)
        client.stop()
        status = client.wait_over(LONG)
        assert status.phase == "error" and "did not come to an end after a stop" in status.message
    with Listener(client.endpoints()) as listener:
        set_up(client, 5)
        arm(client, 2, "", 5, modules=1)
        client.start()
        status = over(client, listener, 2, 1)
        assert (status.phase, status.modules[0].sent) == ("done", 5)
    wait_for(lambda: fake.get("released") == fake.get("taken"), LONG)


def test_a_receiver_that_goes_and_comes_again(make, fake):
    """What it had not read is lost, and the frames are back in the ring; the next receiver gets those after it."""
    client = make(1, ring=300)
    set_up(client, 100_000)
    with Listener(client.endpoints()):
        arm(client, 1, "", 100_000, modules=1)
        client.start()
        wait_for(lambda: client.status().frames > 20, LONG)
    wait_for(lambda: module(client).blocked, LONG)
    with Listener(client.endpoints()) as listener:
        wait_for(lambda: len(listener.frames()) > 20, LONG)
        client.stop()
        assert over(client, listener, 1, 1).phase == "done"
    for frame in listener.frames():
        assert (np.frombuffer(frame.data, np.uint16).reshape(SHAPE) == image(0, frame.number + 1)).all()
    given_back(fake, 1)


def test_a_receiver_that_goes_while_it_takes_nothing(make, fake):
    """The next one gets what comes from then on."""
    client = make(1, ring=40, width=1024, height=512, options={"memory": 16 << 20})
    set_up(client, 100_000)
    with lazy_receiver(client.endpoints()):
        arm(client, 1, "", 100_000, modules=1)
        client.start()
        wait_for(lambda: module(client).blocked, LONG)
        sent = module(client).sent
    with Listener(client.endpoints()) as listener:
        wait_for(lambda: len(listener.frames()) > 20, LONG)
        client.stop()
        assert over(client, listener, 1, 1).phase == "done"
    assert min(f.number for f in listener.frames()) >= sent
    given_back(fake, 1)


def test_an_end_in_the_middle_of_a_series_tells_the_receiver(path, tmp_path, fake):
    with unit(path, config(tmp_path)) as client:
        set_up(client, 100_000)
        with Listener(client.endpoints()) as listener:
            arm(client, 1, "", 100_000)
            client.start()
            wait_for(lambda: len(listener.frames()) > 20, LONG)
            client.close()
            wait_for(lambda: sum(isinstance(m, SeriesEnd) for m in listener.messages) == 2, LONG)
    assert fake.get("left_out") == 0


# --- whatever comes --------------------------------------------------------------------------------------------------

ODDS = {"lag": 5, "lose": 10, "incomplete": 7, "missing": 6, "failed": 9, "restart": 8, "silent": 11, "broken": 12}


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_series_with_anything_wrong_at_any_time(make, fake, count):
    """Each has random faults of random modules, and may be stopped; what came and what is missing is all there was."""
    chance = random.Random(count)
    client = make(3, seed=count, options={"lag": 0.3, "stop": 1.0, "start": 1.0})
    with Listener(client.endpoints()) as listener:
        for series in range(1, count + 1):
            depth, dual = chance.choice([6, 12, 24]), chance.choice([1, 2])
            n, starts = dual * chance.randint(1, 40), chance.choice([1, 1, 3])
            faults = [(name, k) for name in ODDS for k in range(3) if chance.random() < 0.07]
            set_up(client, n // dual, bit_depth=depth, counter_mode="DUAL" if dual == 2 else "SINGLE")
            arm(client, series, "", n * starts, modules=3, frames_per_start=n)
            for name, k in faults:
                fake.tell(name, ODDS[name], k)
            stopped = _run_through(client, starts, chance, faults)
            status = over(client, listener, series, 3)
            assert status.phase == "done" or faults, status.message
            for told in status.modules:
                came = [f for f in listener.frames(series) if f.module == told.module]
                assert len({f.number for f in came}) == len(came) == told.sent
                if not stopped:
                    assert told.sent + told.missing == n * starts, (faults, status.message)
                for f in came:
                    number = f.number % n // dual + 1
                    assert bytes(f.data) == image(told.module, number, depth=depth).tobytes()
            given_back(fake, 3)
            listener.messages.clear()
            for name, k in faults:
                fake.tell(name, 0, k)
            if faults:
                client.reset()


def _run_through(client, starts, chance, faults):
    """All starts of a series, or some; was it stopped?"""
    for number in range(1, starts + 1):
        if chance.random() < 0.1:
            client.stop()
            return True
        try:
            client.start()
        except HardwareError:
            assert faults, "without one nothing is refused"
            break
        end = time.monotonic() + LONG
        while any(m.busy or m.queued for m in client.status().modules) and time.monotonic() < end:
            silent = number < starts and any(name == "silent" for name, _ in faults)
            if silent or chance.random() < 0.002:  # nothing but a stop ends a start that is not the last
                client.stop()
                return True
            time.sleep(0.002)
    client.wait_over(LONG) if number == starts else client.stop()
    return client.status().halted or number < starts
