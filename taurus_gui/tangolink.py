"""The thread that speaks Tango with one Detector and its receiver: events in, orders out, reconnects by itself. No Qt.

Nothing here is called by the GUI but `start`, `order`, `look_closely`, `close`; all answers go through the mailbox."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from functools import partial
from typing import Any

import tango

from taurus_gui.described import STANDARD, describe, plain
from taurus_gui.mailbox import Mailbox
from taurus_gui.orders import Answer, Connection, Order
from taurus_gui.receiverlink import ReceiverLink

log = logging.getLogger(__name__)

LOOK = 1.0  # s between two looks whether the device is still there
OWN_PERIOD = 2.0  # s between two looks at temperatures
EXPERT_PERIOD = 5.0  # s between two looks at the backend's own parameters, while somebody looks at them
RETRY = 1.0  # s
TIMEOUT = 3000  # ms of a call
END = 5.0  # s that a call may take when the GUI ends
MOST_ORDERS = 100


def words_of(exc: Exception) -> str:
    """What a device says when it refuses."""
    if isinstance(exc, tango.DevFailed) and exc.args:
        return " ".join(str(exc.args[0].desc).split()).rstrip(".")
    return str(exc)


def first_line(exc: Exception) -> str:
    """Of what Tango says about connections the first line is enough."""
    if isinstance(exc, tango.DevFailed) and exc.args:
        return str(exc.args[0].desc).strip().partition("\n")[0].rstrip(".")
    return str(exc)


class TangoLink:
    """`device` is a device name, also tango://host:port/a/b/c."""

    def __init__(self, device: str, mailbox: Mailbox) -> None:
        self.device = device
        self._box = mailbox
        self._orders: queue.Queue[Order | None] = queue.Queue(MOST_ORDERS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tango {device}", daemon=True)
        self._urgent: list[threading.Thread] = []
        self._proxy: tango.DeviceProxy | None = None
        self._own: dict[str, bool] = {}  # the backend's attributes: is it for experts
        self._deaf: set[str] = set()  # of these no events arrive
        self._closely = False
        self._receiver: ReceiverLink | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Bounded: a call that hangs is left to itself."""
        self._stop.set()
        with contextlib.suppress(queue.Full):
            self._orders.put_nowait(None)
        for thread in (self._thread, *self._urgent):
            if thread.is_alive():
                thread.join(END)

    def order(self, order: Order) -> None:
        """Returns at once. Stop and Abort wait for nobody."""
        if order.kind == "command" and order.name in ("Stop", "Abort"):
            self._urgent = [thread for thread in self._urgent if thread.is_alive()]
            thread = threading.Thread(target=self._at_once, args=(order,), name=f"urgent {self.device}", daemon=True)
            self._urgent.append(thread)
            thread.start()
            return
        try:
            self._orders.put_nowait(order)
        except queue.Full:
            self._answer(order, "too much waits for an answer already; try again")

    def look_closely(self, wanted: bool) -> None:
        """Whether somebody looks at the backend's own parameters."""
        if wanted and not self._closely:
            self.order(Order("read", "expert"))
        self._closely = wanted

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with tango.EnsureOmniThread():
            since = time.time()
            while not self._stop.is_set():
                try:
                    proxy, events = self._connect()
                except (tango.DevFailed, RuntimeError) as exc:
                    self._gone(first_line(exc), since)
                    self._wait_away(RETRY)
                    continue
                self._proxy = proxy
                self._box.put("connection", "", Connection(True))
                reason = self._serve(proxy)
                self._proxy = None
                since = time.time()
                if reason:
                    self._gone(reason, since)
                for event in events:
                    with contextlib.suppress(tango.DevFailed, KeyError):
                        proxy.unsubscribe_event(event)

    def _gone(self, reason: str, since: float) -> None:
        self._box.put("connection", "", Connection(False, reason, since))

    def _wait_away(self, seconds: float) -> None:
        """Orders that come meanwhile are refused."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                if order := self._orders.get(timeout=left):
                    self._answer(order, "there is no connection to the device")

    def _connect(self) -> tuple[tango.DeviceProxy, list[int]]:
        proxy = tango.DeviceProxy(self.device)
        proxy.set_timeout_millis(TIMEOUT)
        proxy.ping()
        configs = [describe(config) for config in proxy.attribute_list_query()]
        self._box.put("described", "", {config.name: config for config in configs})
        self._box.put("commands", "", {c.cmd_name: _command_doc(c) for c in proxy.command_list_query()})
        names = {config.name for config in configs if config.kind != "image"}
        self._own = {config.name: config.expert for config in configs if config.name in names - STANDARD}
        watched = sorted(names & STANDARD)
        self._read(proxy, [*watched, *self._own])
        events = []
        self._deaf = set()
        for name in watched:
            try:
                events.append(proxy.subscribe_event(name, tango.EventType.CHANGE_EVENT, partial(self._event, name)))
            except tango.DevFailed as exc:
                self._hears_not(name, first_line(exc))
        found = proxy.get_property("Receiver").get("Receiver") or [""]
        self._receiver = ReceiverLink(str(found[0]).strip(), self.device, self._box)
        self._receiver.look()
        return proxy, events

    def _event(self, name: str, event: tango.EventData) -> None:
        """In a thread of Tango's own; events have names in small letters."""
        if event.err or event.attr_value is None:
            self._hears_not(name, str(event.errors[0].desc) if event.errors else "an event without a value")
            return
        self._deaf.discard(name)
        value = event.attr_value
        if value.quality == tango.AttrQuality.ATTR_INVALID:
            return
        self._box.put("readings", name, plain(value.value))

    def _hears_not(self, name: str, why: str) -> None:
        if not self._deaf:
            log.warning("%s: no events of %s (%s): what sends none is read every second", self.device, name, why)
        self._deaf.add(name)

    def _serve(self, proxy: tango.DeviceProxy) -> str:
        """Until the device does not answer any more; then the reason."""
        due = {"look": 0.0, "own": time.monotonic() + OWN_PERIOD, "expert": time.monotonic() + EXPERT_PERIOD}
        while not self._stop.is_set():
            wait = max(0.0, min(due.values()) - time.monotonic())
            try:
                if order := self._orders.get(timeout=wait):
                    self._do(proxy, order)
                continue
            except queue.Empty:
                now = time.monotonic()
            try:
                if now >= due["look"]:
                    due["look"] = now + LOOK
                    self._read(proxy, sorted({"State", "Status"} | self._deaf))
                    if self._receiver:
                        self._receiver.look()
                if now >= due["own"]:
                    due["own"] = now + OWN_PERIOD
                    self._read(proxy, [name for name, expert in self._own.items() if not expert])
                if now >= due["expert"]:
                    due["expert"] = now + EXPERT_PERIOD
                    if self._closely and proxy.state() not in (tango.DevState.RUNNING, tango.DevState.MOVING):
                        self._read(proxy, [name for name, expert in self._own.items() if expert])
            except tango.DevFailed as exc:
                return first_line(exc)
        return ""

    def _read(self, proxy: tango.DeviceProxy, names: list[str]) -> None:
        """One call for all; None: of the backend's own, one that cannot be read now. DevFailed: nobody answers."""
        if not names:
            return
        values: dict[str, Any] = {}
        for name, value in zip(names, proxy.read_attributes(names), strict=True):
            good = not value.has_failed and value.quality != tango.AttrQuality.ATTR_INVALID
            if good or name in self._own:
                values[name] = plain(value.value) if good else None
        self._box.put_all("readings", values)

    def _do(self, proxy: tango.DeviceProxy, order: Order) -> None:
        try:
            value = self._done(proxy, order)
        except (tango.DevFailed, ValueError, TypeError, OSError) as exc:
            self._answer(order, words_of(exc))
        else:
            self._answer(order, "", value)

    def _done(self, proxy: tango.DeviceProxy, order: Order) -> Any:
        if order.kind == "write":
            try:
                proxy.write_attribute(order.name, order.value)
            finally:  # what it is now, also when it was refused
                self._read(proxy, [order.name])
        elif order.kind == "command":
            proxy.command_inout(order.name)
        elif order.kind == "read":
            self._read(proxy, [name for name, expert in self._own.items() if expert])
        elif self._receiver is None:
            raise ValueError("the receiver is not known")
        elif order.kind == "rois":
            self._receiver.set_rois(order.value)
        else:
            return self._receiver.check(*order.value)
        return None

    def _at_once(self, order: Order) -> None:
        """Thread of its own, with a connection of its own."""
        with tango.EnsureOmniThread():
            try:
                proxy = tango.DeviceProxy(self.device)
                proxy.set_timeout_millis(TIMEOUT)
                proxy.command_inout(order.name)
            except (tango.DevFailed, RuntimeError) as exc:
                self._answer(order, words_of(exc))
            else:
                self._answer(order, "")

    def _answer(self, order: Order, error: str, value: Any = None) -> None:
        self._box.append("answers", Answer(order, error, value))


def _command_doc(command: tango.CommandInfo) -> str:
    doc = str(command.in_type_desc)
    return "" if doc == "Uninitialised" else doc
