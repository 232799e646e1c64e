"""What kind of detector is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tangods_detector.options import option
from tangods_detector.simulators.camserver import models
from tangods_receiver.errors import ConfigError


@dataclass(frozen=True)
class CamserverOptions:
    """Defaults are those of tests; a real detector has speed 1."""

    model: str = option("2M", "6M, 2M, 1M, 300K, 300K-W, 200K or 100K")
    kind: Literal["PILATUS3 X", "PILATUS3 S", "PILATUS2"] = option("PILATUS3 X", "series of the detector")
    version: str = option("", "of camserver; empty: 7.9.0, tvx-7.3.13-121212 of a PILATUS2")
    sensor: Literal["Si", "CdTe"] = option("Si", "CdTe knows resetmodulepower")
    folder: str = option("", "where relative image paths begin; empty: one in /dev/shm that is removed at the end")
    host: str = option("127.0.0.1", "address that is listened at")
    port: int = option(0, "TCP port; 0 takes any free one (41234 at a real detector)")
    test_port: int = option(0, "TCP port of edges and failures, which no real detector has; 0 takes any free one")
    speed: float = option(0.01, "factor of all delays but exposures; 1 is the real detector")
    images: str = option("synthetic", "synthetic, or a CBF file or folder of CBF files (.cbf, .cbf.gz, .cbf.bz2)")
    stamp: bool = option(True, "the last pixel of each image is its number in the series, from 0")
    capacity: int = option(0, "bytes of the image disk; 0: what the file system has")
    limits: bool = option(True, "as fast as the detector; no: no read-out, any period")
    delay: float = option(0.0, "s from the end of the read-out to the file: a slow network")
    kill_order: Literal["ERR OK", "OK ERR", "OK", "ERR"] = option("ERR OK", "which 7 come after a kill, in which order")
    idle_kill: Literal["ERR", "OK", ""] = option("ERR", "answer to a kill when nothing is exposed; empty: none")
    busy: Literal["answer", "late", "never"] = option("answer", "to commands during an exposure, but stops")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 0, 65535),
                ("test_port", self.test_port, 0, 65535),
                ("speed", self.speed, 0, 1000),
                ("capacity", self.capacity, 0, 1 << 60),
                ("delay", self.delay, 0, 60),
            )
            if not low <= value <= high
        ]
        for name, value, known in (
            ("kill_order", self.kill_order, ("ERR OK", "OK ERR", "OK", "ERR")),
            ("idle_kill", self.idle_kill, ("ERR", "OK", "")),
            ("busy", self.busy, ("answer", "late", "never")),
            ("sensor", self.sensor, ("Si", "CdTe")),
        ):
            problems += [] if value in known else [f"{name}: {value!r} is not one of {', '.join(map(repr, known))}"]
        try:
            models.model(self.kind, self.model)
        except ConfigError as exc:
            problems.append(str(exc))
        if problems:
            raise ConfigError("; ".join(problems))
