"""The acquisition thread against a pretended detector and a pretended receiver: every way a series can end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tangods_detector.acquisition import Acquisition
from tangods_detector.hw.base import Phase, Status
from tangods_detector.progress import Limits
from tangods_detector.receiver import ReceiverError
from tangods_detector.settings import OverwritePolicy, Settings, TriggerMode
from tangods_detector.snapshot import Request, Snapshot
from tangods_detector.states import State
from tangods_receiver import imaging
from tangods_receiver.errors import ConfigError, DaqError, HardwareError
from tangods_receiver.stats import Snapshot as ReceiverSnapshot
from tests.detector.pretend import Pretend, wait_for

QUICK = Limits(reply=2.0, opened=0.3, closed=0.3, aborted=0.2, silent=0.3, blocked=0.5, receiver=0.2, retry=0.05)
FILE = Request(filename="/d/a.h5")


class Bench:
    """An acquisition, what it drives, and every snapshot that it has shown."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self.backend = Pretend()
        self.receiver = self.backend.receiver
        self.seen: list[Snapshot] = []
        self._stack, self._options = stack, {"limits": QUICK, **options}

    def begin(self, until: State = State.IDLE) -> Bench:
        receiver = self._options.pop("receiver", self.receiver)
        self.acquisition = Acquisition(self.backend, receiver, changed=self.seen.append, **self._options)
        self._stack.enter_context(self.acquisition)
        self.wait(until)
        return self

    @property
    def now(self) -> Snapshot:
        return self.acquisition.snapshot

    def wait(self, *states: State) -> Snapshot:
        wait_for(f"{states}, it is {self.now}", lambda: self.now.state in states)
        return self.now

    def states(self) -> list[State]:
        """Passed through, each once."""
        states = [s.state for s in self.seen]
        return [s for i, s in enumerate(states) if i == 0 or s is not states[i - 1]]

    def fault(self) -> str:
        self.wait(State.FAULT)
        assert self.now.last_error in self.now.status
        assert "Reset" in self.now.status
        return self.now.last_error

    def good_series(self) -> None:
        """Whatever happened before."""
        self.acquisition.change(trigger_mode=TriggerMode.INTERNAL, n_triggers=1, n_frames_per_trigger=3)
        self.acquisition.arm(FILE)
        assert self.now.state is not State.IDLE or self.now.written == 3
        self.wait(State.IDLE, State.FAULT)
        assert self.now.state is State.IDLE, self.now
        assert (self.now.acquired, self.now.received, self.now.written, self.now.missing) == (3, 3, 3, 0)
        assert self.now.last_error == ""
        assert self.now.progress == 100.0

    def reset(self) -> None:
        self.acquisition.reset()
        self.wait(State.IDLE)
        assert self.now.last_error == ""


class Watching(list[Snapshot]):
    """Snapshots; and whether the hardware had started when one said RUNNING."""

    def __init__(self, backend: Pretend) -> None:
        super().__init__()
        self._backend, self.started = backend, set[bool]()

    def append(self, snapshot: Snapshot) -> None:
        super().append(snapshot)
        if snapshot.state is State.RUNNING:
            self.started.add("start" in self._backend.calls)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:
        yield lambda **options: Bench(stack, **options)


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make().begin()


# --- a good series --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [TriggerMode.INTERNAL, TriggerMode.SOFTWARE])
def test_the_hardware_has_started_when_a_client_sees_running(make: Callable[..., Bench], mode: TriggerMode) -> None:
    """It may send an edge at once."""
    bench = make()
    bench.seen = seen = Watching(bench.backend)
    bench.begin()
    bench.acquisition.change(trigger_mode=mode)
    bench.acquisition.arm(FILE)
    wait_for("RUNNING", lambda: State.RUNNING in bench.states())
    assert seen.started == {True}
    bench.acquisition.stop()
    bench.wait(State.IDLE)


