"""What kind of control unit is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from tangods_detector.options import option
from tangods_receiver.errors import ConfigError


@dataclass(frozen=True)
class EigerOptions:
    """Defaults are those of tests; a real detector has speed 1."""

    model: str = option("EIGER2 1M", "EIGER or EIGER2 with 500K, 1M, 4M, 9M, 16M; PILATUS4 260K")
    api: Literal["1.6.0", "1.8.0"] = option("1.8.0", "version of the API")
    sensor: Literal["", "Si", "CdTe"] = option("", "empty: as usual for the model")
    speed: float = option(0.01, "factor of all delays but exposures; 1 is the real detector")
    images: str = option("synthetic", "synthetic, or the path of a recorded stream V1")
    host: str = option("127.0.0.1", "address that is listened at")
    port: int = option(0, "TCP port of the REST side; 0 takes any free one")
    stream_port: int = option(0, "of the legacy stream (9999 at a real unit)")
    cbor_port: int = option(0, "of the CBOR stream (31001 at a real unit)")
    state: Literal["idle", "na"] = option("idle", "at the start: na as a real unit that was switched on")
    hwm: int = option(1000, "messages that wait for a receiver before images are dropped")
    bit_depth: Literal[0, 8, 16, 32] = option(0, "of the images; 0: as the detector chooses")
    end_message: Literal["disarm", "complete"] = option("disarm", "when a complete series ends its stream")
    id_key: str = option("sequence id", "in the answers of arm and so on; `series id` in some firmware")
    web_limit: float = option(300.0, "s after which a connection is dropped whose request is not answered")
    keep_sent: bool = option(False, "keep what was sent in the last series")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 0, 65535),
                ("stream_port", self.stream_port, 0, 65535),
                ("cbor_port", self.cbor_port, 0, 65535),
                ("speed", self.speed, 0, 1000),
                ("hwm", self.hwm, 1, 10_000_000),
            )
            if not low <= value <= high
        ]
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if choices and value not in choices:
                problems.append(f"{name}: {value!r} is not one of {', '.join(map(repr, choices))}")
        if problems:
            raise ConfigError("; ".join(problems))
