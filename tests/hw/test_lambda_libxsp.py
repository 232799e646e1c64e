"""libxsp through the C interface: real calls of a library that pretends it."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tangods_detector.hw.lambda_libxsp import SIGNATURES, WORDS, LambdaLibxsp, LibxspOptions, load
from tangods_detector.hw.lambda_system import DTYPES, SETTINGS, Feature, FrameStatus
from tangods_receiver.errors import HardwareError
from tests.hw.fake_lambda import HEADER, SHAPE, Fake, config, image, library
from tests.waiting import wait_for

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def path():
    return library()


@pytest.fixture
def fake(path):
    return Fake(path)


@pytest.fixture
def opened(path, tmp_path):
    """Opens systems, by what is in their configuration."""
    systems = []

    def open_it(modules=2, **values):
        systems.append(LambdaLibxsp(LibxspOptions(str(path), config(tmp_path, modules, **values))))
        systems[-1].connect()
        return systems[-1]

    yield open_it
    for system in systems:
        system.close()


@pytest.fixture
def system(opened):
    return opened()


def idle(system):
    return not any(module.busy for module in system.status())


def ready(system):
    return wait_for(lambda: all(m.ready and m.ram_allocated for m in system.status()))


def begin(system, frames=5, **values):
    ready(system)
    for name, value in {"n_frames": frames, "shutter_time": 1.0, **values}.items():
        system.set(name, value)
    system.start()


def take(system, module=0, timeout=5.0):
    """The next frame; AssertionError: there is none."""
    frame = system.next_frame(module, timeout)
    assert frame is not None
    return frame


def test_what_is_there(opened):
    system = opened(3, width=77, height=33, x=[0, 80, -1], y=[2.5, 0, 7], rotation=[0, 90, 270])
    about = system.describe()
    assert (about.detector, about.bit_depth, about.dtype) == ("Lambda", 12, "uint16")
    assert about.library.startswith("libxsp ")
    assert [m.name for m in about.modules] == ["lambda/1", "lambda/2", "lambda/3"]
    assert [(m.x, m.y, m.rotation) for m in about.modules] == [(0, 2.5, 0), (80, 0, 90), (-1, 7, 270)]
    assert {m.shape for m in about.modules} == {(33, 77)}
    assert about.modules[1].features == Feature.HV | Feature.BITS_1_6
    assert len(about.modules[1].chip_ids) == 12 and about.modules[1].chip_ids[3] == "W2_chip-04"
    assert "feat=" in about.modules[0].firmware


def test_the_header_and_the_calls_agree():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    declared = {name: len(given.split(",")) for name, given in re.findall(r"\b(xl_\w+)\(([^)]*)\);", text)}
    for name, kinds in SIGNATURES.items():
        assert declared.pop(name) == len(kinds), name
    assert set(declared) == {"xl_abi", "xl_close", "xl_error"}
    codes = {int(value, 0) for value in re.findall(r"XL_\w+ = (0x\w+|\d+)", text.partition("enum xl_frame_status")[0])}
    assert codes - {0, 1} == set(WORDS)


def test_the_source_for_the_vendors_library_has_the_whole_interface():
    source = HEADER.with_name("xl_libxsp.cpp").read_text()
    defined = set(re.findall(r"^(?:int|void|size_t|uint32_t) (xl_\w+)\(", source, re.M))
    assert defined == {*SIGNATURES, "xl_abi", "xl_close", "xl_error"}


@pytest.mark.soak
@pytest.mark.parametrize("version", [1, 2])
def test_the_source_for_the_vendors_library_is_cplusplus(version):
    """As far as that can be told without the library: against declarations of our own."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: the source for the vendor's library is not looked at")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-DXSP_VERSION={version}"]
    folders = [f"-I{TOP / 'tests/hw/pretended_libxsp'}", f"-I{HEADER.parent}"]
    line = ["g++", *flags, *folders, HEADER.with_name("xl_libxsp.cpp")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_settings_of_every_kind(system):
    ready(system)
    values = {"n_frames": 7, "shutter_time": 2.5, "thresholds": [4.5, 9.0], "trigger_mode": "EXT_FRAMES"}
    values |= {"beam_energy": 12.4, "charge_summing": "ON", "roi_rows": 128, "counter_mode": "DUAL"}
    for name, value in values.items():
        system.set(name, value)
    assert {name: system.get(name) for name in values} == values
    assert all(system.get(name) is not None for name in SETTINGS)
    system.set("voltage", 298.0, 1)
    assert (system.get("voltage", 0), system.get("voltage", 1)) == (0, 298)
    assert system.get("temperature", 0) == [31.5, 40.25, 35.0]
    assert system.get("max_frames", 0) == 2000


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("shutter_time", -1.0, "libxsp: setting shutter_time to -1.0: 0x804a argument out of range"),
        ("n_frames", 1 << 24, "0x804a argument out of range .frame count exceeds 16777215"),
        ("bit_depth", 13, "0x804b argument invalid"),
        ("trigger_mode", "EVERY", "0x804b argument invalid"),
        ("bit_depth", "twelve", "bit_depth cannot be 'twelve'"),
        ("n_frames", 1.5, "n_frames cannot be 1.5"),
        ("thresholds", 5.0, "thresholds cannot be 5.0"),
        ("thresholds", [1.0] * 9, "9 thresholds"),
        ("shutter_time", [1.0], "cannot be"),
    ],
)
def test_what_cannot_be_set(system, name, value, words):
    before = system.get(name)
    with pytest.raises(HardwareError, match=words):
        system.set(name, value)
    assert system.get(name) == before


