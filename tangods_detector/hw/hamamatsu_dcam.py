"""Hamamatsu's DCAM-API 4 as its C headers declare it: structures, ids, error codes, functions. Nothing is decided here.

Layouts are those of x86-64 and aarch64 Linux (natural alignment); tests compare them with a C compiler's."""

from __future__ import annotations

import ctypes
import enum
import threading
from ctypes import POINTER, c_char_p, c_double, c_int32, c_uint32, c_void_p
from typing import Any

from tangods_receiver.errors import ConfigError, HardwareError

# --- structures -------------------------------------------------------------------------------------------------------


class Structure(ctypes.Structure):
    """Its first member is its own size, which the library wants to find there."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        setattr(self, self._fields_[0][0], ctypes.sizeof(self))


class ApiInit(Structure):
    _fields_ = [
        ("size", c_int32),
        ("iDeviceCount", c_int32),
        ("reserved", c_int32),
        ("initoptionbytes", c_int32),
        ("initoption", POINTER(c_int32)),
        ("guid", c_void_p),
    ]


class DevOpen(Structure):
    _fields_ = [("size", c_int32), ("index", c_int32), ("hdcam", c_void_p)]


class DevCapability(Structure):
    _fields_ = [("size", c_int32), ("domain", c_int32), ("capflag", c_int32), ("kind", c_int32)]


class DevString(Structure):
    _fields_ = [("size", c_int32), ("iString", c_int32), ("text", c_char_p), ("textbytes", c_int32)]


class PropAttr(Structure):
    _fields_ = [
        ("cbSize", c_int32),
        ("iProp", c_int32),
        ("option", c_int32),
        ("reserved", c_int32),
        ("attribute", c_int32),
        ("iGroup", c_int32),
        ("iUnit", c_int32),
        ("attribute2", c_int32),
        ("valuemin", c_double),
        ("valuemax", c_double),
        ("valuestep", c_double),
        ("valuedefault", c_double),
        ("nMaxChannel", c_int32),
        ("reserved3", c_int32),
        ("nMaxView", c_int32),
        ("iProp_NumberOfElement", c_int32),
        ("iProp_ArrayBase", c_int32),
        ("iPropStep_Element", c_int32),
    ]


class PropValueText(Structure):
    _fields_ = [
        ("cbSize", c_int32),
        ("iProp", c_int32),
        ("value", c_double),
        ("text", c_char_p),
        ("textbytes", c_int32),
    ]


class BufAttach(Structure):
    _fields_ = [("size", c_int32), ("iKind", c_int32), ("buffer", POINTER(c_void_p)), ("buffercount", c_int32)]


class TimeStamp(ctypes.Structure):
    _fields_ = [("sec", c_uint32), ("microsec", c_int32)]


class BufFrame(Structure):
    _fields_ = [
        ("size", c_int32),
        ("iKind", c_int32),
        ("option", c_int32),
        ("iFrame", c_int32),
        ("buf", c_void_p),
        ("rowbytes", c_int32),
        ("type", c_int32),
        ("width", c_int32),
        ("height", c_int32),
        ("left", c_int32),
        ("top", c_int32),
        ("timestamp", TimeStamp),
        ("framestamp", c_int32),
        ("camerastamp", c_int32),
    ]


class WaitOpen(Structure):
    _fields_ = [("size", c_int32), ("supportevent", c_int32), ("hwait", c_void_p), ("hdcam", c_void_p)]


class WaitStart(Structure):
    _fields_ = [("size", c_int32), ("eventhappened", c_int32), ("eventmask", c_int32), ("timeout", c_int32)]


class TransferInfo(Structure):
    _fields_ = [("size", c_int32), ("iKind", c_int32), ("nNewestFrameIndex", c_int32), ("nFrameCount", c_int32)]


# --- functions --------------------------------------------------------------------------------------------------------

HANDLE = c_void_p
DOUBLE_P = POINTER(c_double)
INT_P = POINTER(c_int32)
FUNCTIONS: dict[str, tuple[Any, ...]] = {  # arguments; all return DCAMERR, which is negative where it failed
    "dcamapi_init": (POINTER(ApiInit),),
    "dcamapi_uninit": (),
    "dcamdev_open": (POINTER(DevOpen),),
    "dcamdev_close": (HANDLE,),
    "dcamdev_getcapability": (HANDLE, POINTER(DevCapability)),
    "dcamdev_getstring": (HANDLE, POINTER(DevString)),
    "dcamprop_getattr": (HANDLE, POINTER(PropAttr)),
    "dcamprop_getvalue": (HANDLE, c_int32, DOUBLE_P),
    "dcamprop_setgetvalue": (HANDLE, c_int32, DOUBLE_P, c_int32),
    "dcamprop_queryvalue": (HANDLE, c_int32, DOUBLE_P, c_int32),
    "dcamprop_getnextid": (HANDLE, INT_P, c_int32),
    "dcamprop_getname": (HANDLE, c_int32, c_char_p, c_int32),
    "dcamprop_getvaluetext": (HANDLE, POINTER(PropValueText)),
    "dcambuf_attach": (HANDLE, POINTER(BufAttach)),
    "dcambuf_release": (HANDLE, c_int32),
    "dcambuf_lockframe": (HANDLE, POINTER(BufFrame)),
    "dcamcap_start": (HANDLE, c_int32),
    "dcamcap_stop": (HANDLE,),
    "dcamcap_status": (HANDLE, INT_P),
    "dcamcap_transferinfo": (HANDLE, POINTER(TransferInfo)),
    "dcamcap_firetrigger": (HANDLE, c_int32),
    "dcamwait_open": (POINTER(WaitOpen),),
    "dcamwait_close": (HANDLE,),
    "dcamwait_start": (HANDLE, POINTER(WaitStart)),
    "dcamwait_abort": (HANDLE,),
}

# --- numbers ----------------------------------------------------------------------------------------------------------

SEQUENCE = -1  # of dcamcap_start
NEXT = 0x01000000  # of dcamprop_queryvalue
CAMERASTAMP = 4  # of capflag
HAS_VALUE_TEXT, HAS_STEP, ACCESS_BUSY, WRITABLE, READABLE = 0x10000000, 0x40000000, 0x1000, 0x20000, 0x10000
TYPE_MASK, TYPE_MODE, TYPE_LONG = 0xF, 1, 2


class Text(enum.IntEnum):
    """What dcamdev_getstring tells."""

    BUS = 0x04000101
    CAMERAID = 0x04000102
    VENDOR = 0x04000103
    MODEL = 0x04000104
    CAMERAVERSION = 0x04000105
    DRIVERVERSION = 0x04000106
    MODULEVERSION = 0x04000107
    DCAMAPIVERSION = 0x04000108
    CAMERA_SERIESNAME = 0x0400012C


class CaptureStatus(enum.IntEnum):
    ERROR = 0
    BUSY = 1
    READY = 2
    STABLE = 3
    UNSTABLE = 4


class Event(enum.IntFlag):
    TRANSFERRED = 1
    FRAMEREADY = 2
    CYCLEEND = 4
    EXPOSUREEND = 8
    STOPPED = 16


class PixelType(enum.IntEnum):
    MONO8 = 1
    MONO16 = 2
    MONO12 = 3
    MONO12P = 5


class Prop(enum.IntEnum):
    """Ids of properties; which of them a camera has, and what they can be, is asked."""

    TRIGGERSOURCE = 0x00100110
    TRIGGERACTIVE = 0x00100120
    TRIGGER_MODE = 0x00100210
    TRIGGERPOLARITY = 0x00100220
    TRIGGER_CONNECTOR = 0x00100230
    TRIGGERTIMES = 0x00100240
    TRIGGERDELAY = 0x00100260
    INTERNALTRIGGER_HANDLING = 0x00100270
    TRIGGERMULTIFRAME_COUNT = 0x00100280
    EXPOSURETIME = 0x001F0110
    TRIGGER_GLOBALEXPOSURE = 0x001F0300
    SENSORTEMPERATURE = 0x00200310
    SENSORCOOLER = 0x00200320
    SENSORTEMPERATURETARGET = 0x00200330
    SENSORCOOLERSTATUS = 0x00200340
    HIGHDYNAMICRANGE_MODE = 0x00300150
    READOUTSPEED = 0x00400110
    SENSORMODE = 0x00400210
    BINNING = 0x00401110
    SUBARRAYHPOS = 0x00402110
    SUBARRAYHSIZE = 0x00402120
    SUBARRAYVPOS = 0x00402130
    SUBARRAYVSIZE = 0x00402140
    SUBARRAYMODE = 0x00402150
    TIMING_READOUTTIME = 0x00403010
    TIMING_MINTRIGGERINTERVAL = 0x00403050
    INTERNALFRAMERATE = 0x00403810
    INTERNAL_FRAMEINTERVAL = 0x00403820
    TIMESTAMP_PRODUCER = 0x00410A10
    FRAMESTAMP_PRODUCER = 0x00410A20
    BITSPERCHANNEL = 0x00420130
    IMAGE_WIDTH = 0x00420210
    IMAGE_HEIGHT = 0x00420220
    IMAGE_ROWBYTES = 0x00420230
    IMAGE_FRAMEBYTES = 0x00420240
    IMAGE_TOPOFFSETBYTES = 0x00420250
    IMAGE_PIXELTYPE = 0x00420270
    BUFFER_ROWBYTES = 0x00420330
    BUFFER_FRAMEBYTES = 0x00420340
    BUFFER_TOPOFFSETBYTES = 0x00420350
    BUFFER_PIXELTYPE = 0x00420360
    FRAMEBUNDLE_MODE = 0x00421010
    DEFECTCORRECT_MODE = 0x00470010
    HOTPIXELCORRECT_LEVEL = 0x00470030
    CAMERASTATUS_INPUTTRIGGER = 0x004D1120
    SYSTEM_ALIVE = 0x00FF0010
    CONVERSIONFACTOR_COEFF = 0x00FFE010
    CONVERSIONFACTOR_OFFSET = 0x00FFE020


class Code(enum.IntEnum):
    """Errors, as the unsigned numbers that the manuals print."""

    BUSY = 0x80000101
    ABORT = 0x80000102
    NOTREADY = 0x80000103
    NOTSTABLE = 0x80000104
    UNSTABLE = 0x80000105
    TIMEOUT = 0x80000106
    NOTBUSY = 0x80000107
    EXCLUDED = 0x80000110
    NORESOURCE = 0x80000201
    NOMEMORY = 0x80000203
    NOMODULE = 0x80000204
    NODRIVER = 0x80000205
    NOCAMERA = 0x80000206
    NOGRABBER = 0x80000207
    NOCOMBINATION = 0x80000208
    LOSTFRAME = 0x80000301
    COOLINGTROUBLE = 0x80000302
    NOTRIGGER = 0x80000303
    TEMPERATURE_TROUBLE = 0x80000304
    TOOFREQUENTTRIGGER = 0x80000305
    INVALIDIMAGE = 0x80000321
    INVALIDCAMERA = 0x80000806
    INVALIDHANDLE = 0x80000807
    INVALIDPARAM = 0x80000808
    INVALIDVALUE = 0x80000821
    OUTOFRANGE = 0x80000822
    NOTWRITABLE = 0x80000823
    NOTREADABLE = 0x80000824
    INVALIDPROPERTYID = 0x80000825
    NOPROPERTY = 0x80000828
    INVALIDVIEW = 0x8000082A
    INVALIDSUBARRAY = 0x8000082B
    ACCESSDENY = 0x8000082C
    NOVALUETEXT = 0x8000082D
    WRONGPROPERTYVALUE = 0x8000082E
    INVALIDFRAMEINDEX = 0x80000833
    NODEVICEBUFFER = 0x8000083B
    REQUIREDSNAP = 0x8000083C
    LESSSYSTEMMEMORY = 0x8000083F
    NOTIMPLEMENT = 0x80000F02
    NOTSUPPORT = 0x80000F03
    MISSINGFRAME_TROUBLE = 0x80000F06
    NOCONNECTION = 0x80000F07
    FAILOPENBUS = 0x81001001
    FAILOPENCAMERA = 0x82001001
    FAILREADCAMERA = 0x83001002
    FAILWRITECAMERA = 0x83001003
    INVALIDWAITHANDLE = 0x84002001
    DEVICEINITIALIZING = 0xB0000001


ABSENT = (Code.INVALIDPROPERTYID, Code.NOPROPERTY, Code.NOTIMPLEMENT, Code.NOTSUPPORT)  # there is no such thing
REFUSED = (  # what was asked for cannot be; the camera is well
    Code.INVALIDVALUE,
    Code.OUTOFRANGE,
    Code.NOTWRITABLE,
    Code.INVALIDSUBARRAY,
    Code.WRONGPROPERTYVALUE,
    Code.INVALIDVIEW,
    *ABSENT,
)
LOST = (Code.LOSTFRAME, Code.MISSINGFRAME_TROUBLE)  # frames did not come through; the series goes on
HINTS = {
    Code.NOCAMERA: "is it on, and does the vendor's own program find it?",
    Code.NODRIVER: "install the driver of its interface board",
    Code.NOMODULE: "install the vendor's module for its interface",
    Code.EXCLUDED: "another program has the camera; end that",
    Code.FAILOPENCAMERA: "another program may have the camera",
    Code.NOCONNECTION: "the camera is off, or its cable is out",
    Code.NOMEMORY: "set memory to less",
}


class DcamError(HardwareError):
    """The library refused; `code` is the unsigned number."""

    def __init__(self, what: str, code: int, text: str = "") -> None:
        self.code = code & 0xFFFFFFFF
        try:
            known = Code(self.code)
        except ValueError:
            name, hint = "error", ""
        else:
            name, hint = known.name, HINTS.get(known, "")
        super().__init__("; ".join(filter(None, (f"{what}: {name} (0x{self.code:08X}) {text}".rstrip(), hint))))


# --- the library ------------------------------------------------------------------------------------------------------


class Library:
    """libdcamapi.so, loaded once in a process, initialised while anybody has it. Any thread; get it by `library`."""

    def __init__(self, path: str) -> None:
        try:
            self._c = ctypes.CDLL(path)
            for name, arguments in FUNCTIONS.items():
                function = getattr(self._c, name)
                function.argtypes, function.restype = arguments, c_int32
        except (OSError, AttributeError) as exc:
            raise ConfigError(
                f"library: {path} cannot be loaded: {exc}; install Hamamatsu's DCAM-API for Linux, or set the option "
                "library to where its libdcamapi.so is"
            ) from exc
        self._users = 0
        self._lock = threading.Lock()
        self.found = 0  # cameras

    def __enter__(self) -> Library:
        with self._lock:
            if not self._users:
                option = (c_int32 * 2)(1, 0)  # the latest interface; the end
                wanted = ApiInit(initoptionbytes=ctypes.sizeof(option), initoption=option)
                try:
                    self.call("dcamapi_init", wanted)
                except DcamError:
                    self._c.dcamapi_uninit()
                    raise
                self.found = wanted.iDeviceCount
            self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._c.dcamapi_uninit()

    def result(self, name: str, *arguments: Any) -> int:
        """What the function returns, whatever that says."""
        return int(getattr(self._c, name)(*arguments))

    def call(self, name: str, *arguments: Any, what: str = "") -> None:
        """DcamError: it failed; `what` tells of what."""
        answer = self.result(name, *arguments)
        if answer < 0:
            raise DcamError(f"{name} {what}".rstrip(), answer, self._words(answer))

    def _words(self, code: int) -> str:
        words = self.string(None, code)
        return f"({words})" if words else ""

    def string(self, handle: int | None, kind: int) -> str:
        """A text of a camera; `handle` may be the index of one that is not open. Empty: there is none."""
        text = ctypes.create_string_buffer(256)
        wanted = DevString(iString=kind, text=ctypes.cast(text, c_char_p), textbytes=len(text))
        if self.result("dcamdev_getstring", handle, wanted) < 0:
            return ""
        return text.value.decode(errors="replace").strip()


_libraries: dict[str, Library] = {}
_loading = threading.Lock()


def library(path: str) -> Library:
    """The one at this path, or of this name; ConfigError: it is not there. Kept for good, as a process has but one."""
    with _loading:
        if path not in _libraries:
            _libraries[path] = Library(path)
        return _libraries[path]
