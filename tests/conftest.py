"""For every test: nothing may be left behind, and a hang shows where it is."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["TANGO_HOST"] = "127.0.0.1:1"  # nobody there: a test that forgets its database must not find a real one
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # our console scripts
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["ORBscanGranularity"] = "1"  # as our servers have it; a forked one has what this process began with
faulthandler.enable(file=sys.__stderr__)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it
# Shared machines stall: a slow example is not a failure. print_blob: a failure can be repeated elsewhere.
settings.register_profile("project", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("project"), max_examples=20)  # `make check`
settings.load_profile("project")

GRACE = 3.0  # s that threads and children have to end after a test

# Not ours to end: threads of C++ (Tango's event consumers) that once called Python, the time limit itself, and the pool
# of an HTTP side that a wider fixture keeps running (idle threads of it end after 10 s).
KEPT = ("Dummy-", "pytest_timeout", "AnyIO worker")


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if not t.name.startswith(KEPT)}


def _children() -> dict[int, str]:
    """Our child processes and what they run; resource trackers of multiprocessing stay for good."""
    found = {}
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            pids = task.read_text().split()
        except OSError:
            continue
        for pid in map(int, pids):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "resource_tracker" not in words and "forkserver" not in words:
                found[pid] = words.strip() or "(ended, not waited for)"
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fails a test that leaves a thread or a child process behind. What a wider fixture started does not count, also
    when the test restarted it."""
    threads, children = _threads(), _children()
    yield
    end = time.monotonic() + GRACE
    while left := _left(threads, children):
        if time.monotonic() > end:
            pytest.fail(f"left behind: {', '.join(sorted(left))}")
        time.sleep(0.01)


def _left(threads: set[threading.Thread], children: dict[int, str]) -> list[str]:
    """What is there now beyond what was there before, by name."""
    now, running = _threads(), _children()
    left = []
    if len(now) > len(threads):
        left += [f"thread {t.name}" for t in now - threads]
    if len(running) > len(children):
        left += [f"process {pid}: {words}" for pid, words in running.items() if pid not in children]
    return left