@pytest.mark.parametrize("code", [code for code in WORDS if code >= 0x8000])
def test_every_code_is_told_in_words(system, fake, code):
    fake.tell("refuse_set", code)
    with pytest.raises(HardwareError, match=f"{code:#06x} {WORDS[code]} .n_frames was refused"):
        system.set("n_frames", 5)
    fake.tell("refuse_start", code)
    ready(system)
    with pytest.raises(HardwareError, match=f"start: {code:#06x} {WORDS[code]}"):
        system.start()


def test_what_the_firmware_cannot_do(opened):
    system = opened(no_low_depth=1, max_per_trigger=1)
    ready(system)
    for depth in (1, 6):
        with pytest.raises(HardwareError, match="1 and 6 bit not supported"):
            system.set("bit_depth", depth)
    with pytest.raises(HardwareError, match="1 frames per trigger at most"):
        system.set("frames_per_trigger", 2)
    assert (system.get("bit_depth"), system.get("frames_per_trigger")) == (12, 1)


@pytest.mark.parametrize("depth", [1, 6, 12, 24])
def test_every_pixel_of_every_frame(system, depth):
    ready(system)
    system.set("bit_depth", depth)
    assert system.describe().bit_depth == depth
    begin(system)
    for module in range(2):
        for number in range(1, 6):
            frame = take(system, module)
            assert (frame.number, frame.status) == (number, FrameStatus.OK)
            pixels = np.frombuffer(frame.pixels, DTYPES[depth]).reshape(SHAPE)
            assert (pixels == image(module, number, depth=depth)).all()
            frame.release()
    assert system.next_frame(0, 0.0) is None


def test_a_frame_is_the_librarys_memory_until_it_is_given_back(system, fake):
    begin(system, 2)
    first, second = take(system), take(system)
    kept = bytes(first.pixels)
    assert kept == image(0, 1).tobytes()
    first.release()
    assert bytes(first.pixels) == b"\xaa" * len(kept), "what comes now comes into the same memory"
    assert bytes(second.pixels) == image(0, 2).tobytes()
    with pytest.raises(HardwareError, match="lambda/1: giving a frame back: 0x804b argument invalid"):
        first.release()
    second.release()
    assert (fake.get("taken"), fake.get("released"), fake.get("refused")) == (2, 2, 1)


def test_other_threads_run_while_a_call_waits(system):
    """ctypes calls without Python's lock: else nothing here would go on before the call is over."""
    ready(system)
    order, begun = [], threading.Event()

    def wait():
        begun.set()
        system.next_frame(0, 0.8)
        order.append("call")

    thread = threading.Thread(target=wait)
    thread.start()
    assert begun.wait(10)
    time.sleep(0.05)
    for _ in range(10):
        system.status()
    order.append("others")
    thread.join()
    assert order == ["others", "call"]


def test_a_full_ring_loses_frames_until_some_are_given_back(opened, fake):
    system = opened(1, ring=4)
    begin(system, 10)
    kept = [take(system) for _ in range(4)]
    wait_for(lambda: idle(system))
    assert system.next_frame(0, 0.0) is None
    assert fake.get("overflowed") == 6
    for frame in kept:
        frame.release()
    begin(system, 2)
    again = [take(system), take(system)]
    assert [frame.number for frame in again] == [1, 2]
    for frame in again:
        frame.release()


def test_a_new_start_forgets_what_was_not_taken(system):
    begin(system, 5)
    wait_for(lambda: idle(system))
    begin(system, 1)
    frame = take(system)
    assert frame.number == 1
    frame.release()
    wait_for(lambda: idle(system))
    assert system.next_frame(0, 0.0) is None


