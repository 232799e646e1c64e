"""Every key of the SIMPLON API, as a table: type, access, limits, which detectors and which versions have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tangods_detector.simulators.eiger.models import Model

LONGEST = 3600.0  # s
MOST = 2_000_000_000  # images, triggers
ELEMENTS = {  # K-alpha, eV
    "Ti": 4510.8, "V": 4952.2, "Cr": 5414.7, "Mn": 5898.8, "Fe": 6403.8, "Co": 6930.3, "Ni": 7478.2, "Cu": 8047.8,
    "Zn": 8638.9, "Ga": 9251.7, "Ge": 9886.4, "As": 10543.7, "Se": 11222.4, "Br": 11924.2, "Kr": 12649.0,
    "Rb": 13395.3, "Sr": 14165.0, "Y": 14958.4, "Zr": 15775.1, "Nb": 16615.1, "Mo": 17479.3, "Ag": 22162.9,
    "Sn": 25271.3,
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One parameter. `default` is its value after `initialize`; `low` and `high` are checked when it is written."""

    type: str
    default: Any
    access: str = "rw"
    low: float | None = None
    high: float | None = None
    unit: str = ""
    allowed: tuple[str, ...] = ()
    listed: bool = True  # among the keys


Table = Mapping[str, Key]


def detector_config(model: Model, new: bool) -> dict[str, Key]:
    """`new`: API 1.8. Derived values and arrays have a placeholder here; see `parameters`."""
    energy = 8000.0 if model.energy[0] <= 8000.0 < model.energy[1] else model.energy[0]
    energies: dict[str, Any] = {"low": model.energy[0], "high": model.energy[1], "unit": "eV"}
    thresholds: dict[str, Any] = {
        "low": 2700.0,
        "high": model.energy[1] / 2 if not model.rich else model.energy[1],
        "unit": "eV",
    }
    modes = ("ints", "inte", "exts", "exte", *(("eies", "extg") if model.rich else ()))
    table = {
        "auto_summation": _bool(True),
        "beam_center_x": Key("float", 0.0, unit="px"),
        "beam_center_y": Key("float", 0.0, unit="px"),
        "bit_depth_image": Key("uint", 16, "r"),
        "bit_depth_readout": Key("uint", 16 if model.rich else 12, "r"),
        "compression": Key("string", "bslz4", allowed=("lz4", "bslz4", *(("none",) if new else ()))),
        "count_time": Key("float", 0.5, low=model.count_time_min, high=LONGEST, unit="s"),
        "countrate_correction_applied": _bool(True),
        "countrate_correction_count_cutoff": Key("uint", 65535, "r"),
        "data_collection_date": Key("datetime", "2024-01-01T00:00:00.000+00:00"),
        "description": Key("string", model.description, "r"),
        "detector_distance": Key("float", 0.0, unit="m"),
        "detector_number": Key("string", "E-02-0153" if not model.rich else "E-32-0100", "r"),
        "detector_readout_time": Key("float", model.readout_time, "r", unit="s"),
        "detector_translation": Key("float[]", [0.0, 0.0, 0.0], unit="m"),
        "eiger_fw_version": Key("string", "release-2020.2.5" if not model.rich else "release-2022.1.2", "r"),
        "element": Key("string", "", allowed=("", *ELEMENTS)),
        "flatfield": Key("float[][]", None),
        "flatfield_correction_applied": _bool(True),
        "frame_count_time": Key("float", 0.0, "r", unit="s"),
        "frame_time": Key("float", 0.5 + model.readout_time, low=model.frame_time_min, high=LONGEST, unit="s"),
        "nimages": Key("uint", 1, low=1, high=MOST),
        "ntrigger": Key("uint", 1, low=1, high=MOST),
        "number_of_excluded_pixels": Key("uint", 0, "r"),
        "photon_energy": Key("float", energy, **energies),
        "pixel_mask": Key("uint[][]", None),
        "pixel_mask_applied": _bool(True),
        "roi_mode": Key("string", "disabled" if model.roi_modes else "", allowed=model.roi_modes),
        "sensor_material": Key("string", model.material, "r"),
        "sensor_thickness": Key("float", model.thickness, "r", unit="m"),
        "software_version": Key("string", "1.8.0" if new else "1.6.6", "r"),
        "threshold_energy": Key("float", energy / 2, **thresholds),
        "trigger_mode": Key("string", "ints", allowed=modes),
        "virtual_pixel_correction_applied": _bool(True),
        "wavelength": Key("float", 12398.4198 / energy, low=12398.4198 / model.energy[1],
                          high=12398.4198 / model.energy[0], unit="angstrom", listed=False),
        "x_pixel_size": Key("float", model.pixel_size, "r", unit="m"),
        "x_pixels_in_detector": Key("uint", model.width, "r"),
        "y_pixel_size": Key("float", model.pixel_size, "r", unit="m"),
        "y_pixels_in_detector": Key("uint", model.height, "r"),
    }  # fmt: skip
    for axis in ("chi", "kappa", "omega", "phi", "two_theta"):
        table[f"{axis}_increment"] = table[f"{axis}_start"] = Key("float", 0.0, unit="deg")
    if not model.rich:
        table["frame_period"] = Key("float", 0.0, "r", unit="s")
    if new:
        table |= {
            "incident_energy": Key("float", energy, **energies),
            "incident_particle_type": Key("string", "photons", "r"),
            "instrument_name": Key("string", ""),
            "mask_to_zero": _bool(False),
            "sample_name": Key("string", ""),
            "source_name": Key("string", ""),
            "total_flux": Key("float", 0.0, unit="1/s"),
            "trigger_start_delay": Key("float", 0.0, low=0.0, high=100.0, unit="s"),
        }
    if model.rich:
        table |= _of_eiger2(model, energy, thresholds)
    return dict(sorted(table.items()))


