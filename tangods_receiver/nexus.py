"""The NeXus tree of a series file: built in memory by h5py, and found again in a file that exists.

h5py touches a file only here and in `recovery`: the tree is made as a file image, which `seriesfile` writes and from
then on changes by itself, in the few fields that `Places` lists.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from numbers import Real
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from . import __version__, arrays, assembled, h5fields
from .errors import ConfigError, WriteError
from .h5fields import ArrayFields, Read
from .records import STATUS_TEXT, Books, FileHeader, ImageLayout, Part
from .spread import Spread

PROGRAM = "tangods-detector"
FORMATS = (1, 2)  # 2: several channels, or times; who knows only 1 would mend such a file wrongly
BLOCK = 1024  # frames per chunk of the per-frame arrays
RANGE_BLOCK = 256  # rows per chunk of frames_missing
MISSING_TYPE = np.dtype("<i8")
MOST_CHANNELS = 16
TIME_SIZE, REASON_SIZE = 64, 512
NOT_CLOSED = "not closed: still being written, or the writer was killed (then: tangods-detector recover FILE)"

#: Per-frame arrays: name -> type, value where there is no frame, attributes.
COLUMNS: dict[str, tuple[np.dtype, Any, dict[str, str]]] = {
    "timestamp": (
        np.dtype("<f8"),
        math.nan,
        {"units": "s", "description": "time of the frame as the detector gave it; NaN: not given"},
    ),
    "arrival_time": (
        np.dtype("<f8"),
        math.nan,
        {"units": "s", "description": "when the frame was received, seconds since 1970-01-01T00:00:00Z"},
    ),
    "sequence_number": (np.dtype("<i8"), -1, {"description": "number of the frame in its series; -1: missing"}),
    "message_number": (np.dtype("<i8"), -1, {"description": "number of the sender's message; -1: missing or unknown"}),
    "frame_status": (np.dtype("u1"), 0, {"description": STATUS_TEXT}),
}
#: Those that a file has only where its sender gives them.
TIME_COLUMNS: dict[str, tuple[np.dtype, Any, dict[str, str]]] = {
    "stop_time": (
        np.dtype("<f8"),
        math.nan,
        {
            "units": "s",
            "description": "when the exposure ended, on the clock of timestamp, where it began; NaN: not given",
        },
    ),
    "real_time": (
        np.dtype("<f8"),
        math.nan,
        {"units": "s", "description": "how long the detector really counted in this frame; NaN: not given"},
    ),
}
ALL_COLUMNS = COLUMNS | TIME_COLUMNS
_ON_CLOCK = ("timestamp", "stop_time")  # with the moment from which they count, where it is known
_LONGEST_TIME = 64
_COUNTS = {
    "frames_expected": "number of frames announced or sent; -1: not known",
    "frames_received": "number of frames received and stored",
    "frames_repeated": "frames that came again; the first was kept",
    "frames_rejected": "frames refused: malformed, or of another shape or type",
    "frames_foreign": "frames of another series or beyond the announced number",
}
#: NXdetector field -> keys of the metadata (in its `detector` part or beside it), attributes.
_NUMBERS = {
    "count_time": (("exptime", "count_time", "exposure_time"), {"units": "s"}),
    "frame_time": (("frame_time", "frame_period"), {"units": "s"}),
    "distance": (("detector_distance",), {"units": "m"}),
    "sensor_thickness": (("sensor_thickness",), {"units": "m"}),
    "threshold_energy": (("threshold_energy",), {"units": "eV"}),
    "x_pixel_size": (("x_pixel_size", "pixel_size_x"), {"units": "m"}),
    "y_pixel_size": (("y_pixel_size", "pixel_size_y"), {"units": "m"}),
    "beam_center_x": (("beam_center_x",), {"units": "pixel"}),
    "beam_center_y": (("beam_center_y",), {"units": "pixel"}),
    "bit_depth_readout": (("bit_depth_readout",), {}),
    "saturation_value": (("saturation_value", "countrate_correction_count_cutoff"), {}),
}
_TEXTS = {
    "description": ("description", "detector_description"),
    "detector_number": ("detector_number", "detector_serial_number", "serial_number"),
    "sensor_material": ("sensor_material",),
    "trigger_mode": ("trigger_mode",),
}
_FLAGS = {
    "flatfield_applied": ("flatfield_correction_applied", "flatfield_enabled"),
    "pixel_mask_applied": ("pixel_mask_applied", "pixel_mask_enabled"),
    "countrate_correction_applied": ("countrate_correction_applied", "countrate_correction_enabled"),
    "virtual_pixel_interpolation_applied": (
        "virtual_pixel_correction_applied",
        "virtual_pixel_interpolation_enabled",
    ),
}
CODECS = {32008: "bslz4", 32004: "lz4"}  # by the number of the HDF5 filter
_NOT_IN_NAMES = re.compile(r"\W", re.ASCII)
_LONGEST_NAME = 40
_MISSING_TEXT = "ranges of missing frames: first, last (inclusive); filled in at the end"
_HEADER_KEYS = 2000  # a header with more is kept as one JSON text
_HEADER_DEPTH = 16
#: Names in an NXdetector or NXdata of ours that no channel can have.
_TAKEN = frozenset(
    [
        *ALL_COLUMNS,
        *_COUNTS,
        *_NUMBERS,
        *_TEXTS,
        *_FLAGS,
        *arrays.NAMES,
        "data",
        "end_reason",
        "frames_missing",
        "header",
    ]
)


@dataclass(frozen=True)
class Places:
    """What is changed after creation, by its offset in the file; sizes in bytes."""

    images: Sequence[ArrayFields]  # of each dataset of images
    columns: Mapping[str, ArrayFields]
    missing: ArrayFields
    scalars: Mapping[str, tuple[int, int]]
    block: int  # frames per chunk of the per-frame arrays
    arrays: Mapping[str, ArrayFields] = field(default_factory=dict)  # of the start message: changed while it is made

    def torn(self) -> list[int]:
        """Fields that readers could see half changed."""
        fields = [self.missing, *self.columns.values(), *self.images]
        return [o for f in fields for o in (f.root, f.length) if h5fields.straddles(o)]


@dataclass(frozen=True)
class Identity:
    """What a file of ours says about itself in the attributes of its root."""

    nonce: int
    dataset: str
    nframes: int | None
    part: Part | None = None  # it is one of several files
    spread: Spread | None = None  # it is the master file of several
    channels: tuple[str, ...] = ()

    @property
    def images(self) -> list[str]:
        """Paths of the datasets of images."""
        return image_paths(self.dataset, self.channels)


@dataclass(frozen=True)
class Source:
    """A file as the master file of its series sees it. `length` None: it still grows; else it has exactly so many
    frames, or is not there at all: HDF5 may crash where it has fewer."""

    name: str
    first: int
    step: int
    length: int | None


def stored_arrays(header: FileHeader, layout: ImageLayout | None) -> list[arrays.Stored]:
    """Those of the start message that the file of this header has, or leads to."""
    if not header.arrays:
        return []
    placement = assembled.placement_of(header, layout)
    return arrays.chosen(header, layout, placement.full_shape if placement else None)


def build(
    header: FileHeader, layout: ImageLayout | None, nonce: int, stored: Sequence[arrays.Stored] = ()
) -> tuple[bytes, Places]:
    """The file image of a series without frames, and where its changing fields are. `stored` arrays are empty in it."""
    kind = (layout.rank, layout.codec, layout.channels, layout.times, len(layout.begun)) if layout else None
    pad = _PADS.get(kind, 0)
    for _ in range(
        8
    ):  # the padding moves all datasets by the same 8 bytes a try, and a field straddles in one of eight
        image, places = _build(header, layout, nonce, stored, pad)
        if not places.torn():
            _remember(kind, pad)
            return image, places
        pad = (pad + 8) % 64
    raise WriteError(f"{header.filename}: no place was found for the index where readers never see half a change")


_Kind = tuple[int, str, tuple[str, ...], bool, int] | None
#: The padding that was right the last time: these datasets come first in the image, so it depends on nothing else.
_PADS: dict[_Kind, int] = {}


def _remember(kind: _Kind, pad: int) -> None:
    if len(_PADS) > 100:  # names of channels come from the network
        _PADS.clear()
    _PADS[kind] = pad


def _build(
    header: FileHeader, layout: ImageLayout | None, nonce: int, stored: Sequence[arrays.Stored], pad: int
) -> tuple[bytes, Places]:
    # The name is only a label, nothing is written under it; it differs from that of every other image.
    name = f"series-{nonce:016x}"
    # One block of metadata takes in all of these, so that the padding moves them all alike.
    options: dict[str, Any] = {"driver": "core", "backing_store": False, "libver": "earliest", "meta_block_size": 32768}
    with h5py.File(name, "w", **options) as h5:
        h5.attrs["_padding"] = np.zeros(pad + 8, np.uint8)
        columns = _columns(h5, layout, header.nframes)
        images = _images(h5, layout, header.nframes or 0) if layout else []
        _tree(h5, header, layout, nonce, columns, images, stored)
        h5.flush()
        image = h5.id.get_file_image()

        def read(offset: int, size: int) -> bytes:
            return image[offset : offset + size]

        places = find_places(h5, identity(h5), read)
        if header.arrays_in:
            return image, places
        detector = h5[detector_path(header.dataset)]
        return image, replace(places, arrays={a.path: _fields(detector[a.path], read) for a in stored})


def detector_path(dataset: str) -> str:
    """The NXdetector group of a dataset path: its parent, or a group of its own where that is the entry."""
    groups = [part for part in dataset.split("/") if part][:-1]
    if not groups:
        raise ConfigError(f"dataset {dataset!r}: needs a group, for instance entry/instrument/detector/data")
    return "/".join(groups) if len(groups) > 1 else f"{groups[0]}/instrument/detector"


def channel_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names under which channels can be stored: letters, digits and underscores, each once, none that means more.

    None of more than 16: their images have one dataset then."""
    if len(names) > MOST_CHANNELS:
        return ()
    found: list[str] = []
    for number, name in enumerate(names, 1):
        name = _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME] or f"channel_{number}"
        unique, count = name, 1
        while unique in found or unique in _TAKEN or unique.endswith(arrays.CHANNEL_GROUP):
            count += 1
            unique = f"{name}_{count}"
        found.append(unique)
    return tuple(found)


