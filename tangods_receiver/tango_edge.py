"""Where Python meets Tango: our errors become DevFailed, our log records Tango's, and changes are pushed as events."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import tango
from tango import AttrQuality, DevState
from tango.server import Device, run

from tangods_receiver import logs, systemd
from tangods_receiver.errors import DaqError

log = logging.getLogger(__name__)

PACKAGES = ("tangods_receiver", "tangods_detector")


@contextmanager
def as_dev_failed(origin: str) -> Iterator[None]:
    """Raise a DaqError as a DevFailed: reason is the class name, desc the sentence, origin e.g. "Detector.Arm"."""
    try:
        yield
    except DaqError as exc:
        raise dev_failed(exc, origin) from exc


def dev_failed(exc: DaqError, origin: str) -> tango.DevFailed:
    """The DevFailed that says the same as `exc`."""
    try:
        tango.Except.throw_exception(type(exc).__name__, str(exc), origin)
    except tango.DevFailed as failed:
        return failed
    raise AssertionError("throw_exception returned")


def serve(device: type[Device]) -> None:
    """Run the server of one device class, as the command line says."""
    # s between omniORB's looks at its connections; its end of a server waits as long, 5 s as it comes. Read once, when
    # the process first uses Tango.
    os.environ.setdefault("ORBscanGranularity", "1")
    # Starter has blocked all signals, and what it starts inherits that: SIGTERM would never end such a server
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
    setup_logging()
    run((device,), post_init_callback=lambda: systemd.notify("READY=1"))  # initialised and exported
    log.info("ended")
    gc.freeze()  # what the interpreter does not take apart it does not spend most of a second on


def ending() -> None:
    """In delete_device: tell that the whole server ends, and not only a device before its next Init."""
    if tango.Util.instance().is_svr_shutting_down():
        log.info("stopping: open files are closed first")
        systemd.notify("STOPPING=1", "STATUS=closing what is open")


# --- logging ---------------------------------------------------------------------------------------------------------


def setup_logging(argv: Iterable[str] | None = None) -> None:
    """Python logging to stderr, which Starter keeps (it closes stdout); INFO, or DEBUG with Tango's -v3 and more."""
    level = _verbosity(sys.argv if argv is None else argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logs.formatter(_server(sys.argv)))
    handler.setLevel(logging.DEBUG if level >= 3 else logging.INFO)
    root = logging.getLogger()
    for old in [h for h in root.handlers if getattr(h, "_tangods", False)]:
        root.removeHandler(old)
    handler._tangods = True  # type: ignore[attr-defined]  # so that a second call replaces it
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.DEBUG)  # the handlers choose; Tango's level can be raised at run time


def _server(argv: list[str]) -> str:
    """Detector/b1, of /opt/detector/bin/Detector b1; "" where it was not started so."""
    return f"{os.path.basename(argv[0])}/{argv[1]}" if len(argv) > 1 and not argv[1].startswith("-") else ""


def _verbosity(argv: Iterable[str]) -> int:
    """The number of a `-v4`; `-v` alone is 4, as in Tango; 0 without."""
    for word in argv:
        if word == "-v":
            return 4
        if word.startswith("-v") and word[2:].isdigit():
            return int(word[2:])
    return 0


class TangoLog(logging.Handler):
    """Passes records to the logging targets of one device (admin commands AddLoggingTarget, SetLoggingLevel).

    Several devices in one server each get the records of all of them."""

    def __init__(self, device: tango.server.Device) -> None:
        super().__init__(logging.DEBUG)
        self._streams = {
            logging.DEBUG: device.debug_stream,
            logging.INFO: device.info_stream,
            logging.WARNING: device.warn_stream,
            logging.ERROR: device.error_stream,
            logging.CRITICAL: device.fatal_stream,
        }

    def emit(self, record: logging.LogRecord) -> None:
        level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.CRITICAL))
        try:
            text = self.format(record)
            with tango.EnsureOmniThread():  # a device:: target is a Tango call, made from whatever thread logs
                if stream := self._streams.get(level):
                    stream("%s", text)
        except Exception:  # the contract of logging: a target that fails must never stop the one who logs
            self.handleError(record)

    def close(self) -> None:
        """After this no record reaches the device any more, also not one that is on its way."""
        self.acquire()
        self._streams = {}
        self.release()
        super().close()


