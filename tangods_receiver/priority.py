"""Threads whose work may wait: where cores are short, recording comes first."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

NICE = 10  # more than the rest of the process: about a tenth of its weight (sched(7))


def give_way() -> None:
    """The calling thread, and those that begin in it, from now on."""
    thread = threading.get_native_id()  # to Linux, a process
    with suppress(OSError):  # not allowed: then not
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE)