def test_frames_that_came_badly(opened):
    system = opened(1, incomplete=[2], missing=[3])
    begin(system, 6)
    frames = [take(system) for _ in range(6)]
    good, bad, none = FrameStatus.OK, FrameStatus.INCOMPLETE, FrameStatus.MISSING
    assert [frame.status for frame in frames] == [good, bad, none, bad, good, none]
    assert [bool(len(frame.pixels)) for frame in frames] == [True, True, False, True, True, False]
    for frame in frames:
        frame.release()


def test_a_change_of_size(opened):
    system = opened(ram_ms=100)
    ready(system)
    system.set("interpolation", "OFF")
    assert not any(module.ram_allocated for module in system.status())
    assert {m.shape for m in system.describe().modules} == {(SHAPE[0] - 4, SHAPE[1] - 4)}
    ready(system)


def test_external_frames_come_with_their_edges(system, fake):
    begin(system, 4, trigger_mode="EXT_FRAMES", frames_per_trigger=2)
    wait_for(lambda: all(module.busy for module in system.status()))
    assert system.next_frame(0, 0.05) is None
    for edge in (1, 2):
        fake.edges()
        for _ in range(2):
            frame = take(system)
            assert frame.trigger == edge
            frame.release()
    wait_for(lambda: idle(system))


def test_start_is_refused_where_it_cannot_be(opened, fake):
    system = opened(ready_ms=60_000)
    with pytest.raises(HardwareError, match="start: 0x8012 not ready .module 1 not ready"):
        system.start()
    fake.tell("deaf", 1)
    with pytest.raises(HardwareError, match="reading the status: 0x8005 communication"):
        system.status()


def test_a_library_that_is_none(tmp_path):
    with pytest.raises(HardwareError, match="cannot be used as the wrapper of libxsp.*resources/lambda/README.md"):
        load(str(tmp_path / "nowhere.so"))
    source = tmp_path / "old.c"
    source.write_text("unsigned xl_abi(void) { return 7; }\n")
    for name, words in (("old", "version 7 of the interface, not 1"), ("other", "cannot be used as the wrapper")):
        target = tmp_path / f"{name}.so"
        flags = ["-Dxl_abi=something_else"] if name == "other" else []
        subprocess.run(["gcc", "-shared", "-fPIC", *flags, source, "-o", target], check=True, timeout=60)
        with pytest.raises(HardwareError, match=words):
            load(str(target))


def test_a_configuration_that_is_none(path, tmp_path):
    for name, text, words in (
        ("nowhere.yml", None, r"opening .*nowhere.yml: 2 configuration \(.*No such file"),
        ("wrong.yml", "modules 2\nmodles 3\n", "line 2: modles is not understood"),
    ):
        file = tmp_path / name
        if text is not None:
            file.write_text(text)
        system = LambdaLibxsp(LibxspOptions(str(path), str(file)))
        with pytest.raises(HardwareError, match=words):
            system.connect()
        with pytest.raises(HardwareError, match="libxsp is not open"):
            system.status()
        system.close()


def test_closing_twice_and_opening_again(opened, fake):
    system = opened()
    begin(system, 3)
    take(system).release()
    system.close()
    system.close()
    assert fake.get("left_out") == 0
    assert len(system.connect().modules) == 2
    begin(system, 1)
    take(system).release()


PROGRAM = """
import sys
from tangods_detector.hw.lambda_libxsp import LambdaLibxsp, LibxspOptions
system = LambdaLibxsp(LibxspOptions(sys.argv[1], sys.argv[2]))
for turn in range(3):
    system.connect()
    for depth in (24, 12, 6):
        system.set("bit_depth", depth)
        while not all(m.ready for m in system.status()):
            pass
        system.set("n_frames", 20)
        system.start()
        frames = [system.next_frame(m, 10.0) for m in range(2) for _ in range(20)]
        assert all(f.pixels[0] == f.number for f in frames)
        for frame in reversed(frames):
            frame.release()
        system.stop()
    system.get("thresholds"), system.describe()
    system.close()
print("good")
"""


@pytest.mark.soak
def test_no_memory_is_used_wrongly_or_lost(tmp_path):
    """The same calls with a library that checks every access, and what is left at the end."""
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, timeout=60)
    checked = library(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    code = [sys.executable, "-c", PROGRAM, str(checked), config(tmp_path)]
    env = {**os.environ, "LD_PRELOAD": found.stdout.strip(), "PYTHONPATH": str(TOP), "PYTHONMALLOC": "malloc"}
    env["ASAN_OPTIONS"] = "detect_leaks=0"  # Python's own would be told
    done = subprocess.run(code, env=env, capture_output=True, text=True, timeout=110)
    assert (done.returncode, done.stdout.strip()) == (0, "good"), done.stderr[-3000:]
