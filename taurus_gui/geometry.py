"""Energy, distance and beam centre: where a detector has them, and how they get into its Metadata. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taurus_gui.rings import Geometry

KEYS = {
    "energy": ("incident_energy", "photon_energy"),
    "distance": ("detector_distance",),
    "row": ("beam_center_y",),
    "column": ("beam_center_x",),
}
ENERGY = ("Energy", "PhotonEnergy")  # attributes of backends
IMAGE = ("Binning", "Roi", "Rotation", "Fliplr", "Flipud")  # when one changes, the beam is elsewhere in the image


def told(readings: Mapping[str, Any]) -> dict[str, float]:
    """What Metadata and the backend's own attributes say, by the names of KEYS."""
    found: dict[str, float] = {}
    metadata = _metadata(readings)
    for name, keys in KEYS.items():
        for key in keys:
            value = metadata.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, float(value))
    for name in ENERGY:
        value = readings.get(name)
        if isinstance(value, int | float) and value > 0:
            found["energy"] = float(value)
    return found


def with_geometry(readings: Mapping[str, Any], values: Mapping[str, float]) -> str:
    """The device's Metadata with these values, as JSON."""
    metadata = _metadata(readings)
    for name, value in values.items():
        metadata[KEYS[name][0]] = value
    return json.dumps(metadata)


def geometry(readings: Mapping[str, Any], values: Mapping[str, float]) -> Geometry:
    """With the pixels as they are after binning and rotation."""
    size = readings.get("PixelSize") or (0.0, 0.0)
    binning = readings.get("Binning") or (1, 1)
    pixel = (float(size[0]) * int(binning[1]), float(size[1]) * int(binning[0])) if len(size) == 2 else (0.0, 0.0)
    if readings.get("Rotation") in (90, 270):
        pixel = pixel[::-1]
    centre = (values["row"], values["column"]) if "row" in values and "column" in values else None
    return Geometry(values.get("energy", 0.0), values.get("distance", 0.0), pixel, centre)


def _metadata(readings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = json.loads(readings.get("Metadata") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