def test_a_start_that_fails_is_told_without_running(bench: Bench) -> None:
    bench.backend.errors["start"] = HardwareError("the camera did not start")
    bench.acquisition.arm(FILE)
    assert "the camera did not start" in bench.fault()
    assert State.RUNNING not in bench.states()
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_a_series_waits_for_the_receiver_at_both_ends(bench: Bench) -> None:
    bench.good_series()
    states = bench.states()
    assert states[-5:] == [State.IDLE, State.ARMING, State.RUNNING, State.FINISHING, State.IDLE]
    assert bench.backend.calls[-3:] == ["arm", "start", "stop"]
    assert "complete" in bench.now.status and "/d/a.h5" in bench.now.status
    bench.good_series()
    assert bench.now.series == 2


def test_the_state_has_left_idle_when_arm_returns(bench: Bench) -> None:
    bench.acquisition.change(n_frames_per_trigger=100)
    bench.acquisition.arm(FILE)
    assert bench.now.state in (State.ARMING, State.RUNNING)
    bench.acquisition.stop()
    bench.wait(State.IDLE)


def test_series_ids_go_on_from_what_the_receiver_has_seen(bench: Bench) -> None:
    bench.receiver.now = ReceiverSnapshot(opened=41, closed=41, series=41)
    bench.good_series()
    assert bench.now.series == 42
    bench.receiver.now = ReceiverSnapshot()  # it was restarted
    bench.good_series()
    assert bench.now.series == 43


def test_hardware_that_counts_its_series_itself_and_begins_anew(bench: Bench) -> None:
    """Its restart does not look like a series that the receiver had before."""
    bench.receiver.now = ReceiverSnapshot(opened=41, closed=41, series=41, openings=3, closings=3)
    for number in (1, 2, 1, 1):
        bench.backend.own_number = number
        bench.good_series()
        assert bench.now.series == number
        assert f"series {number} complete" in bench.now.status
    bench.receiver.opens = False
    bench.acquisition.arm(FILE)
    assert "did not open series 1" in bench.fault(), "it has had one, but not this"


def test_what_the_hardware_says_at_the_end_is_told(bench: Bench) -> None:
    bench.backend.remark = "3 messages were dropped"
    bench.acquisition.arm(FILE)
    bench.wait(State.IDLE)
    assert bench.now.last_error == "3 messages were dropped"
    assert bench.now.status.endswith("in /d/a.h5; 3 messages were dropped")


def test_software_triggers(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE, n_triggers=2, n_frames_per_trigger=3)
    with pytest.raises(ConfigError, match="none is waited for"):
        bench.acquisition.trigger()
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.acquisition.trigger()
    wait_for("frames", lambda: bench.now.acquired == 3)
    time.sleep(0.05)
    assert bench.now.state is State.RUNNING
    bench.acquisition.trigger()
    bench.wait(State.IDLE)
    assert bench.now.written == 6


def test_live_has_no_file_and_ends_by_stop(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.live()
    wait_for("images", lambda: bench.now.acquired > 5)
    assert (bench.now.expected, bench.now.filename, bench.now.progress) == (0, "", 0.0)
    assert bench.now.rate > 0
    bench.acquisition.stop()
    bench.wait(State.IDLE)
    assert "Stop" in bench.now.status
    assert bench.acquisition.settings.trigger_mode is TriggerMode.SOFTWARE
    bench.good_series()


def test_frames_missing_leave_idle_with_a_sentence(bench: Bench) -> None:
    bench.backend.lose = 2
    bench.acquisition.change(n_frames_per_trigger=5)
    bench.acquisition.arm(FILE)
    bench.wait(State.IDLE)
    assert bench.now.missing == 2
    assert "2 of 5 frames are missing" in bench.now.last_error
    assert "2 of 5 frames are missing" in bench.now.status
    bench.good_series()


# --- refused at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exposure_time": 0.5, "frame_time": 0.4}, "FrameTime 0.4 s is shorter"),
        ({"trigger_mode": TriggerMode.EXTERNAL_GATE, "n_frames_per_trigger": 2}, "each gate is one frame"),
    ],
)
def test_settings_that_do_not_go_together(bench: Bench, changes: dict[str, Any], words: str) -> None:
    bench.acquisition.change(**changes)
    with pytest.raises(ConfigError, match=words):
        bench.acquisition.arm(FILE)
    assert bench.now.state is State.IDLE and "arm" not in bench.backend.calls
    bench.acquisition.change(exposure_time=0.1, frame_time=0.0)
    bench.good_series()


