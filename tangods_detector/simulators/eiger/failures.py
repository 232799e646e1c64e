"""What goes wrong next. Each is used up once; what was not used waits until `fail` is called again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tangods_detector.simulators.wishes import Wishes


@dataclass
class Failures(Wishes):
    """Image numbers count from 0 over the series. Paths are parts of a URL, such as `config/count_time`."""

    HOW: ClassVar[tuple[str, ...]] = ("hang_seconds", "drop_after", "late_seconds")

    # HTTP
    refuse: str = ""  # the next PUT whose path contains it is answered with 400
    server_error: str = ""  # the next request whose path contains it is answered with 500
    hang: str = ""  # ... is not answered for hang_seconds
    hang_seconds: float = 3600.0
    drop_connection: str = ""  # ... is done, but the connection is closed after drop_after seconds
    drop_after: float = 0.05
    # the control unit
    error: str = ""  # the state becomes `error` with this text: now, or at image error_at
    error_at: int | None = None
    restart: bool = False  # the control unit restarts: now, or at image restart_at; then it is `na`
    restart_at: int | None = None
    arm_seconds: float = 0.0  # the next arm takes so long, whatever the speed
    skip_edges: int = 0  # so many external edges never arrive
    # the stream
    lose: list[int] = field(default_factory=list)
    duplicate: list[int] = field(default_factory=list)
    reorder: list[int] = field(default_factory=list)  # sent after the image that follows it
    corrupt: list[int] = field(default_factory=list)
    wrong_size: list[int] = field(default_factory=list)
    missing_part: list[int] = field(default_factory=list)
    full_queue: int = 0  # so many images find the queue full
    stale: int = 0  # images of an earlier series that come before the next start message
    no_end: bool = False
    late: int = 0  # images that come late_seconds after the end message of an aborted series
    late_seconds: float = 0.1
    bit_depth: int = 0  # of the next series: 8, 16 or 32

    def of_images(self) -> bool:
        """Is there anything to look at for each image?"""
        return bool(
            self.lose or self.duplicate or self.reorder or self.corrupt or self.wrong_size or self.missing_part
            or self.full_queue or self.restart_at is not None or self.error_at is not None
        )  # fmt: skip


class Luck:
    """What goes wrong next, and what did, oldest first."""

    def __init__(self) -> None:
        self.next = Failures()
        self.happened: list[str] = []

    def note(self, what: str) -> None:
        self.happened.append(what)
