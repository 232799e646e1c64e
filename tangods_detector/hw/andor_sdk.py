"""Andor's SDK3 (libatcore) by ctypes: its functions declared once, errors as HardwareError with the code's name.

A declaration is C text, so that a compiler can compare it with the vendor's header."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from tangods_receiver.errors import ConfigError, HardwareError

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_wchar_p, ctypes.c_void_p)

TYPES: dict[str, Any] = {
    "AT_H": ctypes.c_int,
    "AT_BOOL": ctypes.c_int,
    "AT_64": ctypes.c_longlong,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "double": ctypes.c_double,
    "AT_H *": ctypes.POINTER(ctypes.c_int),
    "AT_BOOL *": ctypes.POINTER(ctypes.c_int),
    "AT_64 *": ctypes.POINTER(ctypes.c_longlong),
    "int *": ctypes.POINTER(ctypes.c_int),
    "double *": ctypes.POINTER(ctypes.c_double),
    "const AT_WC *": ctypes.c_wchar_p,  # wchar_t, 4 bytes on Linux
    "AT_WC *": ctypes.c_wchar_p,
    "AT_U8 *": ctypes.c_void_p,
    "AT_U8 **": ctypes.POINTER(ctypes.c_void_p),
    "FeatureCallback": Callback,
    "void *": ctypes.c_void_p,
}

FUNCTIONS = {
    "AT_InitialiseLibrary": "",
    "AT_FinaliseLibrary": "",
    "AT_Open": "int, AT_H *",
    "AT_Close": "AT_H",
    "AT_IsImplemented": "AT_H, const AT_WC *, AT_BOOL *",
    "AT_IsReadable": "AT_H, const AT_WC *, AT_BOOL *",
    "AT_IsWritable": "AT_H, const AT_WC *, AT_BOOL *",
    "AT_SetInt": "AT_H, const AT_WC *, AT_64",
    "AT_GetInt": "AT_H, const AT_WC *, AT_64 *",
    "AT_GetIntMin": "AT_H, const AT_WC *, AT_64 *",
    "AT_GetIntMax": "AT_H, const AT_WC *, AT_64 *",
    "AT_SetFloat": "AT_H, const AT_WC *, double",
    "AT_GetFloat": "AT_H, const AT_WC *, double *",
    "AT_GetFloatMin": "AT_H, const AT_WC *, double *",
    "AT_GetFloatMax": "AT_H, const AT_WC *, double *",
    "AT_SetBool": "AT_H, const AT_WC *, AT_BOOL",
    "AT_GetBool": "AT_H, const AT_WC *, AT_BOOL *",
    "AT_SetEnumString": "AT_H, const AT_WC *, const AT_WC *",
    "AT_GetEnumIndex": "AT_H, const AT_WC *, int *",
    "AT_GetEnumCount": "AT_H, const AT_WC *, int *",
    "AT_GetEnumStringByIndex": "AT_H, const AT_WC *, int, AT_WC *, int",
    "AT_IsEnumIndexAvailable": "AT_H, const AT_WC *, int, AT_BOOL *",
    "AT_GetString": "AT_H, const AT_WC *, AT_WC *, int",
    "AT_Command": "AT_H, const AT_WC *",
    "AT_QueueBuffer": "AT_H, AT_U8 *, int",
    "AT_WaitBuffer": "AT_H, AT_U8 **, int *, unsigned int",
    "AT_Flush": "AT_H",
    "AT_RegisterFeatureCallback": "AT_H, const AT_WC *, FeatureCallback, void *",
    "AT_UnregisterFeatureCallback": "AT_H, const AT_WC *, FeatureCallback, void *",
}

ERRORS = dict(
    enumerate(
        "SUCCESS NOTINITIALISED NOTIMPLEMENTED READONLY NOTREADABLE NOTWRITABLE OUTOFRANGE INDEXNOTAVAILABLE "
        "INDEXNOTIMPLEMENTED EXCEEDEDMAXSTRINGLENGTH CONNECTION NODATA INVALIDHANDLE TIMEDOUT BUFFERFULL INVALIDSIZE "
        "INVALIDALIGNMENT COMM STRINGNOTAVAILABLE STRINGNOTIMPLEMENTED NULL_FEATURE NULL_HANDLE NULL_IMPLEMENTED_VAR "
        "NULL_READABLE_VAR NULL_READONLY_VAR NULL_WRITABLE_VAR NULL_MINVALUE NULL_MAXVALUE NULL_VALUE NULL_STRING "
        "NULL_COUNT_VAR NULL_ISAVAILABLE_VAR NULL_MAXSTRINGLENGTH NULL_EVCALLBACK NULL_QUEUE_PTR NULL_WAIT_PTR "
        "NULL_PTRSIZE NOMEMORY DEVICEINUSE DEVICENOTFOUND".split()
    )
) | {100: "HARDWARE_OVERFLOW"}
NOTIMPLEMENTED, READONLY, NOTREADABLE, NOTWRITABLE, OUTOFRANGE = 2, 3, 4, 5, 6
CONNECTION, NODATA, TIMEDOUT, COMM, DEVICEINUSE, OVERFLOW = 10, 11, 13, 17, 38, 100
SAYS = {
    CONNECTION: "the camera does not answer; look at its cable and power",
    COMM: "the communication with the camera failed; look at its cable and power",
    DEVICEINUSE: "another program has the camera",
    NOTWRITABLE: "not at this moment, or not with the other settings",
}

SYSTEM = 1  # AT_HANDLE_SYSTEM
TEXT = 256


class SdkError(HardwareError):
    """A function of the library returned `code`."""

    def __init__(self, code: int, what: str) -> None:
        says = SAYS.get(code)
        super().__init__(f"{what}: {ERRORS.get(code, 'unknown error')} ({code}){': ' + says if says else ''}")
        self.code = code


class Library:
    """The library at `path`, loaded once for a process; it has the cameras of this computer while it is open."""

    _loaded: dict[str, Library] = {}
    _lock = threading.Lock()

    def __init__(self, path: str) -> None:
        try:
            self.functions: Any = ctypes.CDLL(path)  # lets go of the GIL for each call
            for name, declaration in FUNCTIONS.items():
                function = getattr(self.functions, name)
                function.restype = ctypes.c_int
                function.argtypes = [TYPES[kind] for kind in declaration.split(", ") if kind]
        except (OSError, AttributeError) as exc:
            raise ConfigError(
                f"library: {path!r} is not Andor's SDK3: {exc}; install the vendor's SDK3 and set the option to its "
                "libatcore.so"
            ) from exc
        self.path = path
        self._users = 0

    @classmethod
    def load(cls, path: str) -> Library:
        """ConfigError: there is no such library, or it is another one."""
        with cls._lock:
            if path not in cls._loaded:
                cls._loaded[path] = cls(path)
            return cls._loaded[path]

    def call(self, name: str, *arguments: Any, what: str = "") -> None:
        """SdkError when the function does not return 0."""
        code = getattr(self.functions, name)(*arguments)
        if code:
            raise SdkError(code, what or name)

    def open(self) -> None:
        """For one more user. Cameras are looked for when the first comes."""
        with self._lock:
            if not self._users:
                self.call("AT_InitialiseLibrary")
            self._users += 1

    def close(self) -> None:
        """By each user once; the last one ends it, so that the next looks for cameras again."""
        with self._lock:
            if self._users == 1:
                self.functions.AT_FinaliseLibrary()
            self._users = max(0, self._users - 1)

    def camera(self, index: int) -> Camera:
        """SdkError: another program has it, or there is none."""
        handle = ctypes.c_int(-1)
        self.call("AT_Open", index, ctypes.byref(handle), what=f"AT_Open {index}")
        return Camera(self, handle.value)

    @property
    def system(self) -> Camera:
        """Features of the library itself."""
        return Camera(self, SYSTEM)


class Camera:
    """One open camera: its features by name, its buffers. The library locks each call, so any thread may call."""

    def __init__(self, library: Library, handle: int) -> None:
        self._library, self.handle = library, handle
        self._functions = library.functions
        self._callbacks: list[tuple[str, Any]] = []

    def close(self) -> None:
        """Also one that is gone."""
        self.forget_events()
        self._functions.AT_Close(self.handle)

    def forget_events(self) -> None:
        """Nothing is called any more."""
        for feature, callback in self._callbacks:
            self._functions.AT_UnregisterFeatureCallback(self.handle, feature, callback, None)
        self._callbacks = []

    def _call(self, name: str, feature: str, *arguments: Any, what: str = "") -> None:
        code = getattr(self._functions, name)(self.handle, feature, *arguments)
        if code:
            raise SdkError(code, what or f"{name} {feature}")

    def _asked(self, name: str, feature: str, kind: Any, *arguments: Any) -> Any:
        value = kind()
        self._call(name, feature, *arguments, ctypes.byref(value))
        return value.value

    # --- what there is ---

    def has(self, feature: str) -> bool:
        return bool(self._asked("AT_IsImplemented", feature, ctypes.c_int))

    def is_writable(self, feature: str) -> bool:
        """At this moment; also False for what is not there."""
        return self.has(feature) and bool(self._asked("AT_IsWritable", feature, ctypes.c_int))

    # --- numbers and truths ---

    def get_int(self, feature: str) -> int:
        return int(self._asked("AT_GetInt", feature, ctypes.c_longlong))

    def int_limits(self, feature: str) -> tuple[int, int]:
        return tuple(int(self._asked(f"AT_GetInt{m}", feature, ctypes.c_longlong)) for m in ("Min", "Max"))  # type: ignore[return-value]

    def set_int(self, feature: str, value: int) -> None:
        self._call("AT_SetInt", feature, value, what=f"AT_SetInt {feature} = {value}")

    def get_float(self, feature: str) -> float:
        return float(self._asked("AT_GetFloat", feature, ctypes.c_double))

    def float_limits(self, feature: str) -> tuple[float, float]:
        return tuple(float(self._asked(f"AT_GetFloat{m}", feature, ctypes.c_double)) for m in ("Min", "Max"))  # type: ignore[return-value]

    def set_float(self, feature: str, value: float) -> None:
        self._call("AT_SetFloat", feature, value, what=f"AT_SetFloat {feature} = {value:g}")

    def get_bool(self, feature: str) -> bool:
        return bool(self._asked("AT_GetBool", feature, ctypes.c_int))

    def set_bool(self, feature: str, value: bool) -> None:
        self._call("AT_SetBool", feature, int(value), what=f"AT_SetBool {feature} = {bool(value)}")

    # --- choices and texts ---

    def get_enum(self, feature: str) -> str:
        return self._item(feature, int(self._asked("AT_GetEnumIndex", feature, ctypes.c_int)))

    def _item(self, feature: str, index: int) -> str:
        text = ctypes.create_unicode_buffer(TEXT)
        self._call("AT_GetEnumStringByIndex", feature, index, text, TEXT)
        return text.value

    def choices(self, feature: str) -> list[str]:
        """Those that can be chosen now."""
        count = int(self._asked("AT_GetEnumCount", feature, ctypes.c_int))
        there = [i for i in range(count) if self._asked("AT_IsEnumIndexAvailable", feature, ctypes.c_int, i)]
        return [self._item(feature, i) for i in there]

    def set_enum(self, feature: str, text: str) -> None:
        self._call("AT_SetEnumString", feature, text, what=f"AT_SetEnumString {feature} = {text!r}")

    def get_string(self, feature: str) -> str:
        text = ctypes.create_unicode_buffer(TEXT)
        self._call("AT_GetString", feature, text, TEXT)
        return text.value

    def command(self, feature: str) -> None:
        self._call("AT_Command", feature)

    # --- buffers ---

    def queue(self, address: int, nbytes: int) -> None:
        """The memory is the camera's until it comes back, or `flush`."""
        code = self._functions.AT_QueueBuffer(self.handle, address, nbytes)
        if code:
            raise SdkError(code, f"AT_QueueBuffer of {nbytes} bytes")

    def waiter(self) -> Callable[[int], tuple[int, int]]:
        """A function of the longest time in ms -> (0, address of a filled buffer), or (what the library says, 0)."""
        address, nbytes = ctypes.c_void_p(), ctypes.c_int()
        to_address, to_nbytes = ctypes.byref(address), ctypes.byref(nbytes)
        function, handle = self._functions.AT_WaitBuffer, self.handle

        def wait(timeout: int) -> tuple[int, int]:
            code = function(handle, to_address, to_nbytes, timeout)
            return (code, 0) if code else (0, address.value or 0)

        return wait

    def flush(self) -> None:
        """All buffers are ours again."""
        self._library.call("AT_Flush", self.handle)

    def on_event(self, feature: str, act: Callable[[], None]) -> None:
        """Call `act` in a thread of the library whenever the feature tells, and once now."""

        def called(handle: int, name: str, context: Any) -> int:
            act()
            return 0

        callback = Callback(called)
        self._call("AT_RegisterFeatureCallback", feature, callback, None)
        self._callbacks.append((feature, callback))