def test_single_settings(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="no EXTERNAL_SINGLE; can be INTERNAL, SOFTWARE"):
        bench.acquisition.change(trigger_mode=TriggerMode.EXTERNAL_SINGLE)
    with pytest.raises(ConfigError, match="bad luck"):
        bench.acquisition.change(bit_depth=13)
    assert bench.acquisition.settings == Settings()
    bench.acquisition.change(exposure_time=0.12345)
    assert bench.acquisition.settings.exposure_time == 0.123, "what was accepted is shown"


def test_the_receiver_says_no(bench: Bench) -> None:
    bench.receiver.refusal = "/d/a.h5: no room; make some"
    with pytest.raises(ConfigError, match="no room; make some"):
        bench.acquisition.arm(FILE)
    assert bench.receiver.calls[-1] == "check /d/a.h5 400", "announced size: one frame of 10 x 20 uint16"
    bench.receiver.refusal = ""
    bench.receiver.now = ReceiverSnapshot(state="running", file="/d/other.h5", series=3, opened=3)
    with pytest.raises(ConfigError, match="running with /d/other.h5; give the command Stop"):
        bench.acquisition.arm(FILE)
    bench.acquisition.stop()
    wait_for("the stop", lambda: bench.receiver.now.state == "idle")
    bench.good_series()


def test_an_error_between_two_series_is_acknowledged(bench: Bench) -> None:
    bench.receiver.now = ReceiverSnapshot(state="error", error="a stray message")
    bench.good_series()
    assert "reset" in bench.receiver.calls
    bench.receiver.now = ReceiverSnapshot(state="error", error="broken", file="/d/open.h5")
    with pytest.raises(ReceiverError, match="broken; give the command Reset"):
        bench.acquisition.arm(FILE)
    bench.reset()
    bench.good_series()


def test_overwriting_needs_the_property(make: Callable[..., Bench]) -> None:
    request = replace(FILE, policy=OverwritePolicy.OVERWRITE)
    bench = make().begin()
    with pytest.raises(ConfigError, match="AllowOverwrite"):
        bench.acquisition.arm(request)
    allowed = make(allow_overwrite=True).begin()
    allowed.acquisition.arm(request)
    allowed.wait(State.IDLE)
    assert allowed.backend.series and not allowed.backend.series.overwrite, "there was nothing to overwrite"


