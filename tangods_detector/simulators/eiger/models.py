"""The detectors that can be simulated: their pixels, gaps, limits. Numbers that are not public are plausible ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangods_receiver.errors import ConfigError

Mask = NDArray[np.uint32]

GAP = 1  # bit 0 of a pixel mask; 1 is a dead pixel


@dataclass(frozen=True)
class Model:
    """`columns` and `rows` of modules; `module` is (width, height) of one, `gap` (columns, rows) between two.

    Times in s, energies in eV."""

    name: str
    family: str  # EIGER, EIGER2 or PILATUS4
    width: int
    height: int
    module: tuple[int, int]
    gap: tuple[int, int]
    frame_time_min: float
    count_time_min: float
    readout_time: float
    energy: tuple[float, float]  # lowest and highest
    material: str
    thickness: float  # m
    pixel_size: float  # m
    links: int

    @property
    def rich(self) -> bool:
        """Has thresholds, counting modes and so on, which an EIGER1 has not."""
        return self.family != "EIGER"

    @property
    def big(self) -> bool:
        """Can read out a part of 4M."""
        return self.name.endswith(("9M", "16M"))

    @property
    def description(self) -> str:
        """As the control unit says it."""
        family = "EIGER1" if self.family == "EIGER" else self.family
        return f"Dectris {family} {self.material} {self.name.split()[-1]}"

    @property
    def roi_modes(self) -> tuple[str, ...]:
        """None: this model has only the whole image."""
        part = ("4M",) if self.big else ()
        if not self.rich:
            return ("disabled", *part) if part else ()
        return ("disabled", *part, *(("4M-L", "4M-R") if part else ()), "lines", "merge2x2")


def _eiger(size: str, width: int, height: int, frame_time: float, links: int) -> Model:
    return Model(
        f"EIGER {size}", "EIGER", width, height, (1030, 514), (10, 37), frame_time, 3e-6, 7.540540540540541e-6,
        (5000.0, 36000.0), "Si", 0.00045, 75e-6, links,
    )  # fmt: skip


def _eiger2(size: str, width: int, height: int, frame_time: float, links: int) -> Model:
    return Model(
        f"EIGER2 {size}", "EIGER2", width, height, (1028, 512), (12, 38), frame_time, 1e-7, 1e-7,
        (3500.0, 40000.0), "Si", 0.00045, 75e-6, links,
    )  # fmt: skip


MODELS = {
    model.name: model
    for model in (
        _eiger("500K", 1030, 514, 1.1011e-4, 2),
        _eiger("1M", 1030, 1065, 1 / 3000, 2),
        _eiger("4M", 2070, 2167, 1 / 750, 4),
        _eiger("9M", 3110, 3269, 1 / 238, 4),
        _eiger("16M", 4150, 4371, 1 / 133, 8),
        _eiger2("500K", 1028, 512, 1.1011e-4, 2),
        _eiger2("1M", 1028, 1062, 1 / 3000, 2),
        _eiger2("4M", 2068, 2162, 1 / 750, 4),
        _eiger2("9M", 3108, 3262, 1 / 238, 4),
        _eiger2("16M", 4148, 4362, 1 / 133, 8),
        # Its geometry is not in the specification: two by four modules of a size of their own.
        Model(
            "PILATUS4 260K", "PILATUS4", 513, 512, (513, 512), (0, 0), 1 / 2000, 1e-7, 1e-7,
            (8000.0, 100000.0), "CdTe", 0.001, 150e-6, 2,
        ),
    )
}  # fmt: skip


def model(name: str, sensor: str = "") -> Model:
    """By its name; `sensor` Si or CdTe instead of the usual one. ConfigError: there is none."""
    try:
        found = MODELS[name]
    except KeyError:
        raise ConfigError(f"model: {name!r} is not known, known are {', '.join(MODELS)}") from None
    if sensor == "CdTe" and found.material != "CdTe":
        return replace(found, material="CdTe", thickness=0.00075, energy=(8000.0, 100000.0))
    if sensor not in ("", found.material):
        raise ConfigError(f"sensor: {sensor!r} is not Si or CdTe")
    return found


def gaps(model: Model) -> NDArray[np.bool_]:
    """[rows, columns], True where no sensor is."""
    columns = np.arange(model.width) % (model.module[0] + model.gap[0]) >= model.module[0]
    rows = np.arange(model.height) % (model.module[1] + model.gap[1]) >= model.module[1]
    return rows[:, None] | columns[None, :]


def factory_mask(model: Model) -> Mask:
    """Gaps, and a few dead (2) and noisy (16) pixels, always the same."""
    mask = gaps(model).astype(np.uint32)
    rng = np.random.default_rng(153)
    for bit in (2, 16):
        rows, columns = rng.integers(0, model.height, 20), rng.integers(0, model.width, 20)
        free = mask[rows, columns] == 0
        mask[rows[free], columns[free]] = bit
    return mask


def factory_flatfield(model: Model) -> NDArray[np.float32]:
    """Near 1, in steps of four pixels."""
    y, x = np.ogrid[: model.height, : model.width]
    steps: NDArray[Any] = (7 * (y // 4) + 3 * (x // 4)) % 32
    return (0.95 + steps / 320).astype(np.float32)


def region(model: Model, mode: str, lines: int) -> tuple[slice, slice]:
    """What of the sensor is read out: rows, columns (before any merging)."""
    rows, columns = slice(0, model.height), slice(0, model.width)
    if mode.startswith("4M"):
        width, height = (2068, 2162) if model.rich else (2070, 2167)
        step = model.module[0] + model.gap[0]
        left = (model.width - width) // 2 // step * step
        left = {"4M-L": 0, "4M-R": model.width - width}.get(mode, left)
        top = (model.height - height) // 2
        return slice(top, top + height), slice(left, left + width)
    if mode == "lines":
        top = (model.height - lines) // 2
        return slice(top, top + lines), columns
    return rows, columns
