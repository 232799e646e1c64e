"""Channels of a detector, such as thresholds, in a file: planes of one dataset, or a dataset each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tangods_receiver.protocol import Array

AXIS, DATASETS = "axis", "datasets"


def stacked(arrays: Mapping[str, Array], channels: Sequence[str]) -> dict[str, Array]:
    """The arrays of a start message for images with an axis of channels: what each channel has alike gets such an axis,
    all else stays as it is."""
    found = dict(arrays)
    for what in {name.rpartition("/")[2] for name in arrays}:
        names = [f"{channel}/{what}" for channel in channels]
        several = [arrays[name] for name in names if name in arrays]
        if what in arrays or len(several) < len(names) or len({array[:2] for array in several}) != 1:
            continue
        for name in names:
            del found[name]
        shape, dtype, _ = several[0]
        found[what] = Array((len(names), *shape), dtype, b"".join(array.data for array in several))
    return found