def test_no_second_arm_and_no_settings_while_running(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    with pytest.raises(ConfigError, match="not while running"):
        bench.acquisition.arm(FILE)
    with pytest.raises(ConfigError, match="while running"):
        bench.acquisition.change(exposure_time=1.0)
    with pytest.raises(ConfigError, match="Stop"):
        bench.acquisition.reset()
    with pytest.raises(ConfigError, match="Stop"):
        bench.acquisition.restart_receiver()
    with pytest.raises(ConfigError, match="Stop"):
        bench.acquisition.call(lambda b: None, "knob", while_busy=False)
    assert bench.acquisition.call(lambda b: b.temperature, "knob") == 20.0
    bench.acquisition.stop()
    bench.wait(State.IDLE)


# --- errors of a series -----------------------------------------------------------------------------------------------


def test_the_hardware_refuses_to_arm(bench: Bench) -> None:
    bench.backend.errors["arm"] = HardwareError("PUT arm: 503")
    bench.acquisition.arm(FILE)
    assert "PUT arm: 503" in bench.fault()
    with pytest.raises(ConfigError, match="not while fault"):
        bench.acquisition.arm(FILE)
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_the_receiver_never_opens(bench: Bench) -> None:
    bench.receiver.opens = False
    bench.acquisition.arm(FILE)
    assert "did not open series 1 within 0.3 s; is it connected to tcp://127.0.0.1:9999" in bench.fault()
    assert bench.backend.calls[-1] == "stop"
    bench.receiver.opens = True
    bench.reset()
    bench.good_series()


def test_the_receiver_cannot_open(bench: Bench) -> None:
    bench.receiver.opens = False
    bench.acquisition.arm(FILE)
    bench.receiver.now = replace(bench.receiver.now, state="error", error="/d/a.h5: exists", series=1)
    assert "/d/a.h5: exists" in bench.fault() and "within" not in bench.now.last_error
    bench.receiver.opens = True
    bench.reset()
    bench.good_series()


def test_leftovers_before_the_start_message_are_no_error_of_the_series(bench: Bench) -> None:
    bench.receiver.opens = False
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.arm(FILE)
    bench.receiver.now = replace(bench.receiver.now, state="error", error="image 3 belongs to no open series")
    time.sleep(0.05)
    assert bench.now.state is State.ARMING
    bench.receiver.opens = True
    assert bench.backend.series is not None
    bench.receiver.now = replace(bench.receiver.now, error="")
    bench.receiver.begin(bench.backend.series)
    bench.wait(State.RUNNING)
    bench.acquisition.stop()
    bench.wait(State.IDLE)
    bench.receiver.opens = False
    bench.acquisition.arm(FILE)
    bench.receiver.now = replace(bench.receiver.now, state="error", error="the disk is gone", series=0)
    assert "did not open series 2 within 0.3 s (the disk is gone)" in bench.fault()


def test_the_receiver_never_closes(bench: Bench) -> None:
    bench.backend.sends_end = False
    bench.acquisition.arm(FILE)
    assert "did not close series 1 within 0.3 s" in bench.fault()
    assert "stop 1" in bench.receiver.calls, "what came is kept"
    bench.backend.sends_end = True
    bench.reset()
    bench.good_series()


def test_the_receiver_hangs_for_good(bench: Bench) -> None:
    bench.receiver.closes = False
    bench.acquisition.arm(FILE)
    bench.fault()
    bench.receiver.closes = True
    bench.reset()
    bench.good_series()


def test_the_hardware_fails_in_mid_series(bench: Bench) -> None:
    bench.acquisition.change(n_frames_per_trigger=1000)
    bench.acquisition.arm(FILE)
    wait_for("frames", lambda: bench.now.acquired > 3)
    bench.backend.errors["status"] = HardwareError("link down")
    assert "link down" in bench.fault()
    assert bench.receiver.now.closed == 1, "the file is closed"
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_the_hardware_reports_an_error(bench: Bench) -> None:
    bench.acquisition.change(n_frames_per_trigger=1000)
    bench.acquisition.arm(FILE)
    wait_for("frames", lambda: bench.now.acquired > 3)
    bench.backend.now = Status(Phase.ERROR, 4, message="sensor too hot")
    assert "sensor too hot" in bench.fault()
    bench.backend.now = Status(Phase.IDLE)
    bench.reset()
    bench.good_series()


def test_the_hardware_falls_silent(bench: Bench) -> None:
    bench.backend.silent_at = 3
    bench.acquisition.change(n_frames_per_trigger=10, exposure_time=0.01)
    bench.acquisition.arm(FILE)
    assert "gave no frame for 0.322 s (3 of 10 frames came)" in bench.fault()
    bench.backend.silent_at = -1
    bench.reset()
    bench.good_series()


def test_the_receiver_takes_nothing(bench: Bench) -> None:
    bench.backend.blocked = True
    bench.acquisition.arm(FILE)
    assert "taken no frame" in bench.fault()
    bench.backend.blocked = False
    bench.reset()
    bench.good_series()


def test_waiting_for_triggers_has_a_limit_only_when_it_is_set(make: Callable[..., Bench]) -> None:
    patient, hasty = make().begin(), make(trigger_timeout=0.3).begin()
    for bench in (patient, hasty):
        bench.acquisition.change(trigger_mode=TriggerMode.EXTERNAL_MULTI, n_triggers=4)
        bench.acquisition.arm(FILE)
    assert "no trigger for 0.3 s (property TriggerTimeout): 0 of 4 triggers" in hasty.fault()
    time.sleep(0.2)
    assert patient.now.state is State.RUNNING
    patient.acquisition.stop()
    patient.wait(State.IDLE)
    hasty.reset()
    hasty.good_series()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"opened": 0, "openings": 0, "closed": 0, "state": "idle"}, "was restarted"),
        ({"opened": 9, "openings": 9, "closings": 9, "state": "idle", "file": ""}, "began series 9 during series 1"),
        ({"state": "error", "error": "disk full"}, "disk full"),
        ({"closed": 1, "closings": 1, "state": "idle", "file": ""}, "before its end"),
    ],
)
def test_the_receiver_gives_up_in_mid_series(bench: Bench, change: dict[str, Any], words: str) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.receiver.now = replace(bench.receiver.now, **change)
    assert words in bench.fault()
    assert "stop" in bench.backend.calls
    bench.reset()
    bench.good_series()


