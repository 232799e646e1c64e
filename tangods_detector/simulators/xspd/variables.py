"""The variables that xspd has, what may be written, and in which words; as in dumps of a real unit and
of the vendor's simulated module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[[str], Any]  # the value that a text stands for; ValueError: it cannot be

FEATURES = ("FEAT_HV", "FEAT_1_6_BIT", "FEAT_EXTENDED_GATING")
FIRMWARE = "2.2.11 [ctrl=v0, data=v3, feat=0x4b]"
MOST = (1 << 24) - 1  # frames
COMPRESSORS = ("none", "zlib", "blosc/blosclz", "blosc/lz4", "blosc/lz4hc", "blosc/zlib", "blosc/zstd")
SHUFFLES = ("NO_SHUFFLE", "AUTO_SHUFFLE", "BIT_SHUFFLE", "BYTE_SHUFFLE")
TRIGGERS = ("SOFTWARE", "EXT_FRAMES", "EXT_SEQUENCE")
ON_OFF = ("ON", "OFF")


class Refused(Exception):
    """What HTTP answers: `status`, and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def one_of(*allowed: Any) -> Check:
    """Words in any case, or numbers."""
    known = {str(value).lower(): value for value in allowed}

    def check(text: str) -> Any:
        if text.lower() not in known:
            raise ValueError(f"{text!r} is not one of {', '.join(known)}")
        return known[text.lower()]

    return check


