"""What goes wrong next. Each is used up once; what was not used waits until `fail` is called again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tangods_detector.simulators.wishes import Wishes


@dataclass
class Failures(Wishes):
    """Image numbers count from 0 over the series. Texts are parts of a command or reply: `setenergy`, `7 OK`."""

    HOW: ClassVar[tuple[str, ...]] = ("hang_seconds", "late_seconds")

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
