"""What is in a series file: a file is made for it, as the receiver makes it, and its tree is shown."""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py

from tangods_detector.hw.base import DetectorInfo
from tangods_detector.settings import Series, Settings
from tangods_detector.streamer import start_metadata
from tangods_receiver.config import ReceiverConfig
from tangods_receiver.records import Books, FileHeader, ImageLayout
from tangods_receiver.seriesfile import SeriesFile

INFO = DetectorInfo("Simulated", "SIM-0001", (1024, 1024), (75e-6, 75e-6), "Si", 320e-6, "1.0")
NFRAMES = 100


def tree() -> str:
    """The file of a series of 100 frames of 1024 x 1024 uint16."""
    series = Series(1, Settings(n_frames_per_trigger=NFRAMES), label="a label", metadata={"sample": "A1"})
    header = FileHeader(
        1, ReceiverConfig.model_fields["dataset"].default, NFRAMES, 1.7e9, start_metadata(series, INFO, 0.1), "x.h5"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        file = SeriesFile.create(path, header, ImageLayout((1024, 1024), "uint16", "bslz4"))
        file.close(Books(NFRAMES, 0, [(0, NFRAMES - 1)], 0, 0, 0, 1.7e9, "complete"))
        with h5py.File(path) as h5:
            lines = ["x.h5", *_branches(h5)]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _branches(group: h5py.Group, indent: str = "") -> list[str]:
    lines = []
    for n, name in enumerate(group):
        last = n == len(group) - 1
        link = group.get(name, getlink=True)
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{name}  {_words(group, name, link)}".rstrip())
        if not isinstance(link, h5py.SoftLink) and isinstance(group[name], h5py.Group):
            lines += _branches(group[name], indent + ("   " if last else "│  "))
    return lines


def _words(group: h5py.Group, name: str, link: object) -> str:
    """Class of a group; shape, type and units of a dataset."""
    if isinstance(link, h5py.SoftLink):
        return f"-> {link.path}"
    item = group[name]
    if isinstance(item, h5py.Group):
        return str(item.attrs.get("NX_class", ""))
    shape = " x ".join(map(str, item.shape))
    kind = "text" if item.dtype.kind in "SO" else str(item.dtype)
    return " ".join(word for word in (shape, kind, str(item.attrs.get("units", ""))) if word)


PARTS = {"file-tree": tree}
