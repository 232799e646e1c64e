"""Device servers without a database."""

from __future__ import annotations

from typing import Any

from tango.server import Device
from tango.test_context import DeviceTestContext

TRIALS = 3


def started(device: type[Device], **more: Any) -> DeviceTestContext:
    """In a process of its own, which is forked: beside threads that happen to hold a lock then (of a Tango client, of a
    window) it may hang before it has begun, and is started again."""
    for trial in range(1, TRIALS + 1):
        context = DeviceTestContext(device, process=True, **more)
        try:
            context.start()
        except RuntimeError:
            if trial == TRIALS or not context.thread.is_alive():
                raise
            context.thread.kill()
            context.thread.join()
        else:
            break
    return context