def image_paths(dataset: str, channels: Sequence[str]) -> list[str]:
    """Where the images are: one dataset, or one for each channel beside where that would be."""
    return [f"{detector_path(dataset)}/{channel}" for channel in channels] or [dataset]


def find_places(h5: h5py.File, of: Identity, read: Read) -> Places:
    """Where the changing fields of this file are; ConfigError or KeyError when something is not as we make it."""
    detector = h5[detector_path(of.dataset)]
    return Places(
        images=[_fields(h5[path], read) for path in of.images] if of.images[0] in h5 else [],
        columns={name: _fields(detector[name], read) for name in ALL_COLUMNS if name in detector},
        missing=_fields(detector["frames_missing"], read),
        scalars=scalar_places(h5, of.dataset),
        block=int(detector["frame_status"].chunks[0]),
    )


def _fields(array: h5py.Dataset, read: Read) -> ArrayFields:
    return h5fields.array_fields(read, h5py.h5o.get_info(array.id).addr)


def scalar_places(h5: h5py.File, dataset: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each value that closing fills in; ConfigError when one has none."""
    detector, entry = h5[detector_path(dataset)], h5[dataset.strip("/").split("/")[0]]
    scalars = {name: (detector[name].id.get_offset(), 8) for name in _COUNTS}
    for group, name in ((detector, "end_reason"), (entry, "end_time")):
        scalars[name] = (group[name].id.get_offset(), group[name].dtype.itemsize)
    if any(offset is None for offset, _ in scalars.values()):
        raise ConfigError("a count of this file has no place: it was not made by this package")
    return scalars


def identity(h5: h5py.File) -> Identity:
    """Who made this file; ConfigError when it was not us."""
    try:
        form, nonce = int(h5.attrs["series_file_format"]), int(h5.attrs["series_file_nonce"])
        dataset, nframes = str(h5.attrs["series_file_dataset"]), int(h5.attrs["series_file_nframes"])
    except (KeyError, ValueError, TypeError) as exc:
        raise ConfigError(f"{h5.filename}: not a series file of this package") from exc
    if form not in FORMATS:
        raise ConfigError(
            f"{h5.filename}: series file of format {form}, this version knows {max(FORMATS)}: use a newer one"
        )
    try:
        part, spread, channels = _part_of(h5), _spread_of(h5), _channels_of(h5)
    except (KeyError, ValueError, TypeError) as exc:
        raise ConfigError(f"{h5.filename}: what it says about its place among several files is damaged") from exc
    return Identity(nonce, dataset, None if nframes < 0 else nframes, part, spread, channels)


def read_identity(path: Path) -> Identity | None:
    """Of a file that may be anything; None: it is not ours, or cannot be read."""
    try:
        with h5py.File(path, "r", locking=False) as h5:
            return identity(h5)
    except (OSError, RuntimeError, ConfigError):
        return None


def _part_of(h5: h5py.File) -> Part | None:
    if "series_file_set" not in h5.attrs:
        return None
    return Part(*(int(h5.attrs[f"series_file_{name}"]) for name in ("set", "first", "step")))


def _spread_of(h5: h5py.File) -> Spread | None:
    if "series_file_parts" not in h5.attrs:
        return None
    return Spread(int(h5.attrs["series_file_parts"]), int(h5.attrs["series_file_frames_per_file"]))


def _channels_of(h5: h5py.File) -> tuple[str, ...]:
    channels = str(h5.attrs.get("series_file_channels", "")).split()
    if any("/" in channel for channel in channels):
        raise ValueError("a path, not a name")
    return tuple(channels)


def stored_layout(h5: h5py.File, of: Identity) -> ImageLayout | None:
    """How the frames of this file are stored; None: there are none, and nobody said it."""
    if of.images[0] not in h5:
        return None
    layout = layout_of(h5[of.images[0]])
    if of.channels:
        layout = replace(layout, modules=len(of.channels), channels=of.channels)
    detector = h5[detector_path(of.dataset)]
    begun = str(detector["timestamp"].attrs.get("start", "")) if "timestamp" in detector else ""
    return replace(layout, times=all(name in detector for name in TIME_COLUMNS), begun=begun)


def layout_of(dataset: h5py.Dataset) -> ImageLayout:
    """How the frames of this dataset are stored."""
    *_, rows, columns = dataset.shape
    modules = dataset.shape[1] if dataset.ndim == 4 else 1
    plist = dataset.id.get_create_plist()
    codec = CODECS.get(plist.get_filter(0)[0], "bslz4") if plist.get_nfilters() else "none"
    return ImageLayout((rows, columns), dataset.dtype.name, codec, modules)


def iso_time(seconds: float) -> str:
    """Unix seconds as ISO 8601 with the local zone; "" where there is no such time."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).astimezone().isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError, TypeError):
        return ""


def scalar_values(books: Books) -> dict[str, bytes]:
    """The bytes of each scalar that closing fills in; the end time last, for it says that the file is closed."""
    counts = {
        "frames_expected": -1 if books.frames_expected is None else books.frames_expected,
        "frames_received": books.frames_received,
        "frames_repeated": books.repeated,
        "frames_rejected": books.rejected,
        "frames_foreign": books.foreign,
    }
    values = {name: int(n).to_bytes(8, "little", signed=True) for name, n in counts.items()}
    values["end_reason"] = _fixed(books.end_reason, REASON_SIZE)
    values["end_time"] = _fixed(iso_time(books.end_time) or iso_time(0.0), TIME_SIZE)
    return values


def _fixed(text: str, size: int) -> bytes:
    """UTF-8, cut at a character's border to leave a zero at the end, and padded."""
    raw = text.replace("\0", " ").encode("utf-8", "replace")[: size - 1]
    return raw.decode("utf-8", "ignore").encode().ljust(size, b"\0")


def _tree(
    h5: h5py.File,
    header: FileHeader,
    layout: ImageLayout | None,
    nonce: int,
    columns: Mapping[str, h5py.Dataset],
    images: Sequence[h5py.Dataset],
    stored: Sequence[arrays.Stored],
) -> None:
    """Groups, links and all that is said once, around the datasets, which have no names yet."""
    path = [part for part in header.dataset.split("/") if part]
    groups = detector_path(header.dataset).split("/")
    plot_name = "data" if "data" not in path[1:2] else "plot"
    _root_attributes(h5, header, layout, nonce)
    entry = _group(h5, path[0], "NXentry", default=plot_name)
    _entry(entry, header)
    for depth in range(2, len(groups)):
        _group(h5, "/".join(groups[:depth]), "NXinstrument" if depth == 2 else "NXcollection")
    detector = _group(h5, "/".join(groups), "NXdetector")
    for name, column in columns.items():
        detector[name] = column
    plot = _group(entry, plot_name, "NXdata")
    arrays.add(detector, header, layout, stored)
    if layout is not None:
        _link_images(h5, "/".join(path), plot, layout.channels, images)
        plot.attrs["signal"] = layout.channels[0] if layout.channels else "data"
        if len(layout.channels) > 1:
            plot.attrs["auxiliary_signals"] = list(layout.channels[1:])
        if placement := assembled.placement_of(header, layout):
            masked = any(a.path == arrays.MASK and a.shape == placement.full_shape for a in stored)
            assembled.add(h5["/".join(path)], detector, plot, placement, masked)
    _detector(detector, header)
    _channels(detector, header, layout)
    put_json(_group(detector, "header", "NXcollection"), header.metadata)


def _root_attributes(h5: h5py.File, header: FileHeader, layout: ImageLayout | None, nonce: int) -> None:
    path = [part for part in header.dataset.split("/") if part]
    channels, times = (layout.channels, layout.times) if layout is not None else ((), False)
    h5.attrs.update(
        {
            "NX_class": "NXroot",
            "default": path[0],
            "file_name": _text(header.filename),
            "file_time": iso_time(header.start_time),
            "creator": f"{PROGRAM} {__version__}",
            "series_file_format": FORMATS[len(channels) > 1 or times],
            "series_file_nonce": np.uint64(nonce),
            "series_file_dataset": "/".join(path),
            "series_file_nframes": -1 if header.nframes is None else header.nframes,
        }
    )
    if channels:
        h5.attrs["series_file_channels"] = " ".join(channels)
    if header.part is not None:
        h5.attrs["series_file_set"] = np.uint64(header.part.of)
        h5.attrs["series_file_first"], h5.attrs["series_file_step"] = header.part.first, header.part.step


def _link_images(
    h5: h5py.File, dataset: str, plot: h5py.Group, channels: Sequence[str], images: Sequence[h5py.Dataset]
) -> None:
    """Put the images under all their names; what has one of these goes."""
    for group, name, image in _image_names(h5, dataset, plot, channels, images):
        if name in group:
            del group[name]
        group[name] = image


def _image_names(
    h5: h5py.File, dataset: str, plot: h5py.Group, channels: Sequence[str], images: Sequence[h5py.Dataset]
) -> Iterator[tuple[h5py.Group, str, h5py.Dataset]]:
    """Their own, those in the default plot, and `data` for the first of several channels."""
    first, parent = images[0], detector_path(dataset)
    yield h5, dataset, first
    yield plot, "data", first
    if channels or dataset.rpartition("/")[0] != parent:
        yield h5[parent], "data", first
    for channel, image in zip(channels, images, strict=False):
        yield h5[parent], channel, image
        yield plot, channel, image


def _group(parent: h5py.Group, name: str, nx_class: str, **attributes: str) -> h5py.Group:
    group = parent.require_group(name)
    group.attrs.update({"NX_class": nx_class, **attributes})
    return group


def _entry(entry: h5py.Group, header: FileHeader) -> None:
    entry["title"] = _text(header.metadata.get("label") or f"series {header.series}")
    entry["start_time"] = iso_time(header.start_time)
    _early(entry, "end_time", h5py.string_dtype("utf-8", TIME_SIZE), b"")
    entry["program_name"] = PROGRAM
    entry["program_name"].attrs["version"] = __version__
    entry["entry_identifier"] = str(header.series)


def _detector(group: h5py.Group, header: FileHeader) -> None:
    sources = _sources(header)
    for name, (keys, attributes) in _NUMBERS.items():
        if (number := _first(sources, keys, Real)) is not None:
            group[name] = float(number)
            group[name].attrs.update(attributes)
    for name, texts in _TEXTS.items():
        if (value := _first(sources, texts, str | int)) is not None:
            group[name] = _text(value)
    for name, flags in _FLAGS.items():
        if (flag := next((s[key] for s in sources for key in flags if isinstance(s.get(key), bool)), None)) is not None:
            group[name] = flag
    for name, meaning in _COUNTS.items():
        expected = -1 if header.nframes is None else header.nframes
        _early(group, name, np.dtype("<i8"), expected if name == "frames_expected" else 0)
        group[name].attrs["description"] = meaning
    _early(group, "end_reason", h5py.string_dtype("utf-8", REASON_SIZE), NOT_CLOSED.encode())


def _channels(detector: h5py.Group, header: FileHeader, layout: ImageLayout | None) -> None:
    """What is said of each channel, in its NXdetector_channel."""
    for channel in layout.channels if layout is not None else ():
        for source in _sources(header):
            energies = source.get("threshold_energy")
            energy = energies.get(channel) if isinstance(energies, Mapping) else None
            if isinstance(energy, Real):
                group = _group(detector, f"{channel}{arrays.CHANNEL_GROUP}", "NXdetector_channel")
                group["threshold_energy"] = float(energy)
                group["threshold_energy"].attrs["units"] = "eV"
                break


def _sources(header: FileHeader) -> list[Mapping[str, Any]]:
    """Where the metadata may have it: the `detector` part, or beside it."""
    part = header.metadata.get("detector")
    return [part if isinstance(part, Mapping) else {}, header.metadata]


def _first(sources: Sequence[Mapping[str, Any]], keys: Sequence[str], kind: Any) -> Any:
    """The first value of that kind under one of the keys, or None."""
    for key in keys:
        for source in sources:
            if isinstance(value := source.get(key), kind) and not isinstance(value, bool):
                return value
    return None


def columns_of(layout: ImageLayout | None) -> dict[str, tuple[np.dtype, Any, dict[str, str]]]:
    """The per-frame arrays of such frames."""
    columns = ALL_COLUMNS if layout is not None and layout.times else COLUMNS
    if layout is None or not layout.begun:
        return columns
    start = {"start": _text(layout.begun)[:_LONGEST_TIME]}
    return {
        name: (kind, fill, attributes | (start if name in _ON_CLOCK else {}))
        for name, (kind, fill, attributes) in columns.items()
    }


def _columns(h5: h5py.File, layout: ImageLayout | None, nframes: int | None) -> dict[str, h5py.Dataset]:
    """The per-frame arrays and frames_missing, without a name yet."""
    block = BLOCK if nframes is None else max(1, min(nframes, BLOCK))
    columns = {}
    for name, (dtype, fill, attributes) in columns_of(layout).items():
        columns[name] = h5.create_dataset(
            None, shape=(nframes or 0,), maxshape=(None,), chunks=(block,), dtype=dtype, fillvalue=fill
        )
        columns[name].attrs.update(attributes)
    columns["frames_missing"] = missing = h5.create_dataset(
        None, shape=(0, 2), maxshape=(None, 2), chunks=(RANGE_BLOCK, 2), dtype=MISSING_TYPE
    )
    missing.attrs["description"] = _MISSING_TEXT
    return columns


def _images(h5: h5py.File, layout: ImageLayout, nframes: int) -> list[h5py.Dataset]:
    """The datasets of images, without a name yet: one, or one for each channel."""
    return [_image_dataset(h5, layout, nframes) for _ in layout.channels or [""]]


def _image_dataset(h5: h5py.File, layout: ImageLayout, nframes: int) -> h5py.Dataset:
    inner = (layout.modules, *layout.shape) if layout.axis else layout.shape
    # The filter's own set-up writes element size and version into the parameters, as any other writer would have it.
    filters: dict[str, Any] = {"bslz4": dict(hdf5plugin.Bitshuffle(cname="lz4")), "lz4": dict(hdf5plugin.LZ4())}.get(
        layout.codec, {}
    )
    data = h5.create_dataset(
        None,
        shape=(nframes, *inner),
        maxshape=(None, *inner),
        chunks=(*(1,) * (layout.rank - 2), *layout.shape),
        dtype=layout.dtype,
        fillvalue=0,
        **filters,
    )
    data.attrs["interpretation"] = "image"
    return data


def build_master(
    header: FileHeader,
    layout: ImageLayout | None,
    nonce: int,
    spread: Spread,
    sources: Sequence[Source],
    length: int,
    books: Books | None = None,
    stored: Sequence[arrays.Stored] = (),
) -> tuple[bytes, int]:
    """The whole image of a master file that shows these files, and where frames_received is in it.

    `length` frames at least; growing sources may show more. `books`: it is closed with them."""
    with _in_memory(nonce) as h5:
        columns, images = _virtual_arrays(h5, header.dataset, layout, sources, length)
        columns["frames_missing"] = _missing_ranges(h5, books.missing if books else ())
        _tree(h5, header, layout, nonce, columns, images, stored)
        h5.attrs["series_file_parts"], h5.attrs["series_file_frames_per_file"] = spread.parts, spread.frames_per_file
        return _with_books(h5, header.dataset, books)


def rebuild_master(
    image: bytes, nonce: int, layout: ImageLayout | None, sources: Sequence[Source], length: int, books: Books | None
) -> tuple[bytes, int]:
    """A master file made anew from one that exists: `books` None leaves counts and missing ranges as they are."""
    with _in_memory(nonce, image) as h5:
        dataset = identity(h5).dataset
        detector = h5[detector_path(dataset)]
        columns, images = _virtual_arrays(h5, dataset, layout, sources, length)
        if books is not None:
            columns["frames_missing"] = _missing_ranges(h5, books.missing)
        for name, column in columns.items():
            del detector[name]
            detector[name] = column
        if layout is not None:
            entry = h5[dataset.split("/")[0]]
            _link_images(h5, dataset, entry[entry.attrs["default"]], layout.channels, images)
        return _with_books(h5, dataset, books)


def _in_memory(nonce: int, image: bytes | None = None) -> h5py.File:
    """Only this form of file keeps a strided selection in few bytes."""
    name = f"master-{nonce:016x}"
    form = ("v110", "v110")
    if image is None:
        return h5py.File(name, "w", driver="core", backing_store=False, libver=form)
    plist = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    plist.set_fapl_core(1 << 20, False)
    plist.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    plist.set_file_image(image)
    return h5py.File(h5py.h5f.open(name.encode(), h5py.h5f.ACC_RDWR, plist))


def _with_books(h5: h5py.File, dataset: str, books: Books | None) -> tuple[bytes, int]:
    h5.flush()
    image, places = bytearray(h5.id.get_file_image()), scalar_places(h5, dataset)
    for name, value in scalar_values(books).items() if books else ():
        image[places[name][0] : places[name][0] + len(value)] = value
    return bytes(image), places["frames_received"][0]


def _virtual_arrays(
    h5: h5py.File, dataset: str, layout: ImageLayout | None, sources: Sequence[Source], length: int
) -> tuple[dict[str, h5py.Dataset], list[h5py.Dataset]]:
    """Per-frame arrays and images over these files, without a name yet."""
    detector = detector_path(dataset)
    length = max([length, *(s.first + s.step * (s.length - 1) + 1 for s in sources if s.length)])
    columns = {}
    for name, (dtype, fill, attributes) in columns_of(layout).items():
        columns[name] = _virtual(h5, sources, f"{detector}/{name}", (length,), dtype, fill)
        columns[name].attrs.update(attributes)
    if layout is None:
        return columns, []
    inner = (layout.modules, *layout.shape) if layout.axis else layout.shape
    images = []
    for path in image_paths(dataset, layout.channels):
        images.append(_virtual(h5, sources, path, (length, *inner), np.dtype(layout.dtype), 0))
        images[-1].attrs["interpretation"] = "image"
    return columns, images


def _virtual(
    h5: h5py.File, sources: Sequence[Source], dataset: str, shape: tuple[int, ...], dtype: np.dtype, fill: Any
) -> h5py.Dataset:
    """A virtual dataset of `shape` over this dataset of each source."""
    inner = shape[1:]
    if not sources:  # HDF5 has no virtual dataset over nothing
        return h5.create_dataset(None, shape, dtype, maxshape=(None, *inner), chunks=(1, *inner), fillvalue=fill)
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_value(np.array(fill, dtype))
    below, limits = (0,) * len(inner), (h5py.h5s.UNLIMITED, *inner)
    end = max(source.first + source.step * (source.length or 1) for source in sources)
    there, here = (h5py.h5s.create_simple((max(end, shape[0]), *inner), limits) for _ in range(2))
    path = f"/{dataset}".replace("%", "%%").encode()
    for source in sources:
        count = h5py.h5s.UNLIMITED if source.length is None else source.length
        ones = (1,) * len(inner)
        there.set_extent_simple((source.length or 1, *inner), limits)
        there.select_hyperslab((0, *below), (count, *ones), block=(1, *inner))
        here.select_hyperslab((source.first, *below), (count, *ones), (source.step, *ones), (1, *inner))
        plist.set_virtual(here, os.fsencode(source.name.replace("%", "%%")), path, there)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(h5.id, None, kind, h5py.h5s.create_simple(shape, limits), plist))


