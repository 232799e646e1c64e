"""Wait for the thing itself, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(look: Callable[[], T], timeout: float = 10.0, what: str | Callable[[], str] = "") -> T:
    """Return what `look` gives as soon as it is true; AssertionError after `timeout` s, with `what` was waited for."""
    end = time.monotonic() + timeout
    while not (value := look()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout} s for {(what() if callable(what) else what) or look}")
        time.sleep(0.01)
    return value
