"""The declarations of Andor's SDK3 against a C compiler, and what lies in its buffers."""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.hw.andor_frames import Layout, Losses, Numbers, ticks_of
from tangods_detector.hw.andor_sdk import ERRORS, FUNCTIONS, TYPES, Library
from tangods_detector.hw.andor_settings import depth_of
from tangods_detector.simulators import andor as simulator
from tangods_detector.simulators import build

COMPILER = shlex.split(os.environ.get("CC", "gcc"))
HEADER = Path(build.__file__).parent / "fake_atcore.h"


def compiled(folder: Path, lines: list[str]) -> Path:
    source, program = folder / "abi.c", folder / "abi"
    source.write_text(
        f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{\n' + "\n".join(lines) + "\nreturn 0; }\n"
    )
    done = subprocess.run([*COMPILER, str(source), "-o", str(program), "-Wl,--unresolved-symbols=ignore-all"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return program


def same(name: str, arguments: str) -> str:
    return (
        f"_Static_assert(__builtin_types_compatible_p(__typeof__(&{name}), int (*)({arguments or 'void'})), "
        f'"{name}({arguments})");'
    )


def test_every_declaration_is_the_header_s(tmp_path: Path) -> None:
    compiled(tmp_path, [same(name, arguments) for name, arguments in FUNCTIONS.items()])
    with pytest.raises(AssertionError, match="AT_SetInt"):  # the check can fail
        compiled(tmp_path, [same("AT_SetInt", "AT_H, const AT_WC *, int")])


def test_every_type_has_the_size_that_a_compiler_gives_it(tmp_path: Path) -> None:
    lines = [f'printf("%zu\\n", sizeof({kind}));' for kind in TYPES if kind != "FeatureCallback"]
    lines.append('printf("%zu %zu\\n", sizeof(FeatureCallback), sizeof(AT_WC));')
    program = compiled(tmp_path, lines)
    sizes = [int(n) for n in subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()]
    ours = [ctypes.sizeof(kind) for name, kind in TYPES.items() if name != "FeatureCallback"]
    assert sizes == [*ours, ctypes.sizeof(TYPES["FeatureCallback"]), ctypes.sizeof(ctypes.c_wchar)]


def test_every_error_has_the_header_s_number(tmp_path: Path) -> None:
    lines = [f'printf("%d\\n", {"AT_SUCCESS" if not n else "AT_ERR_" + name});' for n, name in ERRORS.items()]
    program = compiled(tmp_path, lines)
    assert [int(n) for n in subprocess.run([program], capture_output=True, text=True).stdout.split()] == list(ERRORS)
    assert ERRORS[39] == "DEVICENOTFOUND" and len(ERRORS) == 41


def test_the_pretended_library_exports_all_of_the_header(tmp_path: Path) -> None:
    library = Library.load(str(simulator.make(tmp_path))).functions
    names = [
        words.split("(")[0] for words in HEADER.read_text().split("int ") if words.startswith("AT_") and "(" in words
    ]
    assert set(FUNCTIONS) < set(names) and len(names) > 40
    for name in names:
        assert getattr(library, name)


def test_it_does_what_the_sdk_documents_without_a_backend(tmp_path: Path) -> None:
    """Codes for what a backend never does."""
    sdk = Library(str(simulator.make(tmp_path, ["zyla A"])))
    f, value = sdk.functions, ctypes.c_longlong()
    assert f.AT_GetInt(1, "DeviceCount", ctypes.byref(value)) == 1  # NOTINITIALISED
    sdk.open()
    camera = sdk.camera(0)
    h = camera.handle
    assert f.AT_GetInt(99, "AOIWidth", ctypes.byref(value)) == 12  # INVALIDHANDLE
    assert f.AT_GetInt(h, "AOI Width", ctypes.byref(value)) == 2  # NOTIMPLEMENTED
    assert f.AT_GetInt(h, None, ctypes.byref(value)) == 20  # NULL_FEATURE
    assert f.AT_GetInt(h, "AOIWidth", None) == 28  # NULL_VALUE
    assert f.AT_SetInt(h, "AOIWidth", 100_000) == 6 and camera.get_int("AOIWidth") == 2560  # OUTOFRANGE
    assert f.AT_SetInt(h, "SensorWidth", 1) == 3  # READONLY
    assert f.AT_SetEnumString(h, "TriggerMode", "Sometimes") == 19  # STRINGNOTIMPLEMENTED
    assert f.AT_SetEnumString(h, "PixelReadoutRate", "200 MHz") == 18  # STRINGNOTAVAILABLE
    assert f.AT_GetString(h, "SerialNumber", ctypes.create_unicode_buffer(1), 1) == 9  # EXCEEDEDMAXSTRINGLENGTH
    memory = ctypes.create_string_buffer(camera.get_int("ImageSizeBytes") + 16)
    at = ctypes.addressof(memory) // 8 * 8 + 8
    assert f.AT_QueueBuffer(h, at + 1, len(memory) - 16) == 16  # INVALIDALIGNMENT
    assert f.AT_QueueBuffer(h, at, 100) == 15  # INVALIDSIZE
    assert camera.waiter()(0) == (11, 0)  # NODATA
    camera.queue(at, len(memory) - 16)
    camera.command("AcquisitionStart")
    assert f.AT_SetBool(h, "SensorCooling", 1) == 5  # NOTWRITABLE while it acquires
    code, address = 13, 0
    while code == 13:  # TIMEDOUT
        code, address = camera.waiter()(100)
    assert (code, address) == (0, at)
    camera.command("AcquisitionStop")
    camera.flush()
    camera.close()
    sdk.close()
    assert f.AT_FinaliseLibrary() == 1


# --- buffers ---------------------------------------------------------------------------------------------------------


def chunk(kind: int, data: bytes) -> bytes:
    return data + struct.pack("<II", kind, len(data) + 4)


def test_the_metadata_block_is_read_from_its_end() -> None:
    image, info = bytes(40), struct.pack("<HBBHH", 8, 2, 0, 4, 5)
    assert ticks_of(chunk(0, image) + chunk(7, info) + chunk(1, struct.pack("<Q", 2**40 + 7))) == 2**40 + 7
    assert ticks_of(chunk(0, image) + chunk(1, struct.pack("<Q", 9)) + chunk(7, info)) == 9
    assert ticks_of(chunk(0, image) + chunk(7, info)) is None
    assert ticks_of(chunk(0, image) + chunk(1, b"1234")) is None
    assert ticks_of(b"") is None


@given(st.binary(max_size=100))
def test_any_bytes_are_no_metadata_or_some(data: bytes) -> None:
    found = ticks_of(data)
    assert found is None or 0 <= found < 2**64


@pytest.mark.parametrize(
    "encoding, stride, codec, sent",
    [
        ("Mono16", 20, "none", None),
        ("Mono12", 64, "none", 64),
        ("Mono12Packed", 15, "mono12packed", None),
        ("Mono12Packed", 16, "mono12packed", 16),
    ],
)
def test_how_a_buffer_is_sent(encoding: str, stride: int, codec: str, sent: int | None) -> None:
    layout = Layout.of((4, 10), encoding, stride, 4 * stride + 40, 100)
    assert (layout.codec, layout.stride, layout.image_bytes, layout.shape) == (codec, sent, 4 * stride, (4, 10))
    for wrong in ((14, 400), (stride, 4 * stride - 1)):
        with pytest.raises(ValueError, match="4 rows"):
            Layout.of((4, 10), encoding, *wrong, 100)


def test_packed_rows_of_an_odd_number_of_pixels_begin_with_a_byte_of_their_own() -> None:
    assert Layout.of((4, 9), "Mono12Packed", 14, 56, 0).stride == 14


def test_bits_in_texts() -> None:
    texts = ["16-bit (low noise & high well capacity)", "12 Bit", "Fast speed (12-bit)", "Standard", "11 Bit"]
    assert [depth_of(text) for text in texts] == [16, 12, 12, 0, 11]


# --- numbers of frames -----------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 10**6), st.floats(-0.3, 0.3))
def test_the_camera_s_clock_tells_what_is_missing(there: list[bool], period: int, jitter: float) -> None:
    """The first frame must be there, as all buffers are queued when it is taken."""
    there = [True, *there]
    numbers = Numbers(period, len(there))
    wobble = int(jitter * period / 2)
    found = [numbers.take(1000 + n * period + (wobble if n % 2 else 0)) for n, came in enumerate(there) if came]
    assert found == [n for n, came in enumerate(there) if came]
    numbers.finish()
    assert numbers.losses.count == there.count(False) and numbers.next == len(there)


def test_a_frame_with_damaged_metadata_takes_the_next_place() -> None:
    numbers = Numbers(10, 9)
    assert [numbers.take(t) for t in (100, None, 120, None, 160, 170)] == [0, 1, 2, 3, 6, 7]
    assert numbers.damaged == 2 and str(numbers.losses) == "4-5"
    numbers.finish()
    assert str(numbers.losses) == "4-5, 8"


def test_overflow_events_tell_after_which_buffer() -> None:
    numbers = Numbers(0, 20)
    numbers.queued = 3
    numbers.overflow()
    numbers.overflow()
    numbers.queued = 6
    assert [numbers.take(None) for _ in range(6)] == [0, 1, 2, 5, 6, 7]
    numbers.overflow()
    numbers.finish()
    assert str(numbers.losses) == "3-4, 8-19"
    endless = Numbers(0)
    endless.overflow()
    endless.finish()
    assert endless.losses.count == 1


def test_a_frame_exposed_after_an_overflow_event_comes_after_the_lost_one() -> None:
    """The event came late: buffers had been queued meanwhile."""
    numbers, now = Numbers(0, 20), time.time()
    numbers.queued = 3
    assert [numbers.take(None, now - 1) for _ in range(2)] == [0, 1]
    numbers.queued = 5
    numbers.overflow()
    assert [numbers.take(None, at) for at in (now - 0.5, now + 60, now + 61)] == [2, 4, 5]


def test_no_number_is_beyond_the_series() -> None:
    numbers = Numbers(10, 5)
    assert [numbers.take(t) for t in (0, 10, 10_000, 10_010)] == [0, 1, 4, 5]


def test_frames_that_are_not_sent() -> None:
    numbers = Numbers(0, 9)
    for n in range(6):
        assert numbers.take(None) == n
        if n in (1, 2, 4):
            numbers.drop()
    assert (str(numbers.losses), numbers.dropped) == ("1-2, 4", 3)


def test_many_ranges_are_cut() -> None:
    losses = Losses()
    for n in range(0, 1000, 2):
        losses.add(n, 1)
    assert losses.count == 500 and str(losses).endswith("96, 98, ...")
