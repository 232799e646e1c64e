"""What is worth a line in the log, out of what came. Pure."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from taurus_gui.orders import Answer, Connection, ReceiverSide

Level = Literal["info", "warning", "error"]
MOST = 500  # entries that are kept, and as many that are worse than information
LEVELS: dict[str, Level] = {"FAULT": "error", "UNKNOWN": "error", "DISABLE": "error", "ALARM": "warning"}


@dataclass(frozen=True)
class Entry:
    level: Level
    text: str
    time: float = field(default_factory=time.time, compare=False)


class Events:
    """Tell it what came; it says what is new, and keeps the last `most` entries, and as many errors and warnings."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._routine: deque[Entry] = deque(maxlen=most)
        self._worse: deque[Entry] = deque(maxlen=most)
        self._there: bool | None = None
        self._receiver = ""
        self._lost: dict[str, int] = {}
        self._series: object = None

    def _keep(self, *entries: Entry) -> list[Entry]:
        for entry in entries:
            (self._routine if entry.level == "info" else self._worse).append(entry)
        return list(entries)

    @property
    def entries(self) -> list[Entry]:
        """Oldest first."""
        return list(heapq.merge(self._routine, self._worse, key=attrgetter("time")))

    def clear(self) -> None:
        self._routine.clear()
        self._worse.clear()

    def note(self, text: str) -> Entry:
        return self._keep(Entry("warning", text))[0]

    def readings(self, names: set[str], readings: Mapping[str, Any]) -> list[Entry]:
        found = []
        state = str(readings.get("State"))
        if "State" in names or ("Status" in names and state in LEVELS):
            status = " ".join(str(readings.get("Status", "")).split())
            found.append(Entry(LEVELS.get(state, "info"), f"{state}: {status}"))
        error = " ".join(str(readings.get("LastError") or "").split())
        if "LastError" in names and error and not (found and error in found[-1].text):
            found.append(Entry("error" if state == "FAULT" else "warning", error))
        return self._keep(*found)

    def connection(self, connection: Connection) -> list[Entry]:
        if connection.there == self._there:
            return []
        before, self._there = self._there, connection.there
        if connection.there:
            return self._keep(Entry("info", "Connected" if before is None else "Connected again"))
        return self._keep(Entry("error", f"No connection: {connection.error}"))

    def receiver(self, receiver: ReceiverSide) -> list[Entry]:
        if receiver.error == self._receiver:
            return []
        self._receiver = receiver.error
        if receiver.error:
            return self._keep(Entry("error", f"Receiver {receiver.name}: {receiver.error}"))
        return self._keep(Entry("info", f"Receiver {receiver.name or receiver.address} answers"))

    def answer(self, answer: Answer) -> list[Entry]:
        order = answer.order
        if order.kind in ("check", "read"):
            return []
        what = f"{order.name} = {order.value}" if order.kind in ("write", "rois") else order.name
        if answer.error:
            return self._keep(Entry("error", f"{what} was refused: {answer.error}"))
        return self._keep(Entry("info", what))

    def status(self, status: Mapping[str, Any]) -> list[Entry]:
        """Of the receiver: losses, each kind once a series."""
        if self._series is None:  # what was before we looked
            self._series = status.get("openings")
            self._lost = {loss["kind"]: loss["count"] for loss in status.get("lost") or ()}
        elif status.get("openings") != self._series:
            self._series, self._lost = status.get("openings"), {}
        found = []
        for loss in status.get("lost") or ():
            if loss["kind"] not in self._lost:
                self._lost[loss["kind"]] = loss["count"]
                found.append(Entry("warning", f"Receiver: {loss['kind']}: {loss['sentence']}"))
        return self._keep(*found)