def test_the_receiver_dies_in_mid_series(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.receiver.unreachable = True
    begun = time.monotonic()
    assert "does not answer" in bench.fault()
    assert time.monotonic() - begun < 5
    bench.acquisition.reset()
    bench.wait(State.NO_RECEIVER)
    bench.receiver.unreachable = False
    bench.receiver.now = ReceiverSnapshot()
    bench.wait(State.IDLE)
    bench.good_series()


def test_refused_frames_do_not_end_the_series_but_are_a_fault_in_the_end(bench: Bench) -> None:
    bench.acquisition.change(n_frames_per_trigger=50)
    bench.acquisition.arm(FILE)
    wait_for("frames", lambda: bench.now.acquired > 3)
    bench.receiver.now = replace(bench.receiver.now, state="error", error="image 3 refused: wrong shape", rejected=1)
    assert "wrong shape" in bench.fault()
    assert bench.now.acquired == 50
    bench.reset()
    bench.good_series()


# --- stop and abort -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abort", [False, True])
def test_stop_in_every_state(make: Callable[..., Bench], abort: bool) -> None:
    bench = make().begin()
    bench.acquisition.stop(abort)  # idle
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE, n_triggers=5)
    bench.backend.block_arm = True
    bench.acquisition.arm(FILE)  # arming, for as long as an Eiger may take
    bench.acquisition.stop(abort)
    bench.acquisition.stop(abort)
    bench.wait(State.IDLE)
    assert State.STOPPING in bench.states()
    assert bench.now.last_error == ""
    bench.backend.block_arm = False
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.acquisition.trigger()
    wait_for("a frame", lambda: bench.now.acquired == 1)
    bench.acquisition.stop(abort)
    bench.wait(State.IDLE)
    assert (bench.now.written, bench.now.missing, bench.now.last_error) == (1, 0, "")
    assert "ended by" in bench.now.status
    bench.receiver.closes = False  # finishing
    bench.acquisition.change(trigger_mode=TriggerMode.INTERNAL, n_triggers=1)
    bench.acquisition.arm(FILE)
    bench.wait(State.FINISHING)
    bench.receiver.closes = True
    bench.acquisition.stop(abort)
    bench.wait(State.IDLE)
    bench.backend.errors["arm"] = HardwareError("broken")
    bench.acquisition.arm(FILE)
    bench.fault()
    bench.acquisition.stop(abort)  # fault
    assert bench.now.state is State.FAULT
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_stop_while_the_receiver_has_not_opened_yet(bench: Bench) -> None:
    bench.receiver.opens = False
    bench.acquisition.arm(FILE)
    bench.acquisition.stop()
    assert "stopped: receiver" in bench.fault(), "the start message is on its way and nobody takes it"
    bench.receiver.opens = True
    bench.reset()
    bench.good_series()