def _missing_ranges(h5: h5py.File, ranges: Sequence[tuple[int, int]]) -> h5py.Dataset:
    rows = np.array(ranges, MISSING_TYPE).reshape(-1, 2)
    missing = h5.create_dataset(None, data=rows, maxshape=(None, 2), chunks=(RANGE_BLOCK, 2))
    missing.attrs["description"] = _MISSING_TEXT
    return missing


def _early(group: h5py.Group, name: str, dtype: np.dtype, value: Any) -> None:
    """A scalar that has its place in the file at once, so that it can be filled in later."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    kind = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, plist))
    dataset[()] = value


def put_json(group: h5py.Group, values: Mapping[Any, Any]) -> None:
    """Keep what a sender said: objects become groups, plain values and even lists datasets, all else JSON text."""
    if _size(values) > _HEADER_KEYS:
        _put_text(group, "json", _json(values), as_json=True)
        return
    _put_items(group, values, _HEADER_DEPTH)


def _put_items(group: h5py.Group, values: Mapping[Any, Any], depth: int) -> None:
    for key, value in values.items():
        name = _free_name(group, key)
        if isinstance(value, Mapping) and depth:
            below = group.create_group(name)
            below.attrs["NX_class"] = "NXcollection"
            _put_items(below, value, depth - 1)
        else:
            _put_value(group, name, value)


def _put_value(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, str) and "\0" not in value:
        _put_text(group, name, value)
        return
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or (array.ndim and not array.size) or array.dtype.itemsize > 8:
            raise TypeError("not a number, nor numbers of one kind")
        if isinstance(value, list | tuple) and _kinds(value) > 1:
            raise TypeError("numbers and truth values mixed")
        group[name] = array
    except (TypeError, ValueError, OverflowError, RecursionError):
        _put_text(group, name, _json(value), as_json=True)


def _kinds(value: Any) -> int:
    """Whether truth values are mixed with numbers, which NumPy would hide: 1 no, 2 yes."""
    flat, kinds = list(value), set()
    while flat:
        item = flat.pop()
        if isinstance(item, list | tuple):
            flat.extend(item)
        else:
            kinds.add(isinstance(item, bool | np.bool_))
    return len(kinds)


def _put_text(group: h5py.Group, name: str, text: str, as_json: bool = False) -> None:
    group[name] = _text(text)
    if as_json:
        group[name].attrs["encoding"] = "json"


def _text(value: Any) -> str:
    """A text that HDF5 takes: no zeros, no halves of surrogate pairs."""
    return str(value).replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError) as exc:
        return json.dumps(f"not kept: {exc}")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _size(values: Mapping[Any, Any]) -> int:
    """Number of keys in an object and the objects in it, counted no further than needed."""
    count, todo = 0, [values]
    while todo and count <= _HEADER_KEYS:
        found = todo.pop()
        count += len(found)
        todo += [v for v in found.values() if isinstance(v, Mapping)]
    return count


def _free_name(group: h5py.Group, key: Any) -> str:
    """A link name for this key: HDF5 has no use for "", "." and slashes."""
    name = _text(key).replace("/", "_")[:200]
    name = name if name.strip(".") else name.replace(".", "_") + "_"
    unique, number = name, 1
    while unique in group:
        number += 1
        unique = f"{name}_{number}"
    return unique
