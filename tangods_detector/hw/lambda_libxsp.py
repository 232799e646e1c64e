"""A Lambda through libxsp: ctypes calls of the C wrapper that a site builds around it (resources/lambda)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from tangods_detector.hw.lambda_system import (
    READINGS,
    SETTINGS,
    Description,
    Feature,
    FrameStatus,
    LambdaSystem,
    Module,
    ModuleStatus,
    RawFrame,
    Value,
)
from tangods_receiver.errors import HardwareError

ABI = 1
DETECTOR = -1
OK, TIMEOUT, SPACE = 0, 1, 4
WORDS = {
    2: "configuration",
    3: "no such value",
    4: "too large",
    0x8001: "unexpected error",
    0x8002: "internal error",
    0x8003: "out of memory",
    0x8004: "resource unavailable",
    0x8005: "communication",
    0x8010: "device not connected",
    0x8011: "not supported",
    0x8012: "not ready",
    0x8013: "busy",
    0x8014: "failure",
    0x8040: "command not accepted",
    0x8041: "not implemented",
    0x8042: "not supported",
    0x8043: "timed out",
    0x8044: "failed",
    0x804A: "argument out of range",
    0x804B: "argument invalid",
}


@dataclass(frozen=True)
class LibxspOptions:
    """`library` the wrapper; `config` of libxsp ("": where libxsp looks for it)."""

    library: str
    config: str = ""


class _Status(ctypes.Structure):
    _fields_ = [
        (name, c_int32) for name in ("connected", "ready", "busy", "ram_allocated", "voltage_settled", "frames_queued")
    ]


class _Frame(ctypes.Structure):
    _fields_ = [
        ("number", c_uint64),
        ("trigger", c_uint64),
        ("token", c_uint64),
        ("data", c_void_p),
        ("size", c_uint64),
        ("status", c_int32),
        ("depth", c_int32),
    ]


_VALUE = [c_void_p, c_int, c_char_p]
SIGNATURES: dict[str, list[Any]] = {
    "xl_open": [c_char_p, POINTER(c_void_p)],
    "xl_get_int": [*_VALUE, POINTER(c_int64)],
    "xl_get_double": [*_VALUE, POINTER(c_double)],
    "xl_get_doubles": [*_VALUE, POINTER(c_double), c_size_t, POINTER(c_size_t)],
    "xl_get_string": [*_VALUE, c_char_p, c_size_t, POINTER(c_size_t)],
    "xl_set_int": [*_VALUE, c_int64],
    "xl_set_double": [*_VALUE, c_double],
    "xl_set_doubles": [*_VALUE, POINTER(c_double), c_size_t],
    "xl_set_string": [*_VALUE, c_char_p],
    "xl_start": [c_void_p],
    "xl_stop": [c_void_p],
    "xl_reset": [c_void_p],
    "xl_status": [c_void_p, c_int, POINTER(_Status)],
    "xl_frame": [c_void_p, c_int, c_int, POINTER(_Frame)],
    "xl_release": [c_void_p, c_int, c_uint64],
}
KNOWN = {int(status): status for status in FrameStatus}
MODULE_VALUES = {**READINGS, "frame_width": int, "frame_height": int, "features": int}


def load(path: str) -> ctypes.CDLL:
    """The wrapper, its functions declared; ctypes calls them without Python's lock. HardwareError: it is not there, or
    not this interface."""
    try:
        library = ctypes.CDLL(path)
        library.xl_abi.restype = c_uint32
        found = library.xl_abi()
        if found != ABI:
            raise HardwareError(f"{path} has version {found} of the interface, not {ABI}: build it anew from xl.h")
        for name, kinds in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = kinds, c_int
        library.xl_close.argtypes, library.xl_close.restype = [c_void_p], None
        library.xl_error.argtypes, library.xl_error.restype = [c_void_p, c_char_p, c_size_t], c_size_t
    except (OSError, AttributeError) as exc:
        raise HardwareError(
            f"{path} cannot be used as the wrapper of libxsp: {exc}; resources/lambda/README.md says how it is built"
        ) from exc
    return library


class LambdaLibxsp(LambdaSystem):
    """The modules that one configuration of libxsp names."""

    counter_bits = 24

    def __init__(self, options: LibxspOptions) -> None:
        self._options = options
        self._library: ctypes.CDLL | None = None
        self._handle = c_void_p()
        self._names: list[str] = []
        self._frames = threading.local()  # the struct that a module's thread gives the library

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> Description:
        self.close()
        if self._library is None:
            self._library = load(self._options.library)
        code = self._library.xl_open(self._options.config.encode(), byref(self._handle))
        if code or not self._handle:
            self._handle = c_void_p()
            raise self._error(code, f"opening {self._options.config or 'the configuration where libxsp looks for it'}")
        try:
            self._names = [self._text(k, "id") for k in range(self._int(DETECTOR, "n_modules"))]
            return self.describe()
        except HardwareError:
            self.close()
            raise

    def close(self) -> None:
        if self._library is not None and self._handle:
            self._library.xl_close(self._handle)
        self._handle = c_void_p()

    def describe(self) -> Description:
        return Description(
            detector=self._text(DETECTOR, "type"),
            library=f"libxsp {self._text(DETECTOR, 'version')}",
            modules=tuple(self._module(k) for k in range(len(self._names))),
            bit_depth=self._int(DETECTOR, "bit_depth"),
        )

    def _module(self, k: int) -> Module:
        ids = tuple(one for one in self._text(k, "chip_ids").split(",") if one)
        return Module(
            name=self._names[k],
            shape=(self._int(k, "frame_height"), self._int(k, "frame_width")),
            x=self._double(k, "position_x"),
            y=self._double(k, "position_y"),
            rotation=self._double(k, "rotation"),
            firmware=self._text(k, "firmware_version"),
            features=Feature(self._int(k, "features")),
            chip_ids=ids,
        )

    # --- values ------------------------------------------------------------------------------------------------------

    def get(self, name: str, module: int | None = None) -> Value:
        where = DETECTOR if module is None else module
        kind = (SETTINGS if module is None else MODULE_VALUES).get(name)
        if kind is int:
            return self._int(where, name)
        if kind is float:
            return self._double(where, name)
        return self._doubles(where, name) if kind is list else self._text(where, name)

    def set(self, name: str, value: Value, module: int | None = None) -> None:
        where = DETECTOR if module is None else module
        kind = (SETTINGS if module is None else MODULE_VALUES).get(name)
        try:
            call, arguments = _setter(kind, value)
        except (TypeError, ValueError, OverflowError) as exc:
            raise HardwareError(f"{self._of(where)}{name} cannot be {value!r}: {exc}") from exc
        self._call(f"setting {name} to {value}", call, where, name.encode(), *arguments)

    def _int(self, module: int, name: str) -> int:
        value = c_int64()
        self._call(f"reading {name}", "xl_get_int", module, name.encode(), byref(value))
        return value.value

    def _double(self, module: int, name: str) -> float:
        value = c_double()
        self._call(f"reading {name}", "xl_get_double", module, name.encode(), byref(value))
        return value.value

    def _doubles(self, module: int, name: str) -> list[float]:
        found = self._sized(f"reading {name}", "xl_get_doubles", c_double, module, name.encode())
        return list(found)

    def _text(self, module: int, name: str) -> str:
        found = self._sized(f"reading {name}", "xl_get_string", ctypes.c_char, module, name.encode())
        return bytes(found.value).decode(errors="replace")

    def _sized(self, what: str, function: str, kind: Any, module: int, name: bytes) -> Any:
        """An array of as many as there are."""
        count = c_size_t(64)
        while True:
            size = count.value
            array = (kind * max(1, size))()
            code = self._checked(function)(self._handle, module, name, array, size, byref(count))
            if code != SPACE or count.value <= size:
                break
        if code:
            raise self._error(code, what, module)
        return array if kind is ctypes.c_char else array[: count.value]

    # --- a series ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._call("start", "xl_start")

    def stop(self) -> None:
        self._call("stop", "xl_stop")

    def reset(self) -> None:
        self._call("reset", "xl_reset")

    def status(self) -> tuple[ModuleStatus, ...]:
        self._checked("xl_status")
        told = _Status()
        found = []
        for k in range(len(self._names)):
            self._call("reading the status", "xl_status", k, byref(told))
            found.append(
                ModuleStatus(
                    connected=bool(told.connected),
                    ready=bool(told.ready),
                    busy=bool(told.busy),
                    ram_allocated=bool(told.ram_allocated),
                    voltage_settled=bool(told.voltage_settled),
                    frames_queued=told.frames_queued,
                )
            )
        return tuple(found)

    def next_frame(self, module: int, timeout: float) -> RawFrame | None:
        try:
            frame = self._frames.frame
        except AttributeError:
            frame = self._frames.frame = _Frame()
        code = self._checked("xl_frame")(self._handle, module, round(timeout * 1000), byref(frame))
        if code == TIMEOUT:
            return None
        if code:
            raise self._error(code, "waiting for a frame", module)
        size = frame.size if frame.data else 0
        pixels = (
            memoryview((ctypes.c_ubyte * size).from_address(frame.data or 0)).cast("B") if size else memoryview(b"")
        )
        status = KNOWN.get(frame.status, FrameStatus.INCOMPLETE if size else FrameStatus.MISSING)
        return RawFrame(frame.number, status, pixels, self._releaser(module, frame.token), frame.trigger)

    def _releaser(self, module: int, token: int) -> Callable[[], None]:
        return lambda: self._call("giving a frame back", "xl_release", module, token)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _checked(self, function: str) -> Any:
        if self._library is None or not self._handle:
            raise HardwareError("libxsp is not open; Reset connects it")
        return getattr(self._library, function)

    def _call(self, what: str, function: str, *arguments: Any) -> None:
        code = self._checked(function)(self._handle, *arguments)
        if code:
            raise self._error(code, what, arguments[0] if arguments and isinstance(arguments[0], int) else DETECTOR)

    def _error(self, code: int, what: str, module: int = DETECTOR) -> HardwareError:
        """What the library said in this thread."""
        assert self._library is not None
        said = ctypes.create_string_buffer(1024)
        self._library.xl_error(self._handle, said, len(said))
        words = said.value.decode(errors="replace")
        number = f"{code:#06x}" if code >= 0x8000 else str(code)
        told = f" ({words})" if words else ""
        return HardwareError(f"libxsp: {self._of(module)}{what}: {number} {WORDS.get(code, 'unknown code')}{told}")

    def _of(self, module: int) -> str:
        return f"{self._names[module]}: " if 0 <= module < len(self._names) else ""


def _setter(kind: type | None, value: Value) -> tuple[str, tuple[Any, ...]]:
    """Function and arguments. TypeError, ValueError: it is not of this kind."""
    if kind is list:
        if not isinstance(value, list):
            raise TypeError("it is a list of numbers")
        values = [float(one) for one in value]
        return "xl_set_doubles", ((c_double * len(values))(*values), len(values))
    if isinstance(value, list):
        raise TypeError("it is one value")
    if kind is int:
        if int(value) != value:
            raise ValueError("it is a whole number")
        return "xl_set_int", (c_int64(int(value)),)
    if kind is float:
        return "xl_set_double", (float(value),)
    return "xl_set_string", (str(value).encode(),)