def test_stop_when_the_receiver_does_not_close(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.receiver.closes = False
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.acquisition.stop()
    assert "did not close" in bench.fault()
    bench.receiver.closes = True
    bench.reset()
    bench.good_series()


def test_reset_waits_for_the_file_but_not_for_ever(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.receiver.closes = False
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.acquisition.stop()
    bench.fault()
    begun = time.monotonic()
    bench.reset()
    assert 0.9 < time.monotonic() - begun < 2.5
    bench.acquisition.change(trigger_mode=TriggerMode.INTERNAL)
    with pytest.raises(ConfigError, match="is running with /d/a.h5"):
        bench.acquisition.arm(FILE)
    bench.receiver.closes = True
    bench.acquisition.stop()
    bench.good_series()


def test_stop_when_the_hardware_does_not(bench: Bench) -> None:
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.backend.errors["stop"] = HardwareError("disarm: 500")
    bench.acquisition.stop()
    assert "disarm: 500" in bench.fault()
    assert bench.receiver.now.closed == 1
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_abort_shortens_a_stop(make: Callable[..., Bench]) -> None:
    bench = make(limits=replace(QUICK, closed=30.0)).begin()
    bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
    bench.receiver.closes = False
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    bench.acquisition.stop()
    bench.wait(State.STOPPING)
    bench.acquisition.stop(abort=True)
    bench.fault()


@pytest.mark.parametrize("moment", ["idle", "arming", "running", "fault", "offline"])
def test_the_end_of_the_device_in_every_state(moment: str) -> None:
    with ExitStack() as stack:
        bench = Bench(stack)
        if moment == "offline":
            bench.backend.errors["connect"] = HardwareError("no route")
        bench.begin(State.OFFLINE if moment == "offline" else State.IDLE)
        bench.acquisition.change(trigger_mode=TriggerMode.SOFTWARE)
        bench.backend.block_arm = moment == "arming"
        if moment == "fault":
            bench.backend.errors["arm"] = HardwareError("broken")
        if moment not in ("idle", "offline"):
            bench.acquisition.arm(FILE)
        if moment in ("running", "fault"):
            bench.wait(State.RUNNING if moment == "running" else State.FAULT)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2.5
    assert "acquisition" not in {t.name for t in threading.enumerate()}
    assert bench.backend.calls[-1] == "close" and bench.receiver.calls[-1] == "close"
    if moment == "running":
        assert bench.receiver.now.closed == 1, "the file is closed"


# --- hardware and receiver come and go ------------------------------------------------------------------------------


def test_hardware_that_comes_later_gets_the_settings(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.errors["connect"] = HardwareError("no route to host")
    bench.begin(State.OFFLINE)
    assert "no route to host" in bench.now.status
    bench.acquisition.change(exposure_time=0.25)
    bench.acquisition.change(bit_depth=13)  # nobody can know yet that this is refused
    bench.acquisition.change(n_triggers=7)
    assert bench.acquisition.settings.n_triggers == 7
    bench.backend.errors.clear()
    bench.wait(State.IDLE)
    assert bench.acquisition.settings == Settings(exposure_time=0.25, n_triggers=7)
    assert "bad luck" in bench.now.last_error and "kept setting" in bench.now.status
    bench.good_series()


def test_hardware_lost_while_idle_comes_back(bench: Bench) -> None:
    bench.backend.errors["status"] = HardwareError("cable")
    bench.wait(State.OFFLINE)
    assert "cable" in bench.now.last_error
    assert bench.now.readings == {}, "what was read before is not of now"
    with pytest.raises(ConfigError, match="cable"):
        bench.acquisition.arm(FILE)
    bench.backend.errors.clear()
    bench.wait(State.IDLE)
    assert bench.now.last_error == ""
    bench.good_series()


def test_a_configuration_that_cannot_work_is_a_fault(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.backend.errors["connect"] = ConfigError("host: is no detector")
    bench.begin(State.FAULT)
    assert "is no detector" in bench.fault()


def test_the_receiver_goes_and_comes_back_while_idle(bench: Bench) -> None:
    bench.receiver.unreachable = True
    bench.wait(State.NO_RECEIVER)
    assert "does not answer" in bench.now.status and bench.now.receiver_state == "unreachable"
    with pytest.raises(ReceiverError, match="does not answer"):
        bench.acquisition.arm(FILE)
    bench.acquisition.stop()
    bench.receiver.unreachable = False
    bench.wait(State.IDLE)
    bench.good_series()


def test_no_receiver_at_all(make: Callable[..., Bench]) -> None:
    bench = make(receiver=None).begin(State.NO_RECEIVER)
    assert "property Receiver" in bench.now.status
    assert bench.acquisition.picture() is None and bench.acquisition.picture_number() == -1
    bench.acquisition.change(exposure_time=0.2)
    with pytest.raises(DaqError, match="property Receiver"):
        bench.acquisition.arm(FILE)


OWN = (7, np.full((2, 3), 5, np.uint32))


def shown(bench: Bench) -> int:
    """Number of the image that viewers get, of which all three ways must tell the same."""
    acquisition = bench.acquisition
    picture, number, video = acquisition.picture(), acquisition.picture_number(), acquisition.video_image()
    if picture is None:
        assert (number, video) == (-1, imaging.NO_VIDEO_IMAGE)
        return -1
    assert number == picture.number
    assert video == imaging.video_image(picture.array, picture.number)
    return number


def test_the_hardwares_own_picture_is_shown_where_the_receiver_has_none(bench: Bench) -> None:
    bench.backend.kept = OWN
    assert shown(bench) == 3, "the receiver has one"
    bench.receiver.shown = None
    assert shown(bench) == 7
    bench.backend.kept = None
    assert shown(bench) == -1


def test_the_hardwares_own_picture_until_the_first_frame_of_a_series(bench: Bench) -> None:
    bench.acquisition.change(n_frames_per_trigger=5, trigger_mode=TriggerMode.SOFTWARE)
    bench.acquisition.arm(FILE)
    bench.wait(State.RUNNING)
    assert shown(bench) == 3, "an old one is better than none"
    bench.backend.kept = OWN
    assert shown(bench) == 7
    bench.backend.silent_at = 2
    bench.acquisition.trigger()
    wait_for("a frame", lambda: bench.now.received)
    assert shown(bench) == 3
    bench.acquisition.stop()
    bench.wait(State.IDLE)


def test_the_hardwares_own_picture_where_the_receiver_does_not_answer(make: Callable[..., Bench]) -> None:
    bench = make().begin()
    bench.receiver.unreachable = True
    with pytest.raises(ReceiverError):
        bench.acquisition.picture()
    bench.backend.kept = OWN
    assert shown(bench) == 7
    alone = make(receiver=None).begin(State.NO_RECEIVER)
    alone.backend.kept = OWN
    assert shown(alone) == 7


def test_restart_the_receiver(bench: Bench) -> None:
    bench.acquisition.restart_receiver()
    wait_for("the restart", lambda: "restart" in bench.receiver.calls and bench.now.status == "ready")
    bench.good_series()


def test_restarting_the_receiver_hides_no_fault(bench: Bench) -> None:
    bench.backend.errors["arm"] = HardwareError("no high voltage")
    bench.acquisition.arm(FILE)
    assert "no high voltage" in bench.fault()
    bench.acquisition.restart_receiver()
    wait_for("the restart", lambda: "restart" in bench.receiver.calls)
    bench.acquisition.call(lambda b: None, "anything after it")
    assert "no high voltage" in bench.now.status and "no high voltage" in bench.now.last_error
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_readings_with_an_alarm_level_are_kept_up_to_date(bench: Bench) -> None:
    assert bench.now.readings == {"Temperature": 20.0}
    bench.backend.temperature = 99.0
    wait_for("the reading", lambda: bench.now.readings == {"Temperature": 99.0})


def test_a_backend_with_a_bug_is_a_fault_and_not_the_end(bench: Bench) -> None:
    bench.backend.errors["arm"] = RuntimeError("bug")
    bench.acquisition.arm(FILE)
    assert "internal error: RuntimeError('bug')" in bench.fault()
    assert bench.backend.calls[-1] == "stop"
    with pytest.raises(HardwareError, match="internal error"):
        bench.acquisition.call(lambda b: 1 / 0, "knob")
    bench.backend.errors.clear()
    bench.reset()
    bench.good_series()


def test_a_call_that_hangs_gets_an_answer_in_time(make: Callable[..., Bench]) -> None:
    bench = make(limits=replace(QUICK, reply=0.1)).begin()
    free = threading.Event()
    with pytest.raises(HardwareError, match="no answer within 0.1 s.*it goes on"):
        bench.acquisition.call(lambda b: free.wait(10), "knob")
    late: list[int] = []
    with pytest.raises(HardwareError, match="it is not done"):
        bench.acquisition.call(lambda b: late.append(1), "knob")
    free.set()
    wait_for("an answer", lambda: bench.acquisition.call(lambda b: True, "knob"))
    assert not late


@pytest.mark.slow
def test_a_hundred_series(bench: Bench) -> None:
    threads = threading.active_count()
    for _ in range(100):
        bench.good_series()
    assert threading.active_count() == threads