def attach_log(device: tango.server.Device) -> TangoLog:
    """Pass our packages' records to the device's targets too, until `detach_log` (in delete_device)."""
    handler = TangoLog(device)
    for name in PACKAGES:
        logging.getLogger(name).addHandler(handler)
    return handler


def detach_log(handler: TangoLog) -> None:
    """Stop passing records; harmless twice."""
    for name in PACKAGES:
        logging.getLogger(name).removeHandler(handler)
    handler.close()


# --- events ----------------------------------------------------------------------------------------------------------


def announce(device: tango.server.Device, *names: str, noisy: bool = False) -> None:
    """Tell Tango that the code pushes change and archive events of State, Status and `names`: no client has to poll.
    `noisy`: Tango passes on only what exceeds abs_change, archive_abs_change .. of `names`, which must have them."""
    for name in names if noisy else ("State", "Status", *names):
        device.set_change_event(name, True, noisy)
        device.set_archive_event(name, True, noisy)


def set_points(device: tango.server.Device, values: Mapping[str, Any]) -> None:
    """What the writable attributes are set to from the start, for panels; in init_device. What is memorised comes
    later, from Tango itself."""
    attributes = device.get_device_attr()
    for name, value in values.items():
        if value == value:  # with NaN, where there is none, Tango would refuse to show the attribute at all
            attributes.get_w_attr_by_name(name).set_write_value(value)


def push(device: tango.server.Device, name: str, value: Any) -> AttrQuality:
    """Push one attribute to subscribers, with the quality that its alarm limits give it. From a thread of ours this
    waits while the device executes a command (at most 3.2 s, then DevFailed): threads that `delete_device` joins use
    `EventPusher` instead."""
    with tango.AutoTangoMonitor(device):
        quality = _quality(device, name, value)
        for send in (device.push_change_event, device.push_archive_event):
            if quality is AttrQuality.ATTR_VALID:
                send(name, value)
            else:
                send(name, value, time.time(), quality)
    return quality


def _quality(device: tango.server.Device, name: str, value: Any) -> AttrQuality:
    """As Tango finds it for who reads; in events it looks at no limits."""
    if not isinstance(value, int | float) or isinstance(value, bool | DevState):
        return AttrQuality.ATTR_VALID
    shown = device.get_device_attr().get_attr_by_name(name)
    shown.set_value(value)
    try:
        shown.check_alarm()
    except tango.DevFailed:  # it has no limits
        return AttrQuality.ATTR_VALID
    return shown.get_quality()


def push_state(device: tango.server.Device) -> None:
    """Push State and Status as a client would read them now (with Tango's alarm logic); see `push` about threads."""
    with tango.EnsureOmniThread(), tango.AutoTangoMonitor(device):  # dev_state may read attributes
        push(device, "State", device.dev_state())
        status = device.dev_status()
        push(device, "Status", status)
    systemd.notify(f"STATUS={device.get_name()}: {status}")


class AlarmedDevice(Device):
    """A device whose Status tells which attribute is in its alarm limits, whether or not State is read, too."""

    _found: DevState | None = None  # by the request that reads attributes now
    _looking = False

    def show(self) -> None:
        """Set State and Status, without a look at limits."""
        raise NotImplementedError

    def always_executed_hook(self) -> None:
        self._found = None
        self.show()

    def read_attr_hardware(self, attributes: Any) -> None:
        """Once before the attributes of a request are read. Tango's dev_state reads those that have limits, too, and
        forgets what the same request has read of them: it must come before."""
        if not self._looking:
            self._looking = True
            try:
                self._found = self.dev_state()
            finally:
                self._looking = False

    def dev_state(self) -> DevState:
        self.show()
        return super().dev_state()

    def dev_status(self) -> str:
        state = self.dev_state() if self._found is None else self._found
        self.show()
        self.set_state(state)  # in ALARM Tango adds which attribute it is
        text = str(super().dev_status())
        self.show()
        return text


