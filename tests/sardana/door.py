"""Runs macros through a Door and hears what they say."""

from __future__ import annotations

import bz2
import contextlib
import json
import threading
import time
from typing import Any

import tango

DONE = {"finish", "stop", "abort", "exception"}
ALARM_LASTS = 3.0  # s; events come late on a busy machine
LEVELS = ("Output", "Info", "Warning", "Error", "Critical")


class MacroError(RuntimeError):
    """The macro did not finish; the text has what the Door said."""


def _decoded(encoding: str, data: bytes) -> Any:
    """Such as "bz2_utf8_json"; Taurus' own decoder drags in half of Taurus."""
    if encoding.startswith("bz2_"):
        data = bz2.decompress(data)
    return json.loads(data)


class DoorRunner:
    """`run("ascan", "mot01", 0, 1, 4, 0.02)`; what the macro printed is in `out` as (level, line)."""

    def __init__(self, door: tango.DeviceProxy) -> None:
        self.door = door
        self.door.set_timeout_millis(20000)
        self.out: list[tuple[str, str]] = []
        self.last: dict[str, Any] | None = None
        self._done = threading.Event()
        self._top: str | None = None
        self._listening = True
        self.result: list[str] = []  # reading the attribute gives nothing, it comes as an event only
        self._ids = [self._subscribe("MacroStatus", self._status), self._subscribe("Result", self._take_result)]
        self._ids += [self._subscribe(level, self._log(level)) for level in LEVELS]

    def _subscribe(self, name: str, callback: Any) -> int:
        return int(self.door.subscribe_event(name, tango.EventType.CHANGE_EVENT, callback))

    def close(self) -> None:
        for number in self._ids:
            self.door.unsubscribe_event(number)
        self._ids = []

    def _log(self, level: str) -> Any:
        def callback(event: Any) -> None:
            if not event.err and event.attr_value.value:
                self.out += [(level, line) for line in event.attr_value.value]

        return callback

    def _take_result(self, event: Any) -> None:
        if not event.err:
            self.result = list(event.attr_value.value or [])

    def _status(self, event: Any) -> None:
        if event.err or event.attr_value is None or not event.attr_value.value[1]:
            return
        for state in _decoded(*event.attr_value.value):
            if self._top is None and state["state"] == "start":
                self._top = state["id"]
            if self._top is not None and state["id"] == self._top and state["state"] in DONE:
                self.last = state
                self._done.set()

    def said(self, *levels: str) -> str:
        return "\n".join(line for level, line in list(self.out) if not levels or level in levels)

    def start(self, *macro: object) -> None:
        """Returns when the macro was taken; DevFailed: unknown, or another one runs."""
        self._done.clear()
        self._top, self.last, self.out, self.result = None, None, [], []
        self.door.RunMacro([str(word) for word in macro])

    def wait(self, timeout: float = 60.0) -> list[str]:
        """Until it ends; its result. MacroError: it did not finish well."""
        end = time.monotonic() + timeout
        alarm = float("inf")  # since when it looks as if the parameters were bad: then no status comes
        while not self._done.wait(0.01):
            if self._top is not None or self.door.state() != tango.DevState.ALARM:
                alarm = float("inf")
            elif time.monotonic() > (alarm := min(alarm, time.monotonic())) + ALARM_LASTS:
                raise MacroError(self.said())
            if time.monotonic() > end:
                with contextlib.suppress(tango.DevFailed):
                    self.door.StopMacro()
                self.idle()
                raise MacroError(f"still running after {timeout} s:\n{self.said()}")
        self.idle()
        assert self.last is not None
        if self.last["state"] != "finish":
            raise MacroError(f"{self.last['state']}: {self.last.get('exc_value') or ''}\n{self.said()}")
        return self.result

    def idle(self, limit: float = 30.0) -> None:
        end = time.monotonic() + limit
        while self.door.state() == tango.DevState.RUNNING and time.monotonic() < end:
            time.sleep(0.005)

    def run(self, *macro: object, timeout: float = 60.0) -> list[str]:
        self.start(*macro)
        return self.wait(timeout)

    def ask(self, *macro: object, timeout: float = 60.0) -> list[str]:
        """Of a macro that has a result, whose event may come after that of its end."""
        self.run(*macro, timeout=timeout)
        end = time.monotonic() + 10.0
        while not self.result:
            if time.monotonic() > end:
                raise MacroError(f"{macro[0]} gave no result:\n{self.said()}")
            time.sleep(0.01)
        return self.result

    def stop(self, timeout: float = 30.0) -> None:
        """Ctrl-C, and wait until the macro is over."""
        self.door.StopMacro()
        assert self._done.wait(timeout), f"still running {timeout} s after StopMacro"
        self.idle()

    def abort(self, timeout: float = 30.0) -> None:
        """Ctrl-C twice."""
        self.door.AbortMacro()
        assert self._done.wait(timeout), f"still running {timeout} s after AbortMacro"
        self.idle()
