"""The modules of a series as one image: a virtual dataset over the module dataset of the same file.

It holds no pixels, is made with the file and never changed: it grows as the module dataset grows.
"""

from __future__ import annotations

import logging
from typing import Any

import h5py
import numpy as np

from .errors import ConfigError
from .geometry import Placement, from_metadata, place
from .records import FileHeader, ImageLayout

log = logging.getLogger(__name__)

IMAGE, MASK, MODULE_MASK = "assembled", "pixel_mask", "module_mask"
GAP = 1  # bit 0 of NXdetector/pixel_mask

_last_said: tuple[int, float] | None = None  # the series whose geometry was the last to be complained about


def placement_of(header: FileHeader, layout: ImageLayout | None) -> Placement | None:
    """Where the modules of this series go; None where they stay apart. What is wrong is logged once a series."""
    if layout is None or not layout.axis:
        return None
    try:
        geometry = from_metadata(header.metadata, layout.modules)
        if geometry is None or geometry.planes:
            return None
        if geometry.aligned:
            return place(geometry, layout.shape)
    except ConfigError as exc:
        _say(header, logging.WARNING, f"the modules are kept apart, their geometry is of no use: {exc}")
    else:
        _say(header, logging.INFO, "modules are turned or between pixels: tangods-detector assemble FILE makes images")
    return None


def _say(header: FileHeader, level: int, sentence: str) -> None:
    """Once a series, though it may have several files."""
    global _last_said
    series = header.series, header.start_time
    if series != _last_said:
        _last_said = series
        log.log(level, "series %d: %s", header.series, sentence)


def gap_value(dtype: np.dtype[Any]) -> Any:
    """What a pixel between the modules reads as: 0 unsigned, -1 signed, NaN of real numbers."""
    return {"u": 0, "i": -1, "f": np.nan}.get(dtype.kind, 0)


def add(data: h5py.Dataset, detector: h5py.Group, plot: h5py.Group, placement: Placement, masked: bool = False) -> None:
    """Put the whole image and its mask into the detector's group, and the image into the default plot.

    `data`: the modules (n, modules, rows, columns), by the name under which readers find them; `masked`: the sender
    gave a mask of the whole image."""
    image = _free_name(detector, IMAGE)
    _virtual_image(data, detector, image, placement)
    detector[image].attrs.update(
        {
            "interpretation": "image",
            "description": f"modules of {data.name} put together; between them: {gap_value(data.dtype)}",
        }
    )
    if not masked:
        _virtual_mask(detector, placement)
    name = _free_name(plot, IMAGE)
    plot[name] = detector[image]
    plot.attrs["signal"] = name


def _virtual_image(data: h5py.Dataset, group: h5py.Group, name: str, placement: Placement) -> None:
    (height, width), unlimited = placement.shape, h5py.h5s.UNLIMITED
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_value(np.array(gap_value(data.dtype), data.dtype))
    source = h5py.h5s.create_simple(data.shape, (unlimited, *data.shape[1:]))
    shape = (len(data), *placement.full_shape)
    target = h5py.h5s.create_simple(shape, (unlimited, *placement.full_shape))
    for module, corner in enumerate(placement.corners):
        source.select_hyperslab((0, module, 0, 0), (unlimited, 1, 1, 1), block=(1, 1, height, width))
        target.select_hyperslab((0, *corner), (unlimited, 1, 1), block=(1, height, width))
        plist.set_virtual(target, b".", _source_name(data), source)
    kind = h5py.h5t.py_create(data.dtype, logical=True)
    h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(shape, (unlimited, *shape[1:])), plist)


def _virtual_mask(group: h5py.Group, placement: Placement) -> None:
    """Virtual too, over a module's mask that was never written and reads as 0: a real one would be megabytes."""
    name, kind = _free_name(group, MODULE_MASK), np.dtype("<u4")
    module = group.create_dataset(name, placement.shape, kind)
    module.attrs["description"] = "mask of each module: nothing is masked"
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_value(np.array(GAP, kind))
    source, target = h5py.h5s.create_simple(placement.shape), h5py.h5s.create_simple(placement.full_shape)
    for corner in placement.corners:
        target.select_hyperslab(corner, (1, 1), block=placement.shape)
        plist.set_virtual(target, b".", _source_name(module), source)
    name = _free_name(group, MASK)
    space = h5py.h5s.create_simple(placement.full_shape)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(kind, logical=True), space, plist)
    group[name].attrs["description"] = "of the assembled image; bit 0: gap between the modules"


def _source_name(dataset: h5py.Dataset) -> bytes:
    """HDF5 takes `%b` in it for a number."""
    return dataset.name.replace("%", "%%").encode()


def _free_name(group: h5py.Group, name: str) -> str:
    while name in group:
        name += "_"
    return name
