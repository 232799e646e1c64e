"""The compiled parts, where they could be built: for speed alone, everything has a twin in Python.

TANGODS_NO_COMPILED=1 in the environment leaves them out."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

log = logging.getLogger(__name__)

WANTED = not os.environ.get("TANGODS_NO_COMPILED")


def module(name: str) -> ModuleType | None:
    """The compiled module `name` of this package; None: do without."""
    if not WANTED:
        return None
    try:
        return importlib.import_module(f"tangods_receiver.{name}")
    except ImportError as exc:  # no compiler when this was installed, or a pyzmq without its own libzmq
        log.info("%s is not used, Python does its work: %s", name, exc)
        return None
