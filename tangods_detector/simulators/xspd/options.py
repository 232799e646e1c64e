"""What kind of unit is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from tangods_detector.options import option
from tangods_receiver.errors import ConfigError

LIMITS = {"port": (0, 65535), "first_data_port": (0, 65535), "speed": (0, 1000), "chip": (16, 256),
          "hwm": (1, 10_000_000), "max_frames": (1, 1 << 24), "readout": (0, 10)}  # fmt: skip


@dataclass(frozen=True)
class XspdOptions:
    """Defaults are those of tests; a real detector has speed 1 and chips of 256 pixels."""

    layout: Literal["single", "pair", "square", "windmill", "ten"] = option("single", "where the modules lie")
    modules: str = option("", "those of the layout that this unit has, such as 3-4; empty: all")
    ports: Literal["modules", "combined"] = option("modules", "a data port for each module, or one for the image")
    chip: int = option(256, "pixels along a chip; a module has 6 x 2 chips")
    sensor: Literal["Si", "GaAs", "CdTe"] = option("Si", "material; Si has no high voltage that is told")
    speed: float = option(0.01, "factor of all delays but exposures; 1 is the real detector")
    readout: float = option(0.001, "s of dead time in 24 bit")
    max_frames: int = option(6930, "frames that fit into the RAM ring of a module")
    state: Literal["ready", "connected"] = option("ready", "at the start: connected as after switching on")
    host: str = option("127.0.0.1", "address that is listened at")
    port: int = option(0, "TCP port of the REST side (8008 at a real unit); 0 takes any free one")
    first_data_port: int = option(0, "of the first data port (4300 at a real unit), the others follow; 0: any free")
    device: str = option("lambda01", "name of the device in the REST side's paths")
    hwm: int = option(1000, "messages that wait for a subscriber before frames are dropped")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, (low, high) in LIMITS.items()
            if not low <= (value := getattr(self, name)) <= high
        ]
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if choices and value not in choices:
                problems.append(f"{name}: {value!r} is not one of {', '.join(map(repr, choices))}")
        if problems:
            raise ConfigError("; ".join(problems))
