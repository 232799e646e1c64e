"""Errors, log records and events on their way to Tango."""

import logging
import threading
import time
from collections.abc import Callable

import pytest
import tango
from tango.server import Device, attribute, command

from tangods_receiver import tango_edge
from tangods_receiver.errors import ConfigError, DaqError, HardwareError, StreamError, WriteError
from tests.tangocontext import started
from tests.waiting import wait_for

log = logging.getLogger("tangods_receiver.test_tango_edge")


class Edgy(Device):
    """Raises, logs and pushes."""

    def init_device(self) -> None:
        super().init_device()
        self.set_state(tango.DevState.ON)
        self._count = 0
        tango_edge.announce(self, "Count", "Other")
        self._log = tango_edge.attach_log(self)
        self._events = tango_edge.EventPusher(self)
        self._events.start()

    def delete_device(self) -> None:
        self._events.close()
        tango_edge.detach_log(self._log)
        super().delete_device()

    @attribute(dtype=int, max_warning=1000)
    def Count(self) -> int:
        return self._count

    @attribute(dtype=int)
    def Other(self) -> int:
        return 0

    @command(dtype_in=str)
    def Fail(self, name: str) -> None:
        with tango_edge.as_dev_failed("Edgy.Fail"):
            raise {c.__name__: c for c in (DaqError, ConfigError, HardwareError, StreamError, WriteError)}[name](
                f"{name} was provoked; do nothing"
            )

    @command
    def FailOtherwise(self) -> None:
        with tango_edge.as_dev_failed("Edgy.FailOtherwise"):
            raise KeyError("not of the family")

    @command(dtype_in=str)
    def Say(self, text: str) -> None:
        thread = threading.Thread(target=lambda: log.warning("%s, 100 %%", text))
        thread.start()
        thread.join()

    @command(dtype_in=int)
    def CountTo(self, last: int) -> None:
        for self._count in range(last + 1):
            self._events.push("Count", self._count)

    @command
    def PushState(self) -> None:
        self._events.push_state()

    @command(dtype_in=float)
    def RunThen(self, seconds: float) -> None:
        self.set_state(tango.DevState.RUNNING)
        self.set_status("it runs")
        self._events.push_state()
        time.sleep(seconds)

    @command
    def PassThrough(self) -> None:
        """States that are all over when the command returns."""
        for state in (tango.DevState.MOVING, tango.DevState.RUNNING, tango.DevState.ON):
            self.set_state(state)
            self.set_status(f"now {state}")
            tango_edge.push_state(self)

    @command
    def PushNonsense(self) -> None:
        self._events.push("Nowhere", 1)
        self._events.push("Other", "no number")
        self._events.push("Count", 7)

    @command(dtype_in=float, dtype_out=float)
    def CloseEvents(self, busy: float) -> float:
        """Seconds that closing takes while the pusher waits for this very command."""
        self._events.push_state()
        time.sleep(busy)
        began = time.monotonic()
        self._events.close()
        self._events.close()
        return time.monotonic() - began


@pytest.fixture
def device():
    with started(Edgy) as proxy:
        yield proxy


class Seen:
    """What a subscriber was told."""

    def __init__(self, proxy: tango.DeviceProxy, name: str, kind: tango.EventType = tango.EventType.CHANGE_EVENT):
        self.values: list = []
        self.times: list[float] = []
        self._proxy = proxy
        self._id = proxy.subscribe_event(name, kind, self._event)

    def _event(self, event: tango.EventData) -> None:
        if not event.err:
            self.values.append(event.attr_value.value)
            self.times.append(time.monotonic())

    def __enter__(self) -> "Seen":
        return self

    def __exit__(self, *exc: object) -> None:
        self._proxy.unsubscribe_event(self._id)


def connect(seen: Seen, push: Callable[[], None]) -> None:
    """Tango connects a first subscriber in the background and loses what is pushed before: push until one comes, and
    until no more of them do."""
    wait_for(lambda: seen.values)
    wait_for(lambda: push() or _settled(seen) > 1)


def _settled(seen: Seen) -> int:
    """How many it was told of, once none has come for a while."""
    number = -1
    while number != (number := len(seen.values)):
        time.sleep(0.15)
    return number


@pytest.mark.parametrize("name", ["DaqError", "ConfigError", "HardwareError", "StreamError", "WriteError"])
def test_an_error_of_ours_becomes_a_dev_failed_with_its_name(name):
    with pytest.raises(tango.DevFailed) as failed:
        with tango_edge.as_dev_failed("Somewhere.Command"):
            raise {c.__name__: c for c in (DaqError, ConfigError, HardwareError, StreamError, WriteError)}[name]("why")
    assert [(e.reason, e.desc, e.origin) for e in failed.value.args] == [(name, "why", "Somewhere.Command")]
    assert type(failed.value.__cause__).__name__ == name


def test_other_errors_pass_untouched():
    with pytest.raises(KeyError), tango_edge.as_dev_failed("x"):
        raise KeyError("y")
    with tango_edge.as_dev_failed("x"):
        pass


