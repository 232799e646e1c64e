"""One open camera: its properties with their limits, its buffers, its frames. Knows no series.

DCAM promises nothing for calls that several threads make with one handle, but for waiting, abort and triggers; so all
others take turns here."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import c_double, c_int32, c_void_p
from dataclasses import dataclass

from tangods_detector.hw.hamamatsu_dcam import (
    ABSENT,
    ACCESS_BUSY,
    CAMERASTAMP,
    HAS_VALUE_TEXT,
    NEXT,
    REFUSED,
    SEQUENCE,
    TYPE_LONG,
    TYPE_MASK,
    TYPE_MODE,
    WRITABLE,
    BufAttach,
    BufFrame,
    Code,
    DcamError,
    DevCapability,
    DevOpen,
    Event,
    Library,
    Prop,
    PropAttr,
    PropValueText,
    Text,
    TransferInfo,
    WaitOpen,
    WaitStart,
)
from tangods_receiver.errors import ConfigError, HardwareError

NO_ERROR = 1


@dataclass(frozen=True)
class Limits:
    """Of a property, as they are now; another property may change them. `step` 0: any value."""

    low: float
    high: float
    step: float
    writable: bool
    while_busy: bool
    mode: bool
    whole: bool

    def __str__(self) -> str:
        return f"{self.low:.9g} and {self.high:.9g}" + (f" in steps of {self.step:.9g}" if self.step else "")


@dataclass(frozen=True)
class Found:
    """Where a frame is, and what the camera and its driver say of it. `time` in s, of the clock that TIMESTAMP_PRODUCER
    tells; `frame_stamp` counts in a capture; `camera_stamp` is the camera's own count, None: it has none."""

    kind: int  # a PixelType
    width: int
    height: int
    rowbytes: int
    address: int
    time: float
    frame_stamp: int
    camera_stamp: int | None


