"""Which command is allowed in which state of the detector."""

from __future__ import annotations

STATES = ("na", "initialize", "idle", "configure", "ready", "acquire", "error", "test")

_ENDING = ("disarm", "cancel", "abort")
_ALWAYS = ("status_update", "wait")
ALLOWED: dict[str, tuple[str, ...]] = {
    "na": ("initialize", *_ALWAYS),
    "initialize": _ALWAYS,
    "idle": ("initialize", "arm", "hv_reset", *_ENDING, *_ALWAYS),  # the ending ones do nothing here
    "configure": ("abort", "cancel", *_ALWAYS),
    "ready": ("initialize", "trigger", *_ENDING, *_ALWAYS),
    "acquire": (*_ENDING, *_ALWAYS),
    "error": ("initialize", *_ENDING, *_ALWAYS),
    "test": _ALWAYS,
}
WRITABLE = ("idle", "error")  # states in which the detector's parameters can be written


def allowed(state: str, command: str) -> bool:
    return command in ALLOWED[state]