def _of_eiger2(model: Model, energy: float, thresholds: dict[str, Any]) -> dict[str, Key]:
    onoff = ("enabled", "disabled")
    table = {
        "counting_mode": Key("string", "normal", allowed=("normal", "retrigger")),
        "extg_mode": Key("string", "single", allowed=("single", "double")),
        "fast_arm": _bool(False),
        "nexpi": Key("uint", 1, low=1, high=MOST),
        "ntriggers_skipped": Key("uint", 0, "r"),
        "roi_bit_depth": Key("uint", 16, low=8, high=16),
        "roi_y_size": Key("uint", min(256, model.height), low=8, high=model.height),
        "threshold/difference/lower_threshold": Key("uint", 1, low=1, high=1),
        "threshold/difference/mode": Key("string", "disabled", allowed=onoff),
        "threshold/difference/upper_threshold": Key("uint", 2, low=2, high=2),
    }
    for n, mode in ((1, "enabled"), (2, "disabled")):
        table |= {
            f"threshold/{n}/energy": Key("float", energy * n / 2, **thresholds),
            f"threshold/{n}/flatfield": Key("float[][]", None),
            f"threshold/{n}/mode": Key("string", mode, allowed=onoff),
            f"threshold/{n}/number_of_excluded_pixels": Key("uint", 0, "r"),
            f"threshold/{n}/pixel_mask": Key("uint[][]", None),
        }
    return table


def _bool(default: bool) -> Key:
    return Key("bool", default)


def detector_status(model: Model, new: bool) -> dict[str, Key]:
    table = {
        "error": Key("string[]", [], "r", listed=False),
        "humidity": Key("float", 12.5, "r", 0.0, 40.0, "%"),
        **{f"link_{n}": Key("string", "up", "r", allowed=("up", "down")) for n in range(model.links)},
        "state": Key("string", "na", "r"),
        "temperature": Key("float", 23.4, "r", 15.0, 35.0, "C"),
        "time": Key("datetime", "", "r"),
    }
    if new:
        table["series_unique_id"] = Key("string", "", "r")
    else:
        table |= {
            "board_000/th0_humidity": Key("float", 12.5, "r", 0.0, 40.0, "%"),
            "board_000/th0_temp": Key("float", 23.4, "r", 15.0, 35.0, "C"),
            "builder/dcu_buffer_free": Key("float", 99.9, "r", 0.0, 100.0, "%"),
        }
    if model.material == "CdTe":
        table["high_voltage/state"] = Key("string", "READY", "r")
    return dict(sorted(table.items()))


DETECTOR_COMMANDS = ("abort", "arm", "cancel", "disarm", "hv_reset", "initialize", "status_update", "trigger", "wait")
MODULE_COMMANDS = {
    "stream": ("initialize",),
    "filewriter": ("clear", "initialize"),
    "monitor": ("clear", "initialize"),
    "system": ("restart",),
}
_MODE = Key("string", "disabled", allowed=("enabled", "disabled"))


def detector_commands(model: Model, new: bool) -> tuple[str, ...]:
    """`status_update` is of the old version, `hv_reset` of CdTe."""
    missing = {"status_update"} if new else set()
    missing |= set() if model.material == "CdTe" else {"hv_reset"}
    return tuple(name for name in DETECTOR_COMMANDS if name not in missing)


def module_config(module: str, new: bool) -> dict[str, Key]:
    if module == "stream":
        table = {
            "header_appendix": Key("string", ""),
            "header_detail": Key("string", "basic", allowed=("none", "basic", "all")),
            "image_appendix": Key("string", ""),
            "mode": _MODE,
        }
        if new:
            table["format"] = Key("string", "legacy", allowed=("legacy", "cbor"))
    elif module == "monitor":
        table = {"buffer_size": Key("uint", 10, low=1, high=1000), "discard_new": _bool(False), "mode": _MODE}
    elif module == "filewriter":
        table = {
            "compression_enabled": _bool(True),
            "image_nr_start": Key("uint", 1, low=0, high=MOST),
            "mode": _MODE,
            "name_pattern": Key("string", "series_$id"),
            "nimages_per_file": Key("uint", 1000, low=0, high=MOST),
        }
        if new:
            formats = ("hdf5 nexus legacy nxmx", "hdf5 nexus v2024.2 nxmx")
            table["format"] = Key("string", formats[0], allowed=formats)
    else:
        table = {}
    return dict(sorted(table.items()))


def module_status(module: str, new: bool) -> dict[str, Key]:
    errors = Key("string[]", [], "r")
    if module == "stream":
        table = {"dropped": Key("uint", 0, "r"), "error": errors, "state": Key("string", "disabled", "r")}
    elif module == "monitor":
        table = {
            "buffer_free": Key("uint", 10, "r"),
            "dropped": Key("uint", 0, "r"),
            "error": errors,
            "monitor_image_number": Key("uint[]", [], "r", listed=False),
            "state": Key("string", "normal", "r"),
        }
    elif module == "filewriter":
        free = 800_000_000
        table = {
            "buffer_free": Key("uint", free * 1000 if new else free, "r", unit="B" if new else "KB"),
            "error": errors,
            "files": Key("string[]", [], "r"),
            "state": Key("string", "disabled", "r"),
        }
    else:
        table = {}
    return dict(sorted(table.items()))