def test_a_client_reads_reason_and_sentence(device):
    with pytest.raises(tango.DevFailed) as failed:
        device.Fail("WriteError")
    first = failed.value.args[0]
    assert (first.reason, first.desc, first.origin) == (
        "WriteError",
        "WriteError was provoked; do nothing",
        "Edgy.Fail",
    )
    with pytest.raises(tango.DevFailed, match="not of the family"):
        device.FailOtherwise()


def test_records_reach_the_logging_target_of_the_device(device, tmp_path):
    admin = tango.DeviceProxy(device.adm_name())
    target = tmp_path / "device.log"
    admin.AddLoggingTarget([device.dev_name(), f"file::{target}"])
    admin.SetLoggingLevel([[4], [device.dev_name()]])
    device.Say("a thread of ours says this")
    wait_for(lambda: "a thread of ours says this, 100 %" in target.read_text())
    device.Init()  # attached again, once
    device.Say("second")
    wait_for(lambda: "second" in target.read_text())
    assert target.read_text().count("second") == 1


def test_a_record_after_detaching_goes_nowhere():
    calls = []

    class Streams:
        def __getattr__(self, name):
            return lambda *args: calls.append((name, args))

    handler = tango_edge.attach_log(Streams())
    log.error("one")
    tango_edge.detach_log(handler)
    log.error("two")
    handler.emit(logging.makeLogRecord({"msg": "late", "levelno": logging.INFO}))
    tango_edge.detach_log(handler)
    assert calls == [("error_stream", ("%s", "one"))]


@pytest.mark.parametrize(
    ("argv", "level"),
    [([], 20), (["x", "-v"], 10), (["x", "-v1"], 20), (["x", "-v4"], 10), (["x", "-v0"], 20), (["-vx"], 20)],
)
def test_stderr_gets_the_records_and_only_once(argv, level, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    levels = {name: logging.getLogger(name).level for name in ("", *tango_edge.PACKAGES)}
    try:
        tango_edge.setup_logging(argv)
        tango_edge.setup_logging(argv)
        log.info("news")
        log.debug("detail")
        (handler,) = logging.getLogger().handlers
        assert handler.level == level
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("news") == 1
        assert ("detail" in err) == (level == logging.DEBUG)
    finally:
        logging.captureWarnings(False)
        for name, old in levels.items():
            logging.getLogger(name).setLevel(old)


@pytest.mark.parametrize("kind", [tango.EventType.CHANGE_EVENT, tango.EventType.ARCHIVE_EVENT])
def test_many_values_become_few_events_and_the_last_one_is_pushed(device, kind):
    with Seen(device, "Count", kind) as seen:
        connect(seen, lambda: device.CountTo(0))
        before = len(seen.values)
        device.CountTo(500)
        wait_for(lambda: seen.values[-1:] == [500])
        assert len(seen.values) < before + 10


@pytest.mark.slow
def test_values_are_pushed_ten_times_a_second_at_most(device):
    with Seen(device, "Count") as seen:
        wait_for(lambda: seen.values)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            device.CountTo(3)
        began, count = seen.times[0], len(seen.values)
        assert count <= 2 + (time.monotonic() - began) / 0.1


def test_state_events_agree_with_reads_also_in_alarm(device):
    with Seen(device, "State") as states, Seen(device, "Status") as texts:
        connect(states, device.PushState)
        connect(texts, device.PushState)
        device.CountTo(2000)  # above max_warning: ON becomes ALARM
        device.PushState()
        wait_for(lambda: states.values[-1] == device.State() == tango.DevState.ALARM)
        device.RunThen(0.0)
        wait_for(lambda: states.values[-1] == device.State() == tango.DevState.RUNNING)
        wait_for(lambda: "it runs" in texts.values[-1])


@pytest.mark.slow
def test_a_state_pushed_during_a_long_command_arrives_after_it(device):
    device.set_timeout_millis(10000)
    with Seen(device, "State") as states:
        device.RunThen(3.6)  # longer than Tango lets a push wait
        wait_for(lambda: states.values[-1] == tango.DevState.RUNNING)


def test_a_command_can_push_passing_states_in_order(device):
    on, moving, running = tango.DevState.ON, tango.DevState.MOVING, tango.DevState.RUNNING
    with Seen(device, "State") as states, Seen(device, "Status") as texts:
        connect(states, device.PassThrough)
        connect(texts, device.PassThrough)
        first, begin = len(states.values), len(texts.values)
        device.PassThrough()
        wait_for(lambda: states.values[first:] == [moving, running, on])
        wait_for(lambda: texts.values[begin:] == ["now MOVING", "now RUNNING", "now ON"])


def test_a_wrong_value_does_not_end_the_events(device):
    with Seen(device, "Count") as seen:
        connect(seen, lambda: device.CountTo(0))
        device.PushNonsense()
        wait_for(lambda: seen.values[-1:] == [7])


def test_closing_from_a_command_does_not_wait_for_that_command(device):
    assert device.CloseEvents(0.3) < 0.3  # the pusher waits for us
    device.Init()
    assert device.State() == tango.DevState.ON


def test_a_pusher_that_never_started_can_be_closed():
    class Named:
        def get_name(self):
            return "a/b/c"

    before = threading.active_count()
    pusher = tango_edge.EventPusher(Named())
    pusher.push("x", 1)
    pusher.close()
    assert threading.active_count() == before