class Camera:
    """Open from its making to `close`. HardwareError, as a rule a DcamError, when the library refuses."""

    def __init__(self, library: Library, serial: str) -> None:
        """`serial` empty: the first there is."""
        self._library = library
        self._lock = threading.RLock()
        self._serial, index = self._pick(serial)
        wanted = DevOpen(index=index)
        library.call("dcamdev_open", wanted, what=f"camera {self._serial}")
        self._handle: int | None = wanted.hdcam
        try:
            self.model, self.series = self.text(Text.MODEL), self.text(Text.CAMERA_SERIESNAME)
            self._names = self._enumerate()
            able = DevCapability()
            library.call("dcamdev_getcapability", self._handle, able)
            self.has_camera_stamp = bool(able.capflag & CAMERASTAMP)
        except BaseException:
            self.close()
            raise
        self._frame, self._info = BufFrame(), TransferInfo()

    def _pick(self, serial: str) -> tuple[str, int]:
        found = []
        for index in range(self._library.found):
            number = self._library.string(index, Text.CAMERAID).rpartition(":")[2].strip()
            if number and (not serial or number == serial):
                return number, index
            found.append(number or "(none)")
        raise HardwareError(
            f"no camera with the serial number {serial}; found: {', '.join(found) or 'none'}; "
            "set the option serial_number to one of these, or leave it empty"
        )

    def _enumerate(self) -> dict[int, str]:
        names: dict[int, str] = {}
        number = c_int32(0)
        while self._library.result("dcamprop_getnextid", self._handle, number, 0) >= 0 and number.value not in names:
            text = ctypes.create_string_buffer(128)
            self._library.result("dcamprop_getname", self._handle, number.value, text, len(text))
            names[number.value] = text.value.decode(errors="replace")
        return names

    def close(self) -> None:
        """Let go of it; also twice, also when it is unplugged."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._library.result("dcamcap_stop", handle)
                self._library.result("dcambuf_release", handle, 0)
                self._library.result("dcamdev_close", handle)

    @property
    def serial(self) -> str:
        return self._serial

    def text(self, kind: int) -> str:
        with self._lock:
            return self._library.string(self._open(), kind)

    def _open(self) -> int:
        if self._handle is None:
            raise HardwareError("the camera is not open")
        return self._handle

    # --- properties --------------------------------------------------------------------------------------------------

    def has(self, prop: int) -> bool:
        return prop in self._names

    def find(self, name: str) -> int:
        """Id of a property by its name as the library tells it, spaces or none, or by its number. ConfigError."""
        wanted = name.replace(" ", "").replace("_", "").upper()
        for number, text in self._names.items():
            if text.replace(" ", "").upper() == wanted:
                return number
        for prop in Prop:
            if prop.name.replace("_", "") == wanted and prop in self._names:
                return prop
        try:
            number = int(name, 0)
        except ValueError:
            number = -1
        if number not in self._names:
            raise ConfigError(f"{name}: this camera has no such property; it has {', '.join(self._names.values())}")
        return number

    def _name(self, prop: int) -> str:
        return self._names.get(prop) or (Prop(prop).name if prop in list(Prop) else f"property 0x{prop:08X}")

    def get(self, prop: int) -> float:
        value = c_double()
        with self._lock:
            self._library.call("dcamprop_getvalue", self._open(), prop, value, what=self._name(prop))
        return value.value

    def get_or(self, prop: int, none: float) -> float:
        """`none` where the camera has no such property, or has it no more."""
        if prop not in self._names:
            return none
        try:
            return self.get(prop)
        except DcamError as exc:
            if exc.code in ABSENT:
                return none
            raise

    def put(self, prop: int, value: float) -> float:
        """What the camera took. ConfigError: it is not one of its values, with the limits; HardwareError: else."""
        taken = c_double(value)
        try:
            with self._lock:
                self._library.call(
                    "dcamprop_setgetvalue", self._open(), prop, taken, 0, what=f"{self._name(prop)} = {value:.9g}"
                )
        except DcamError as exc:
            if exc.code not in REFUSED:
                raise
            raise ConfigError(f"{exc}{self._can_be(prop, exc.code)}") from exc
        return taken.value

    def _can_be(self, prop: int, code: int) -> str:
        if code not in (Code.OUTOFRANGE, Code.INVALIDVALUE):
            return ""
        try:
            limits = self.limits(prop)
            if limits.mode:
                return f"; can be {', '.join(f'{value:g} {text}' for value, text in self.choices(prop))}"
            return f"; is not between {limits}"
        except HardwareError:
            return ""

    def limits(self, prop: int) -> Limits:
        found = PropAttr(iProp=prop)
        with self._lock:
            self._library.call("dcamprop_getattr", self._open(), found, what=self._name(prop))
        kind = found.attribute & TYPE_MASK
        return Limits(
            found.valuemin,
            found.valuemax,
            found.valuestep,
            bool(found.attribute & WRITABLE),
            bool(found.attribute & ACCESS_BUSY),
            kind == TYPE_MODE or bool(found.attribute & HAS_VALUE_TEXT),
            kind in (TYPE_MODE, TYPE_LONG),
        )

    def can_write(self, prop: int) -> bool:
        return self.has(prop) and self.limits(prop).writable

    def choices(self, prop: int) -> list[tuple[float, str]]:
        """Values of a mode, and how the camera calls them."""
        found = []
        value = self.limits(prop).low
        while True:
            found.append((value, self.value_text(prop, value)))
            following = c_double(value)
            with self._lock:
                answer = self._library.result("dcamprop_queryvalue", self._open(), prop, following, NEXT)
            if answer < 0 or following.value <= value:
                return found
            value = following.value

    def value_text(self, prop: int, value: float) -> str:
        """Such as "EDGE"; empty: it has none."""
        text = ctypes.create_string_buffer(64)
        wanted = PropValueText(iProp=prop, value=value, text=ctypes.cast(text, ctypes.c_char_p), textbytes=len(text))
        with self._lock:
            if self._library.result("dcamprop_getvaluetext", self._open(), wanted) < 0:
                return ""
        return text.value.decode(errors="replace")

    # --- capturing ---------------------------------------------------------------------------------------------------

    def status(self) -> int:
        """A CaptureStatus."""
        value = c_int32()
        with self._lock:
            self._library.call("dcamcap_status", self._open(), value)
        return value.value

    def attach(self, addresses: Sequence[int]) -> None:
        """The camera's frames go there, in turn and again from the first, whether they were looked at or not."""
        pointers = (c_void_p * len(addresses))(*addresses)
        wanted = BufAttach(iKind=0, buffer=pointers, buffercount=len(addresses))
        with self._lock:
            self._library.call("dcambuf_attach", self._open(), wanted, what=f"{len(addresses)} buffers")
            self._pointers = pointers  # some versions keep the address of the list

    def release(self) -> None:
        with self._lock:
            self._library.call("dcambuf_release", self._open(), 0)

    def start(self) -> None:
        with self._lock:
            self._library.call("dcamcap_start", self._open(), SEQUENCE)

    def stop(self) -> None:
        """Capturing; safe when it does not."""
        with self._lock:
            answer = self._library.result("dcamcap_stop", self._open())
        if answer < 0 and answer & 0xFFFFFFFF not in (Code.NOTBUSY, Code.NOTREADY, Code.NOTSTABLE):
            raise DcamError("dcamcap_stop", answer)

    def transferred(self) -> int:
        """Frames that have come since `start`; never fewer for a full ring."""
        with self._lock:
            self._library.call("dcamcap_transferinfo", self._open(), self._info)
            return int(self._info.nFrameCount)

    def frame(self, index: int) -> Found:
        """What is in buffer `index`. HardwareError: nothing yet."""
        with self._lock:
            f = self._frame
            f.iKind, f.option, f.iFrame = 0, 0, index
            self._library.call("dcambuf_lockframe", self._open(), f, what=f"{index}")
            time = f.timestamp.sec + 1e-6 * f.timestamp.microsec
            stamp = f.camerastamp if self.has_camera_stamp else None
            return Found(f.type, f.width, f.height, f.rowbytes, f.buf or 0, time, f.framestamp, stamp)

    def fire(self) -> None:
        """A software trigger; HardwareError: too early, or none is waited for."""
        self._library.call("dcamcap_firetrigger", self._open(), 0)

    def waiter(self) -> Waiter:
        """For one capture; close it."""
        with self._lock:
            return Waiter(self._library, self._open())


class Waiter:
    """Waits for frames. `wait` in one thread, `abort` from any."""

    def __init__(self, library: Library, handle: int) -> None:
        self._library = library
        wanted = WaitOpen(hdcam=handle)
        library.call("dcamwait_open", wanted)
        self._handle = wanted.hwait
        if not wanted.supportevent & Event.FRAMEREADY:
            self.close()
            raise HardwareError(f"dcamwait_open: the camera tells no FRAMEREADY (events 0x{wanted.supportevent:x})")
        self._what = WaitStart(eventmask=Event.FRAMEREADY | Event.STOPPED)

    def wait(self, timeout: float) -> int:
        """NO_ERROR: something happened; else the unsigned code, TIMEOUT and ABORT among them."""
        self._what.timeout, self._what.eventhappened = max(1, int(timeout * 1000)), 0
        answer = self._library.result("dcamwait_start", self._handle, self._what)
        return NO_ERROR if answer >= 0 else answer & 0xFFFFFFFF

    def abort(self) -> None:
        self._library.result("dcamwait_abort", self._handle)

    def close(self) -> None:
        self._library.result("dcamwait_close", self._handle)
