"""The backend with the pretended SDK under the address and undefined-behaviour sanitizers, in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tangods_detector.simulators import andor as simulator

FLAGS = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
PROGRAM = """
import sys, time
from dataclasses import replace
from tangods_detector.hw.andor import Andor
from tangods_detector.hw.andor_settings import AndorOptions
from tangods_detector.hw.base import Phase
from tangods_detector.settings import Series, Settings, TriggerMode
from tangods_receiver.errors import HardwareError
from tests.contract import Listener, wait_for
from tests.hw.andor_library import Fake

fake = Fake(sys.argv[1])
base = Settings(exposure_time=0.001, n_frames_per_trigger=10, roi=(10, 20, 131, 64))
number = 0

def over(backend):
    wait_for("the end", lambda: backend.status().phase in (Phase.DONE, Phase.ERROR), 30)
    return backend.status()

for serial, shape in (("A", {}), ("B", {"binning": (2, 2)})):
    backend = Andor(AndorOptions(library=sys.argv[1], serial_number=serial, memory=8_000_000, buffers=60))
    for _ in range(2):
        backend.connect()
    with Listener(backend.endpoints()) as listener:
        for p in backend.parameters:
            p.get(backend)
        for mode in TriggerMode:
            for depth in (12, 16):
                counts = {"n_triggers": 10, "n_frames_per_trigger": 1} if mode.value[9:] in ("MULTI", "GATE") else {}
                number += 1
                accepted = backend.configure(replace(base, trigger_mode=mode, bit_depth=depth, **shape, **counts))
                backend.arm(Series(number, accepted))
                backend.start()
                fake.tell("edge 10 0.003 0.001")
                if mode is TriggerMode.SOFTWARE:
                    backend.trigger()
                assert over(backend).phase is Phase.DONE
                backend.stop()
                wait_for("the end message", lambda: listener.ended(number), 30)
        for fault in ("lose 3", "corrupt 1", "slow AT_WaitBuffer 0.3", "stall 0.2", "size 8", "unplug"):
            number += 1
            try:
                backend.configure(base)
                fake.tell(*([] if fault == "unplug" else [fault]))
                backend.arm(Series(number, replace(base, n_frames_per_trigger=100)))
                backend.start()
                fake.tell(fault)
                over(backend)
            except HardwareError as exc:
                print(exc)
            backend.stop()
            fake.tell("calm")
        backend.connect()
        backend.arm(Series(number, base, live=True))
        backend.start()
        wait_for("frames", lambda: backend.status().frames > 20, 30)
        backend.expose_live(0.002)
        backend.close()
print("clean", number)
"""


@pytest.mark.slow
def test_no_access_outside_of_what_is_there(tmp_path: Path) -> None:
    library = simulator.make(tmp_path, ["zyla A", "balor B"], ["padding 64"], FLAGS)
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    asan = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    assert os.path.isabs(asan), "the compiler has no sanitizers"
    env = {**os.environ, "LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0,handle_segv=0", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", PROGRAM, str(library)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr[-4000:]
    assert "clean" in done.stdout and "CONNECTION (10)" not in done.stderr
