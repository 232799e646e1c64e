"""The pixel kernels in C under the address and undefined-behaviour sanitizers, with random and damaged input."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "tangods_receiver"
COMPILER = shlex.split(os.environ.get("CC", "gcc"))
FLAGS = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture
def program(tmp_path):
    if not shutil.which(COMPILER[0]):
        pytest.skip("no C compiler")
    target = tmp_path / "kernels_fuzz"
    sources = [HERE / "kernels_fuzz.c", PACKAGE / "_pixels_kernels.c"]
    done = subprocess.run(
        [*COMPILER, *FLAGS, f"-I{PACKAGE}", *map(str, sources), "-o", str(target)], capture_output=True, text=True
    )
    if "asan" in done.stderr and "cannot find" in done.stderr:
        pytest.skip("no sanitizers with this compiler")
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_kernels_stay_within_their_memory(program):
    done = subprocess.run([str(program), "2000"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2000 rounds" in done.stdout
