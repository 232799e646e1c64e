"""Which camera, by which library, and how its images are sent."""

from __future__ import annotations

from dataclasses import dataclass

from tangods_detector.options import option
from tangods_receiver.errors import ConfigError

PIXELS = {  # m; by the name that the camera has, as DCAM does not tell
    "C11440": 6.5e-6,  # ORCA-Flash4.0
    "C13440": 6.5e-6,  # ORCA-Flash4.0 V3
    "C14440": 6.5e-6,  # ORCA-Fusion
    "C15440": 6.5e-6,  # ORCA-Fusion BT
    "C14120": 5.5e-6,  # ORCA-Lightning
    "C15550": 4.6e-6,  # ORCA-Quest
    "C16240": 4.6e-6,  # ORCA-Fire
}


@dataclass(frozen=True)
class HamamatsuOptions:
    """Which camera, by which library, and how its images are sent."""

    library: str = option("libdcamapi.so", "the vendor's library: its name, or the path of it")
    serial_number: str = option("", "of the camera; empty: the first that is found")
    host: str = option("127.0.0.1", "address that the stream is bound to; * for all interfaces")
    port: int = option(0, "TCP port of the stream; 0: any free one, which changes when the server is restarted")
    memory: int = option(2_000_000_000, "memory for images, allocated once; the camera fills it in turn")
    packed: bool = option(True, "12-bit images are sent as mono12p where the camera has it; the receiver unpacks them")
    cooling_timeout: float = option(0.0, "s that Arm waits for the sensor to have its temperature; 0: it does not")
    pixel_size: float = option(0.0, "edge of a pixel, m; 0: by the model")
    send_timeout: float = option(5.0, "limit for the start message to find a receiver, s")
    curve_key: str = option("", "this sender's .key_secret file; empty: the stream is not encrypted")
    curve_clients: str = option("", "directory with the .key files of receivers that may connect")
    allow_peers: tuple[str, ...] = option((), "addresses or networks that may connect; empty: all")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 0, 65535),
                ("memory", self.memory, 1_000_000, 2**46),
                ("cooling_timeout", self.cooling_timeout, 0, 3600),
                ("pixel_size", self.pixel_size, 0, 1e-2),
                ("send_timeout", self.send_timeout, 0.01, 3600),
            )
            if not low <= value <= high
        ]
        if not self.library.strip():
            problems.append("library: empty; give libdcamapi.so, or where it is")
        if problems:
            raise ConfigError("; ".join(problems))

    def pixel_of(self, model: str) -> float:
        """m. ConfigError: the model is not known here."""
        size = self.pixel_size or PIXELS.get(model[:6], 0.0)
        if not size:
            raise ConfigError(f"pixel_size: not known for a camera {model!r}; give it in m, such as 6.5e-6")
        return size
