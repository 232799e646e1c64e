"""The receiver of one Detector, as seen by its Tango thread: a StreamReceiver device, or an engine's HTTP address."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import numpy as np
import tango

from taurus_gui import words
from taurus_gui.mailbox import Mailbox
from taurus_gui.orders import ReceiverSide, RoiTable

TIMEOUT = 2000  # ms
PATIENCE = 5.0  # s between looks at a receiver that does not answer
ALL_THE_ROOM = 2**62  # bytes, which no file system has free
READ = ["State", "Status", "Throughput", "FrameRate", "HttpAddress", "Rois", "LiveFrameNumber"]


class ReceiverLink:
    """`name` is the Detector's property Receiver. Used by one thread."""

    def __init__(self, name: str, detector: str, mailbox: Mailbox) -> None:
        self._box = mailbox
        self._http = name.rstrip("/") if name.startswith("http") else ""
        self.name = "" if self._http else _in_database_of(detector, name)
        self._proxy: tango.DeviceProxy | None = None
        self._not_before = 0.0
        self._seen: Any = None

    def look(self) -> None:
        """Tell the mailbox how it is."""
        if self._http:
            self._box.put("receiver", "", ReceiverSide("", self._http))
            return
        if not self.name:
            self._box.put("receiver", "", ReceiverSide(error="The Detector's property Receiver is not set."))
            return
        if time.monotonic() < self._not_before:
            return
        try:
            found = self._ask()
        except tango.DevFailed as exc:
            self._proxy = None
            self._not_before = time.monotonic() + PATIENCE
            self._box.put("receiver", "", ReceiverSide(self.name, error=str(exc.args[0].desc).strip()))
            return
        self._box.put("receiver", "", found)

    def _device(self) -> tango.DeviceProxy:
        if self._proxy is None:
            self._proxy = tango.DeviceProxy(self.name)
            self._proxy.set_timeout_millis(TIMEOUT)
        return self._proxy

    def _ask(self) -> ReceiverSide:
        proxy = self._device()
        values = {v.name: None if v.has_failed else v.value for v in proxy.read_attributes(READ)}
        rois = tuple(values["Rois"] or ())
        self._history(proxy, rois, values["LiveFrameNumber"])
        address = str(values["HttpAddress"] or "")
        return ReceiverSide(
            self.name,
            _reachable(address, proxy) if address else "",
            "",
            str(values["State"]),
            str(values["Status"] or ""),
            float(values["Throughput"] or 0),
            float(values["FrameRate"] or 0),
            rois,
        )

    def _history(self, proxy: tango.DeviceProxy, rois: tuple[str, ...], number: Any) -> None:
        """Of the regions, when there are any and there is something new."""
        if not rois and not (self._seen and self._seen[0]):
            return
        if (rois, number) == self._seen:
            return
        self._seen = rois, number
        table = proxy.read_attribute("RoiHistory").value if rois else None
        rows = np.zeros((0, 0)) if table is None else np.asarray(table, float)
        self._box.put("rois", "", RoiTable(tuple(line.split()[0] for line in rois), rows))

    def set_rois(self, lines: list[str]) -> None:
        """DevFailed or ValueError: refused, in words."""
        if self._http:
            raise ValueError(
                f"{self._http} is an engine without a Tango device: its regions are changed in its configuration"
            )
        self._seen = None
        self._device().write_attribute("Rois", lines)
        self.look()

    def check(self, path: str, nbytes: int) -> tuple[str, float | None]:
        """(what is in the way of such a file, "" nothing; free bytes where it would be, None not known).

        Braces of a pattern are filled in with something that is hardly there."""
        plain = re.sub(r"\{date[^}]*\}", time.strftime("%Y%m%d"), path)
        plain = re.sub(r"\{number[^}]*\}", "987654321", plain)
        sentence = self._check(plain, nbytes)
        free = words.free_space(self._check(f"{plain}.{time.time_ns()}", ALL_THE_ROOM))
        return sentence, free

    def _check(self, path: str, nbytes: int) -> str:
        if self._http:
            asked = {"path": path, "nbytes": str(nbytes)}
            try:
                answer = httpx.get(f"{self._http}/check", params=asked, timeout=TIMEOUT / 1000, trust_env=False)
                return str(answer.json().get("value", ""))
            except httpx.HTTPError as exc:
                raise ValueError(f"{self._http}: {exc}") from exc
        return str(self._device().command_inout("CheckFile", [path, str(nbytes)]))


def _in_database_of(detector: str, name: str) -> str:
    """The receiver is registered where its Detector is."""
    if not name or name.startswith("tango://") or not detector.startswith("tango://"):
        return name
    return f"tango://{detector.split('/')[2]}/{name}"


def _reachable(address: str, proxy: tango.DeviceProxy) -> str:
    """An engine that listens at all addresses is asked at its computer's."""
    if "//0.0.0.0:" in address or "//[::]:" in address:
        host = proxy.info().server_host
        return re.sub(r"//(0\.0\.0\.0|\[::\]):", f"//{host}:", address)
    return address