def number(kind: type, low: float, high: float) -> Check:
    def check(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {kind.__name__}") from None
        if not low <= value <= high:
            raise ValueError(f"{text} is not between {low:g} and {high:g}")
        return value

    return check


def several(most: int, low: float, high: float) -> Check:
    each = number(float, low, high)

    def check(text: str) -> Any:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if len(parts) > most:
            raise ValueError(f"{len(parts)} values, {most} at most")
        return [each(part) for part in parts]

    return check


#: Of the detector: value at the start, check (None: read only), description.
DETECTOR: dict[str, tuple[Any, Check | None, str]] = {
    "beam_energy": (0.0, number(float, 0, 200), "current beam energy in keV"),
    "bit_depth": (12, one_of(1, 6, 12, 24), "readout bit depth: 1, 6, 12 or 24"),
    "charge_summing": ("OFF", one_of(*ON_OFF), "charge summing mode: ON or OFF"),
    "compression_level": (2, number(int, 1, 9), "level of the compression"),
    "compressor": ("none", one_of(*COMPRESSORS), "compressor of the frames"),
    "counter_mode": ("SINGLE", one_of("SINGLE", "DUAL"), "counters that are read: SINGLE or DUAL"),
    "countrate_correction": ("OFF", one_of(*ON_OFF), "correction of the count rate: ON or OFF"),
    "countrate_correction_enabled": (False, None, "whether the count rate is corrected"),
    "flatfield_correction": ("OFF", one_of(*ON_OFF), "correction by a flat field: ON or OFF"),
    "flatfield_enabled": (False, None, "whether a flat field is applied"),
    "gating_mode": ("OFF", one_of(*ON_OFF), "gating mode: ON or OFF"),
    "interpolation": ("ON", one_of(*ON_OFF), "wide pixels between chips are divided: ON or OFF"),
    "n_frames": (1, number(int, 1, MOST), "number of frames of an acquisition"),
    "n_modules": (1, None, "number of modules"),
    "roi_rows": (256, number(int, 1, 256), "rows of each chip that are read"),
    "saturation_flag": ("OFF", one_of(*ON_OFF), "saturated pixels are flagged: ON or OFF"),
    "saturation_flag_enabled": (False, None, "whether saturated pixels are flagged"),
    "shuffle_mode": ("NO_SHUFFLE", one_of(*SHUFFLES), "shuffling before the compression"),
    "shutter_time": (1.0, number(float, 0.000001, 10_000_000), "shutter time in ms"),
    "status": ("ready", None, "busy, ready or connected"),
    "summed_frames": (1, None, "number of frames that are summed"),
    "thresholds": ([], several(8, 1.0, 200.0), "thresholds in keV"),
    "trigger_mode": ("SOFTWARE", one_of(*TRIGGERS), "SOFTWARE, EXT_FRAMES or EXT_SEQUENCE"),
    "type": ("Lambda", None, "kind of detector"),
    "user_data": ("", str, "anything, by key"),
}  # fmt: skip

#: Of each module; `voltage` is written in V where there is a high voltage.
MODULE: dict[str, tuple[Any, Check | None, str]] = {
    "chip_ids": ([], None, "identities of the chips"),
    "compression_level": (2, number(int, 1, 9), "level of the compression"),
    "compressor": ("none", one_of(*COMPRESSORS), "compressor of the frames"),
    "features": ([*FEATURES], None, "what the firmware can do"),
    "firmware_version": (FIRMWARE, None, "version of the firmware"),
    "flatfield": (["", ""], None, "the flat field"),
    "flatfield_author": (["", ""], None, "who made the flat field"),
    "flatfield_enabled": (False, None, "whether a flat field is applied"),
    "flatfield_error": (["", ""], None, "what is wrong with the flat field"),
    "flatfield_status": ("No flatfield measurement started", None, "of the last generate_flatfield"),
    "flatfield_timestamp": (["", ""], None, "when the flat field was made"),
    "frame_depth": (12, None, "bits of a pixel"),
    "frame_height": (516, None, "rows of a frame"),
    "frame_width": (1556, None, "columns of a frame"),
    "frames_queued": (0, None, "frames in the ring"),
    "humidity": (5.35, None, "relative humidity in %"),
    "interpolation": ("ON", one_of(*ON_OFF), "wide pixels between chips are divided: ON or OFF"),
    "interpolation_enabled": (True, None, "whether wide pixels are divided"),
    "max_frames": (6930, None, "frames that fit into the ring"),
    "n_connectors": (1, None, "connected sensors"),
    "n_subframes": (1, None, "subframes"),
    "pixel_mask": ("", None, "pixel mask, base64"),
    "pixel_mask_enabled": (False, None, "whether the pixel mask is applied"),
    "position": ([0.0, 0.0, 0.0], None, "x, y, z of the module"),
    "ram_allocated": (True, None, "whether the ring is allocated"),
    "rotation": ([0.0, 0.0, 0.0], None, "alpha, beta, gamma of the module"),
    "saturation_threshold": (200000, number(int, 0, 100_000_000), "counts per second and pixel"),
    "sensor_current": (71.9, None, "current of the sensor in uA"),
    "shuffle_mode": ("NO_SHUFFLE", one_of(*SHUFFLES), "shuffling before the compression"),
    "status": ("ready", None, "busy, ready or connected"),
    "temperature": ([53.1, 53.3, 42.1], None, "three temperatures in degrees Celsius"),
    "voltage": (0.0, number(float, 0, 600), "high voltage in V"),
}  # fmt: skip

PORT: dict[str, tuple[Any, Check | None, str]] = {
    name: MODULE[name] for name in ("frame_depth", "frame_height", "frame_width", "frames_queued", "pixel_mask")
}

#: Writing one of these changes another, which tells whether it is on.
ECHOES = {
    "countrate_correction": "countrate_correction_enabled",
    "flatfield_correction": "flatfield_enabled",
    "interpolation": "interpolation_enabled",
    "saturation_flag": "saturation_flag_enabled",
}

RESIZING = ("bit_depth", "counter_mode", "interpolation", "roi_rows")  # the RAM is allocated anew
COMMANDS = {
    "start": "starts an acquisition",
    "stop": "stops an acquisition",
    "reset": "resets",
    "generate_flatfield": "makes the flat field",
}


class Variables:
    """All of one device, by path: `lambda/bit_depth`, `lambda/1/voltage`, `port-1/frame_width`."""

    def __init__(self, modules: int, ports: int) -> None:
        tables = {"lambda": DETECTOR, **{f"lambda/{n}": MODULE for n in range(1, modules + 1)}}
        tables |= {f"port-{n}": PORT for n in range(1, ports + 1)}
        self._checks = {f"{of}/{name}": row[1] for of, table in tables.items() for name, row in table.items()}
        self._words = {f"{of}/{name}": row[2] for of, table in tables.items() for name, row in table.items()}
        self.values = {f"{of}/{name}": row[0] for of, table in tables.items() for name, row in table.items()}
        self.modules = [f"lambda/{n}" for n in range(1, modules + 1)]
        self.values["lambda/n_modules"] = modules

    def listed(self) -> list[dict[str, str]]:
        return [{"path": path, "description": words} for path, words in self._words.items()]

    def read(self, path: str) -> Any:
        if path not in self.values:
            raise Refused(404, f"variable not found: {path}")
        return self.values[path]

    def checked(self, path: str, text: str) -> Any:
        """The value that is meant. Refused: it is not known, not written, or cannot be."""
        self.read(path)
        check = self._checks[path]
        if check is None:
            raise Refused(400, f"{path}: read only")
        try:
            return check(text)
        except ValueError as exc:
            raise Refused(400, f"{path}: argument invalid: {exc}") from None

    def write(self, path: str, value: Any) -> None:
        """With what else it changes. What is written to the detector goes to all modules that have it."""
        self.values[path] = value
        of, _, name = path.rpartition("/")
        if name in ECHOES and f"{of}/{ECHOES[name]}" in self.values:
            self.values[f"{of}/{ECHOES[name]}"] = value == "ON"
        if of == "lambda":
            for module in self.modules:
                if f"{module}/{name}" in self.values and name != "status":
                    self.write(f"{module}/{name}", value)
