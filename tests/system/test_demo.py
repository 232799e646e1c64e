"""The demonstration as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import psutil
import pytest
from PIL import Image

from tangods_receiver.recovery import check
from tests.pages import blocks
from tests.system.beamline import DATASET, wait_for

pytestmark = [pytest.mark.system, pytest.mark.slow]
PROGRAM = str(Path(sys.executable).parent / "tangods-detector")


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    command = [PROGRAM, "demo", "--frames", "40", "--size", "256", "256", "--output", str(output), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_two_at_once(tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    demos = [start(output) for output in outputs]
    for demo, output in zip(demos, outputs, strict=True):
        said, _ = demo.communicate(timeout=110)
        assert demo.returncode == 0, said
        assert "all 40 frames equal" in said
        (file,) = output.glob("*.h5")
        with h5py.File(file) as h5:
            assert h5[DATASET].shape == (40, 256, 256)
        (picture,) = output.glob("*.png")
        with Image.open(picture) as shown:
            assert shown.size[0] > 800
        assert {p.suffix for p in output.iterdir()} == {".h5", ".png"}, "servers, logs and database are gone"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_keep_until_it_is_ended(tmp_path: Path, sign: signal.Signals) -> None:
    import tango

    demo = start(tmp_path, "--keep")
    try:
        assert demo.stdout
        said = ""
        while "export TANGO_HOST" not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        found = re.search(r"TANGO_HOST=(\S+)", said)
        assert found
        detector = tango.DeviceProxy(f"tango://{found[1]}/demo/detector/1")
        assert detector.state() == tango.DevState.ON
        children = descendants(demo.pid)
        assert len(children) == 3
    finally:
        os.kill(demo.pid, sign)
        demo.wait(60)
        demo.stdout.close() if demo.stdout else None
    wait_for("all processes to end", lambda: not any(c.is_running() and c.status() != "zombie" for c in children))


def test_the_example_of_the_readme_in_itango(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = (block for block in blocks(readme) if block.language == "python")
    example = tmp_path / "example.py"
    example.write_text(block.text)
    output = tmp_path / "output"
    demo = start(output, "--keep")
    try:
        assert demo.stdout
        said = iter(demo.stdout.readline, "")
        host = next(line for line in said if "export TANGO_HOST" in line).strip().rpartition("TANGO_HOST=")[2]
        itango = [str(Path(PROGRAM).with_name("itango")), str(example)]
        done = subprocess.run(
            itango, capture_output=True, text=True, timeout=60, env={**os.environ, "TANGO_HOST": host}
        )
    finally:
        demo.terminate()
        demo.wait(60)
        demo.stdout.close() if demo.stdout else None
    assert "Error" not in done.stdout + done.stderr, done.stdout
    assert re.search(r"scan_\d+\.h5 0 missing", done.stdout), done.stdout
    assert check(next(output.glob("scan_*.h5"))).frames == 500


def test_failure_leaves_no_process_and_keeps_the_logs(tmp_path: Path) -> None:
    (tmp_path / "demo_1.h5").mkdir()
    done = subprocess.run([PROGRAM, "demo", "--output", "/proc/nowhere"], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "/proc/nowhere" in done.stderr
    assert "Traceback" not in done.stderr
