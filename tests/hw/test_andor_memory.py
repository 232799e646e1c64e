"""Ten thousand frames with a receiver that stops for three seconds: memory, what is lost, and that it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tangods_detector.hw.andor import Andor
from tangods_detector.hw.andor_settings import AndorOptions
from tangods_detector.hw.base import Phase
from tangods_detector.settings import Series, Settings
from tangods_detector.simulators import andor as simulator
from tests.hw.andor_library import Fake

MEMORY = 200_000_000
FRAMES = 10_000
SINK = """
import json, sys, time, zmq
socket = zmq.Context().socket(zmq.PULL)
socket.rcvhwm = 4
socket.connect(sys.argv[1])
frames, wrong = [], 0
while True:
    head, *data = socket.recv_multipart(copy=False)
    head = json.loads(head.bytes)
    if head["htype"] == "series_end":
        break
    if head["htype"] == "image":
        pixels = memoryview(data[0]).cast("H")
        wrong += pixels[0] + (pixels[1] << 12) != head["frame"] or pixels[2] != 0xACE
        frames.append(head["frame"])
        if len(frames) == 2000:
            time.sleep(3)
print(json.dumps([len(frames), wrong, frames[-1], frames == sorted(set(frames))]))
"""


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.soak
def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    fake = Fake(simulator.make(tmp_path, ["zyla A"]))
    before = resident()
    backend = Andor(AndorOptions(library=fake.path, memory=MEMORY, buffers=1000))
    backend.connect()
    settings = Settings(0.001, frame_time=0.0025, n_frames_per_trigger=FRAMES, bit_depth=16, roi=(0, 0, 1280, 160))
    command = [sys.executable, "-c", SINK, backend.endpoints()[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sink:
        try:
            backend.arm(Series(1, backend.configure(settings)))
            backend.start()
            highest, blocked = 0, False
            while (status := backend.status()).phase is Phase.ACQUIRING:
                highest, blocked = max(highest, resident()), blocked or status.blocked
                time.sleep(0.01)
            backend.stop()
            assert sink.stdout is not None
            came, wrong, last, sorted_ = json.loads(sink.stdout.read())
        finally:
            sink.kill()
    lost, missed = backend.lost, fake.count("lost")
    grown = (highest - before) >> 20
    print(f"{came} came, {lost} lost ({missed} by the camera), memory grew by {grown} MiB of {MEMORY >> 20} MiB + 150")
    assert status.phase is Phase.DONE, status.message
    backend.close()
    assert blocked and lost > 100, "the receiver did not stop for long enough"
    assert came + lost == FRAMES and wrong == 0 and sorted_ and last == FRAMES - 1
    assert grown < (MEMORY >> 20) + 150
