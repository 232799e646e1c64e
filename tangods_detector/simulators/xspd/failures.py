"""What goes wrong next. What concerns a request, a start or the restart is used up once, the rest lasts until `fail` is
called again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tangods_detector.simulators.wishes import Wishes


@dataclass
class Failures(Wishes):
    """Image numbers count from 0 in each acquisition, modules from 1 over the layout (in JSON the keys of an object are
    texts). Paths are parts of a request such as `lambda/shutter_time` or `path=start`."""

    HOW: ClassVar[tuple[str, ...]] = ("hang_seconds", "jitter_seed", "drop_at", "share_seed")

    # REST
    refuse: str = ""  # the next PUT whose path contains it is answered with 400
    server_error: str = ""  # the next request whose path contains it is answered with 500
    server_errors: str = ""  # all of them are, until `fail` is called again
    hang: str = ""  # ... is not answered for hang_seconds
    hang_seconds: float = 3600.0
    # the unit
    never_ready: list[int] = field(default_factory=list)  # modules that stay `connected`
    no_ram: list[int] = field(default_factory=list)  # modules whose RAM is not allocated
    ram_seconds: float = 0.0  # the next allocation takes so long, whatever the speed
    voltage_seconds: float = 0.0  # the high voltage is off and comes back within this time, or the next `fail`
    start_ignored: int = 0  # so many starts are answered with 200, and nothing happens
    start_late: float = 0.0  # s until the next start makes the modules busy, whatever the speed
    restart: bool = False  # xspd restarts: now, or at image restart_at; then it is `connected`, and ready later
    restart_at: int | None = None
    restart_seconds: float = 0.5  # until it is ready again, whatever the speed
    skip_edges: int = 0  # so many external edges never arrive
    # the frames
    lag: dict[int, float] = field(default_factory=dict)  # s that all frames of a module come late
    jitter: float = 0.0  # s that a frame comes late at most; in order, of each module
    jitter_seed: int = 1
    lose: dict[int, list[int]] = field(default_factory=dict)  # frames of a module that never arrive
    lose_share: dict[int, float] = field(default_factory=dict)  # of a module's frames; `lost` tells which
    share_seed: int = 1
    incomplete: dict[int, list[int]] = field(default_factory=dict)  # half of the pixels are 0, the status says so
    drop: int = 0  # so many frames of all modules are dropped by the PUB sockets, from image drop_at on
    drop_at: int = 5
    silent: dict[int, int] = field(default_factory=dict)  # a module that sends nothing from this image on
    counter_at: int = 0  # the 24-bit counter of the next acquisition begins here instead of at 1