class EventPusher:
    """Pushes a device's events from a thread of its own, so that nobody who has news ever waits for Tango.

    State and Status are pushed at once, before values, and when a value comes into its alarm limits or out of them. Of
    several values of one attribute that come within `interval` s, or while the device is busy, only the newest is
    pushed; the last one always is. Tango pushes the state that the device has at that moment: a command that must show
    a passing state (Arm: MOVING) calls `push_state(device)` itself.
    Start the pusher in init_device, close it first of all in delete_device."""

    def __init__(self, device: tango.server.Device, interval: float = 0.1) -> None:
        self._device = device
        self._interval = interval
        self._changed = threading.Condition()
        self._values: dict[str, Any] = {}
        self._qualities: dict[str, AttrQuality] = {}
        self._state = False
        self._pushing = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"events {device.get_name()}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def push(self, name: str, value: Any) -> None:
        """The attribute has a new value; returns at once, from any thread."""
        with self._changed:
            self._values[name] = value
            self._changed.notify()

    def push_state(self) -> None:
        """Call it after set_state or set_status; returns at once, from any thread."""
        with self._changed:
            self._state = True
            self._changed.notify()

    def close(self, timeout: float = 0.5) -> None:
        """No event after this; safe twice. A push that waits for the command that is calling us is left to end by
        itself: `delete_device` holds the device, and the push could only go on after it."""
        with self._changed:
            self._closed = True
            waiting_for_us = self._pushing
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(min(timeout, 0.1) if waiting_for_us else timeout)

    def _run(self) -> None:
        with tango.EnsureOmniThread():
            due = 0.0
            while (work := self._take(due)) is not None:
                state, values = work
                if values:
                    due = time.monotonic() + self._interval
                self._push_all(state, values)

    def _take(self, due: float) -> tuple[bool, dict[str, Any]] | None:
        """Wait for something to push; values not before `due`. None: closed."""
        with self._changed:
            self._pushing = False
            while not self._closed:
                wait = due - time.monotonic()
                if self._state or (self._values and wait <= 0):
                    state, self._state = self._state, False
                    values: dict[str, Any] = {}
                    if wait <= 0:
                        values, self._values = self._values, {}
                    self._pushing = True
                    return state, values
                self._changed.wait(wait if self._values else None)
            return None

    def _push_all(self, state: bool, values: dict[str, Any]) -> None:
        if state and not self._pushed("State", partial(push_state, self._device)):
            with self._changed:
                self._state = True
        for name, value in values.items():
            if self._closed:
                return
            if not self._pushed(name, partial(self._push, name, value)):
                with self._changed:
                    self._values.setdefault(name, value)

    def _push(self, name: str, value: Any) -> None:
        quality = push(self._device, name, value)
        if quality is not self._qualities.get(name, AttrQuality.ATTR_VALID):
            self.push_state()
        self._qualities[name] = quality

    @staticmethod
    def _pushed(name: str, call: Callable[[], object]) -> bool:
        """False: try again, the device was busy for 3.2 s or is not exported yet. What Tango refuses is given up."""
        try:
            call()
        except tango.DevFailed as exc:
            reason = exc.args[0].reason
            if reason == "API_DeviceNotFound":  # the server is still starting: nobody can have subscribed yet
                time.sleep(0.05)
            if reason in ("API_CommandTimedOut", "API_DeviceNotFound"):
                return False
            log.error("event of %s not pushed: %s", name, exc.args[0].desc)
        except Exception:  # outermost loop of this thread: one wrong value must not end all events
            log.exception("event of %s not pushed", name)
        return True
