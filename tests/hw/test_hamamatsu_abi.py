"""DCAM-API 4 as it is declared here, what a C compiler makes of the manual's tables, and the pretended library."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tangods_detector.hw import hamamatsu_dcam as dcam
from tangods_detector.simulators import build

HEADER = Path(build.__file__).with_name("fake_dcam.h")

# size, then each member: type in C, name, offset; natural alignment on 64-bit Linux
TABLE: dict[str, tuple[int, str]] = {
    "ApiInit": (32, "i size 0, i iDeviceCount 4, i reserved 8, i initoptionbytes 12, p initoption 16, p guid 24"),
    "DevOpen": (16, "i size 0, i index 4, p hdcam 8"),
    "DevCapability": (16, "i size 0, i domain 4, i capflag 8, i kind 12"),
    "DevString": (24, "i size 0, i iString 4, p text 8, i textbytes 16"),
    "PropAttr": (
        88,
        "i cbSize 0, i iProp 4, i option 8, i reserved 12, i attribute 16, i iGroup 20, i iUnit 24, i attribute2 28, "
        "d valuemin 32, d valuemax 40, d valuestep 48, d valuedefault 56, i nMaxChannel 64, i reserved3 68, "
        "i nMaxView 72, i iProp_NumberOfElement 76, i iProp_ArrayBase 80, i iPropStep_Element 84",
    ),
    "PropValueText": (32, "i cbSize 0, i iProp 4, d value 8, p text 16, i textbytes 24"),
    "BufAttach": (24, "i size 0, i iKind 4, p buffer 8, i buffercount 16"),
    "BufFrame": (
        64,
        "i size 0, i iKind 4, i option 8, i iFrame 12, p buf 16, i rowbytes 24, i type 28, i width 32, i height 36, "
        "i left 40, i top 44, t timestamp 48, i framestamp 56, i camerastamp 60",
    ),
    "WaitOpen": (24, "i size 0, i supportevent 4, p hwait 8, p hdcam 16"),
    "WaitStart": (16, "i size 0, i eventhappened 4, i eventmask 8, i timeout 12"),
    "TransferInfo": (16, "i size 0, i iKind 4, i nNewestFrameIndex 8, i nFrameCount 12"),
    "TimeStamp": (8, "u sec 0, i microsec 4"),
}
C_TYPES = {"i": "int32_t", "u": "uint32_t", "p": "void *", "d": "double", "t": "struct {uint32_t sec; int32_t us;}"}
IN_HEADER = {  # as the pretended library calls them
    "ApiInit": "DCAMAPI_INIT",
    "DevOpen": "DCAMDEV_OPEN",
    "DevCapability": "DCAMDEV_CAPABILITY",
    "DevString": "DCAMDEV_STRING",
    "PropAttr": "DCAMPROP_ATTR",
    "PropValueText": "DCAMPROP_VALUETEXT",
    "BufAttach": "DCAMBUF_ATTACH",
    "BufFrame": "DCAMBUF_FRAME",
    "WaitOpen": "DCAMWAIT_OPEN",
    "WaitStart": "DCAMWAIT_START",
    "TransferInfo": "DCAMCAP_TRANSFERINFO",
    "TimeStamp": "DCAM_TIMESTAMP",
}


def members(name: str) -> list[tuple[str, str, int]]:
    return [(kind, member, int(at)) for kind, member, at in (part.split() for part in TABLE[name][1].split(", "))]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What gcc says: of structures written from the table, and of the pretended library's own."""
    folder = tmp_path_factory.mktemp("abi")
    lines = ["#include <stddef.h>", "#include <stdint.h>", "#include <stdio.h>", f'#include "{HEADER}"']
    for name in TABLE:
        lines += [f"struct {name} {{", *(f"{C_TYPES[kind]} {member};" for kind, member, _ in members(name)), "};"]
    lines.append("int main(void) {")
    for name in TABLE:
        for what, struct in (("table", f"struct {name}"), ("header", IN_HEADER[name])):
            lines.append(f'printf("{what} {name} size! %zu\\n", sizeof({struct}));')
            lines += [f'printf("{what} {name} {m} %zu\\n", offsetof({struct}, {m}));' for _, m, _ in members(name)]
    source = folder / "abi.c"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["gcc", "-std=gnu11", str(source), "-o", str(folder / "abi")], check=True)
    found: dict[str, dict[str, int]] = {}
    for line in subprocess.run([folder / "abi"], check=True, capture_output=True, text=True).stdout.splitlines():
        what, name, member, number = line.split()
        found.setdefault(f"{what} {name}", {})[member] = int(number)
    return found


@pytest.mark.parametrize("name", TABLE)
def test_structures(measured: dict[str, dict[str, int]], name: str) -> None:
    size, _ = TABLE[name]
    wanted = {"size!": size} | {member: at for _, member, at in members(name)}
    assert measured[f"table {name}"] == wanted, "the table itself"
    assert measured[f"header {name}"] == wanted, "the pretended library"
    ours = getattr(dcam, name)
    assert {"size!": ctypes.sizeof(ours)} | {f[0]: getattr(ours, f[0]).offset for f in ours._fields_} == wanted
    kinds = {"i": ctypes.c_int32, "u": ctypes.c_uint32, "d": ctypes.c_double}
    for kind, member, _ in members(name):
        declared = dict(ours._fields_)[member]  # type: ignore[misc]
        assert declared is kinds.get(kind, declared), member
        assert ctypes.sizeof(declared) == (4 if kind in "iu" else 8)


def test_each_structure_tells_its_size() -> None:
    for name, (size, _) in TABLE.items():
        if name != "TimeStamp":
            ours = getattr(dcam, name)()
            assert getattr(ours, ours._fields_[0][0]) == size


def test_ids_and_codes_are_those_of_the_pretended_library() -> None:
    found = dict(re.findall(r"(\w+) = (?:\(int32_t\))?(0x[0-9a-fA-F]+)", HEADER.read_text()))
    ids = {name: int(number, 16) for name, number in found.items()}
    assert {name: ids[name] for name in ids if name in dcam.Prop.__members__} == {
        name: int(dcam.Prop[name]) for name in ids if name in dcam.Prop.__members__
    }
    assert {name: ids[name] for name in ids if name in dcam.Code.__members__} == {
        name: int(dcam.Code[name]) for name in ids if name in dcam.Code.__members__
    }
    assert set(ids) - set(dcam.Prop.__members__) - set(dcam.Code.__members__) <= {"TRIGGERPOLARITY"}
    assert len(ids) > 70


def test_every_function_is_exported() -> None:
    library = ctypes.CDLL(str(build.build("fake_dcam.c")))
    for name in (*dcam.FUNCTIONS, "dcambuf_alloc", "dcambuf_copyframe", "dcamprop_setvalue"):
        assert getattr(library, name)


def test_a_sanitised_library_finds_nothing() -> None:
    """Addresses, use after the end and undefined behaviour, in all that the backend does with it."""
    flags = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = build.build("fake_dcam.c", flags)
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
    env = {
        **os.environ,
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "tests.hw.hamamatsu_series", str(library)]
    top = Path(__file__).parent.parent.parent
    done = subprocess.run(command, cwd=top, env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0 and "ERROR: AddressSanitizer" not in done.stderr, done.stderr[-4000:]
    assert done.stdout.strip() == "30 series"
