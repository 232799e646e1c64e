"""What goes wrong next. Each is used up once; what was not used waits until `fail` is called again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tangods_receiver.errors import ConfigError

NUMBERS = ("full_at", "disconnect_at")


@dataclass
class Failures:
    """Image numbers count from 0 over the series. Texts are parts of a command or reply: `setenergy`, `7 OK`."""

    # the connection
    split: int = 0  # so many replies come byte by byte
    merge: int = 0  # so many replies come in one segment with the one that follows, or by themselves a little later
    mute: str = ""  # the next reply that contains it does not come
    noise: str = ""  # this comes before the next reply
    disconnect: str = ""  # at the next command that contains it, before it is done
    disconnect_at: int | None = None  # after this image; the series goes on
    hang: str = ""  # the next command that contains it is done and answered after hang_seconds
    hang_seconds: float = 110.0
    # commands
    refuse: str = ""  # the next command that contains it is answered with ERR
    forget: bool = False  # the next setthreshold, setenergy resets all settings but imgpath, not only two
    kill_ignored: int = 0  # so many kills are neither answered nor obeyed
    k_ignored: int = 0  # so many `k`, but no `camcmd k`, of series of several images
    # the end of the series
    seven_error: bool = False  # 7 ERR instead of 7 OK
    two_sevens: bool = False
    full_at: int | None = None  # the image disk is full at this image: 15 ERR, the series stops
    # edges
    skip_edges: int = 0  # so many edges never arrive
    # files
    old: int = 0  # files of an earlier series with the last names of the next series are there before it
    missing: list[int] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    wrong_md5: list[int] = field(default_factory=list)  # CBF: a byte of the pixels differs from what the MD5 is of
    late: list[int] = field(default_factory=list)  # renamed late_seconds late; the rest does not wait, nor does the 7
    late_seconds: float = 1.0
    reorder: list[int] = field(default_factory=list)  # renamed after the image that follows it
    wide: list[int] = field(default_factory=list)  # pixels of 32 bits whose differences need 32 and 64 bits

    def take(self, name: str) -> Any:
        """The value, which is used up; its neutral value when it is not wished."""
        value = getattr(self, name)
        setattr(self, name, _neutral(name))
        return value

    def take_one(self, name: str) -> bool:
        """One of so many?"""
        left = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0

    def take_text(self, name: str, text: str) -> bool:
        """Is this command or reply meant? Then it is used up."""
        wanted = getattr(self, name)
        if not wanted or wanted not in text:
            return False
        setattr(self, name, "")
        return True

    def take_image(self, name: str, number: int) -> bool:
        """Is this image meant? Then it is used up."""
        wanted = getattr(self, name)
        if wanted is None or number != wanted and (type(wanted) is int or number not in wanted):
            return False
        if type(wanted) is int:
            setattr(self, name, None)
        else:
            wanted.remove(number)
        return True

    def pending(self) -> dict[str, Any]:
        """What is not used up."""
        wished = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.endswith("_seconds")}
        return {name: value for name, value in wished.items() if value != _neutral(name)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Failures:
        """ConfigError: a name or type is wrong."""
        made = cls()
        for name, value in told.items():
            if name not in {f.name for f in fields(cls)}:
                raise ConfigError(f"failures: {name!r} is not known")
            usual = _neutral(name)
            wanted = (int,) if name in NUMBERS else (int, float) if type(usual) is float else (type(usual),)
            if type(value) not in wanted or (type(value) is list and not all(type(n) is int for n in value)):
                raise ConfigError(f"failures: {name} cannot be {value!r}")
            setattr(made, name, value)
        return made


def _neutral(name: str) -> Any:
    found = next(f for f in dataclasses.fields(Failures) if f.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()
