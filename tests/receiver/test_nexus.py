"""The NeXus tree as readers see it: default plot, books, metadata of any kind."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangods_receiver import nexus
from tangods_receiver.errors import ConfigError
from tangods_receiver.fileset import FileSet
from tangods_receiver.protocol import Array
from tangods_receiver.recovery import check, recover
from tangods_receiver.seriesfile import Books, ImageLayout, Record, SeriesFile
from tangods_receiver.spread import Spread
from tests.receiver.series_files import (
    CHANNELS,
    CHANNELS_TIMED,
    DATASET,
    DETECTOR,
    MODULES,
    PACKED,
    SMALL,
    TIMED,
    books,
    header,
    image,
    packed,
    records,
    written,
)

METADATA = {
    "exptime": 0.1,
    "frame_time": 0.11,
    "label": "lysozyme",
    "trigger_mode": "INTERNAL",
    "detector": {
        "description": "Eiger",
        "detector_number": "E-18-0104",
        "sensor_material": "Si",
        "sensor_thickness": 4.5e-4,
        "x_pixel_size": 7.5e-5,
        "y_pixel_size": 7.6e-5,
        "bit_depth_readout": 16,
    },
}


def text(dataset: h5py.Dataset) -> str:
    value = dataset[()]
    return value.decode()


def test_tree_and_attributes(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.h5", **METADATA)) as h5:
        entry, group = h5["entry"], h5[DETECTOR]
        assert [h5[p].attrs["NX_class"] for p in ("/", "entry", "entry/instrument", DETECTOR, "entry/data")] == [
            "NXroot",
            "NXentry",
            "NXinstrument",
            "NXdetector",
            "NXdata",
        ]
        h5.visititems(lambda name, item: isinstance(item, h5py.Dataset) or item.attrs["NX_class"])
        default = h5[h5.attrs["default"]]
        plot = default[default.attrs["default"]]
        assert plot[plot.attrs["signal"]] == h5[DATASET], "the same dataset, by a hard link"
        assert text(entry["title"]) == "lysozyme"
        assert text(entry["program_name"]) == "tangods-detector" and entry["program_name"].attrs["version"]
        start, end = (datetime.fromisoformat(text(entry[name])) for name in ("start_time", "end_time"))
        assert start.timestamp() == 1_750_000_000.25
        assert start.tzinfo and end.tzinfo and end > start
        values = {"count_time": (0.1, "s"), "frame_time": (0.11, "s"), "sensor_thickness": (4.5e-4, "m")}
        values |= {"x_pixel_size": (7.5e-5, "m"), "y_pixel_size": (7.6e-5, "m")}
        for name, (value, unit) in values.items():
            assert group[name][()] == value and group[name].attrs["units"] == unit
        assert [text(group[n]) for n in ("description", "detector_number", "sensor_material")] == [
            "Eiger",
            "E-18-0104",
            "Si",
        ]
        assert "0: missing" in group["frame_status"].attrs["description"]
        assert group["timestamp"].attrs["units"] == "s"
        assert group["header/detector/bit_depth_readout"][()] == 16
        assert text(group["header/label"]) == "lysozyme"


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def by_h5py(path: Path) -> None:
    with h5py.File(path) as h5:
        assert h5[DATASET].ndim == 3


def by_h5dump(path: Path) -> None:
    assert "NXdetector" in run("h5dump", "-A", path) and "frame_status" in run("h5dump", "-H", path)


def by_h5ls(path: Path) -> None:
    assert "/entry/instrument/detector/data" in run("h5ls", "-r", path)


def by_h5stat(path: Path) -> None:
    assert "# of unique datasets" in run("h5stat", path)


def by_nexusformat(path: Path) -> None:
    import nexusformat.nexus as nx

    root = nx.nxload(path, "r")
    with root.nxfile:
        shown = root.plottable_data
        assert shown.nxclass == "NXdata" and shown.nxsignal.ndim == 3


def by_h5grove(path: Path) -> None:
    from h5grove.content import create_content

    with h5py.File(path) as h5:
        assert create_content(h5, "/entry").metadata()["children"]
        assert create_content(h5, "/" + DATASET).data("0") is not None


def by_silx(path: Path) -> None:
    silx = pytest.importorskip("silx.io")
    nxdata = pytest.importorskip("silx.io.nxdata")
    with silx.open(str(path)) as h5:
        shown = nxdata.get_default(h5)
        assert shown is not None and shown.is_valid and shown.signal.ndim == 3


READERS = [by_h5py, by_h5dump, by_h5ls, by_h5stat, by_nexusformat, by_h5grove, by_silx]


@pytest.mark.parametrize("read", READERS)
def test_readers_open_it_growing_killed_and_closed(tmp_path: Path, read: Callable[[Path], None]) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(20, **METADATA), SMALL)
    read(file.path)
    file.append(records(range(10)))
    file.commit()
    read(file.path)
    file.append(records(range(10, 20)))
    file.abandon()  # what a kill leaves
    read(file.path)
    read(written(tmp_path / "b.h5", **METADATA))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("spread", [None, Spread(2)])
def test_readers_open_channels_and_arrays(tmp_path: Path, read: Callable[[Path], None], spread: Spread | None) -> None:
    path = tmp_path / "a.h5"
    told = replace(header(20, **METADATA), arrays={"pixel_mask": Array((4, 8), "uint32", bytes(128))})
    layout = replace(CHANNELS, times=True)
    file = FileSet.create(path, told, layout, spread) if spread else SeriesFile.create(path, told, layout)
    read(path)
    file.append(records(range(10), layout))
    file.commit()
    read(path)
    file.close(books(20, 10, [(10, 19)]))
    read(path)


def test_channels_are_a_default_plot_each(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "a.h5", 3, CHANNELS)) as h5:
        detector, plot = h5[DETECTOR], h5["entry/data"]
        assert plot.attrs["signal"] == "threshold_1"
        assert plot.attrs["auxiliary_signals"].tolist() == ["threshold_2", "difference"]
        for name in CHANNELS.channels:
            assert plot[name] == detector[name] and detector[name].shape == (3, 4, 8)
            assert detector[name].attrs["interpretation"] == "image"
        assert detector["data"] == plot["data"] == detector["threshold_1"], "by a hard link"
    import nexusformat.nexus as nx
    from silx.io import nxdata
    from silx.io import open as silx_open

    with silx_open(str(tmp_path / "a.h5")) as h5:
        shown = nxdata.get_default(h5)
        assert shown.is_valid and shown.signal_name == "threshold_1"
        assert shown.auxiliary_signals_names == ["threshold_2", "difference"]
    root = nx.nxload(tmp_path / "a.h5", "r")
    with root.nxfile:
        assert root.plottable_data.nxsignal.nxname == "threshold_1"


def test_one_channel_is_data_with_its_name(tmp_path: Path) -> None:
    layout = ImageLayout((4, 8), "uint16", "none", 1, ("threshold_1",))
    path = written(tmp_path / "a.h5", 3, layout)
    assert check(path).ok
    with h5py.File(path) as h5:
        assert h5[DATASET] == h5[DETECTOR]["threshold_1"] == h5["entry/data/data"]
        assert "auxiliary_signals" not in h5["entry/data"].attrs and h5.attrs["series_file_format"] == 1


@pytest.mark.parametrize(
    "dataset", ["entry/images", "entry/data", "entry/data/data", "/entry/instrument/detector/x", "a/b/c/d/e"]
)
@pytest.mark.parametrize("names", [("x", "y"), ("y", "x"), ("images", "z")])
def test_channels_of_other_dataset_paths(tmp_path: Path, dataset: str, names: tuple[str, ...]) -> None:
    layout = ImageLayout((4, 8), "uint16", "none", 2, names)
    for spread in (None, Spread(2)):
        path = tmp_path / f"{spread is None}.h5"
        told = header(4, dataset)
        file = FileSet.create(path, told, layout, spread) if spread else SeriesFile.create(path, told, layout)
        file.append(records(range(4), layout))
        file.abandon()
        assert recover(path).frames == 4 and check(path).ok, check(path).lines()
        with h5py.File(path) as h5:
            detector = h5[nexus.detector_path(dataset.strip("/"))]
            for module, name in enumerate(names):
                np.testing.assert_array_equal(detector[name][3], image(3, module, layout))
            if dataset.rpartition("/")[2] not in names:
                assert h5[dataset] == detector[names[0]]


def test_names_of_channels() -> None:
    names = nexus.channel_names
    assert names(("threshold_1", "threshold_2", "difference")) == ("threshold_1", "threshold_2", "difference")
    assert names(("a b", "a/b", "..", "", "ü", "x" * 99)) == ("a_b", "a_b_2", "__", "channel_4", "_", "x" * 40)
    assert names(("data", "frame_status", "stop_time", "header", "pixel_mask", "t_channel")) == (
        "data_2",
        "frame_status_2",
        "stop_time_2",
        "header_2",
        "pixel_mask_2",
        "t_channel_2",
    )


def test_too_many_channels_stay_in_one_dataset() -> None:
    assert len(nexus.channel_names([f"c{n}" for n in range(16)])) == 16
    assert nexus.channel_names([f"c{n}" for n in range(17)]) == ()


@settings(max_examples=20)
@given(st.lists(st.text(max_size=50) | st.sampled_from(["data", "a", "a_2", "a_channel"]), min_size=1, max_size=16))
def test_any_names_of_channels_make_a_file(tmp_path_factory, given: list[str]) -> None:
    names = nexus.channel_names(given)
    assert len(set(names)) == len(given) and all(re.fullmatch(r"[A-Za-z0-9_]{1,44}", name) for name in names)
    layout = ImageLayout((4, 8), "uint16", "none", len(names), names)
    told = {f"{name}/pixel_mask": Array((4, 8), "uint8", bytes(32)) for name in names}
    path = tmp_path_factory.mktemp("names") / "a.h5"
    file = SeriesFile.create(path, replace(header(1), arrays=told), layout)
    file.append(records([0], layout))
    file.close(books(1, 1))
    assert check(path).ok
    with h5py.File(path) as h5:
        for module, name in enumerate(names):
            np.testing.assert_array_equal(h5[DETECTOR][name][0], image(0, module, layout))


def test_names_and_modules_must_fit() -> None:
    with pytest.raises(ValueError, match="3 modules, 2 names"):
        ImageLayout((4, 8), "uint16", "none", 3, ("a", "b"))


@pytest.mark.parametrize(
    "dataset, detector, plot",
    [
        (DATASET, DETECTOR, "entry/data"),
        ("entry/images", "entry/instrument/detector", "entry/data"),
        ("entry/data", "entry/instrument/detector", "entry/plot"),
        ("entry/data/data", "entry/data", "entry/plot"),
        ("/entry/eiger/raw", "entry/eiger", "entry/data"),
        ("a/b/c/d/e", "a/b/c/d", "a/data"),
    ],
)
def test_other_dataset_paths(tmp_path: Path, dataset: str, detector: str, plot: str) -> None:
    for number, layout in enumerate((SMALL, None)):
        file = SeriesFile.create(tmp_path / f"{number}.h5", header(2, dataset), layout)
        if layout is None:
            file.define(SMALL)
        file.append(records(range(2)))
        file.close(books(2, 2))
        assert check(file.path).ok
        with h5py.File(file.path) as h5:
            assert h5[dataset] == h5[plot]["data"]
            assert h5[detector].attrs["NX_class"] == "NXdetector"
            assert h5[detector]["frames_received"][()] == 2
            np.testing.assert_array_equal(h5[dataset][1], image(1))
            groups = [h5["/"], *(h5[n] for n in names(h5) if isinstance(h5[n], h5py.Group))]
            assert all("NX_class" in group.attrs for group in groups)


def names(h5: h5py.File) -> list[str]:
    found: list[str] = []
    h5.visit(found.append)
    return found


@pytest.mark.parametrize("block", [0, 64, 1024])
def test_compressed_chunks_as_detectors_send_them(tmp_path: Path, block: int) -> None:
    import hdf5plugin  # noqa: F401

    rng = np.random.default_rng(4)
    images = rng.poisson(2, (5, *PACKED.shape)).astype(PACKED.dtype)
    file = SeriesFile.create(tmp_path / "a.h5", header(5), PACKED)
    file.append([Record(n, 0, packed(pixels, block)) for n, pixels in enumerate(images)])
    file.close(books(5, 5))
    with h5py.File(file.path) as h5:
        assert h5[DATASET].id.get_create_plist().get_filter(0)[0] == 32008
        np.testing.assert_array_equal(h5[DATASET][()], images)
    assert check(file.path).ok


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float32", "float64", "int8", "uint64"])
def test_types(tmp_path: Path, dtype: str) -> None:
    layout = ImageLayout((8, 16), dtype, "none")
    path = written(tmp_path / "a.h5", 3, layout)
    assert check(path).ok
    with h5py.File(path) as h5:
        assert h5[DATASET].dtype == dtype
        np.testing.assert_array_equal(h5[DATASET][2], image(2, 0, layout))


def test_layout_is_read_back(tmp_path: Path) -> None:
    for n, layout in enumerate((SMALL, MODULES, PACKED, CHANNELS, TIMED, CHANNELS_TIMED)):
        file = SeriesFile.create(tmp_path / f"{n}.h5", header(1), layout)
        with h5py.File(file.path) as h5:
            assert nexus.stored_layout(h5, nexus.identity(h5)) == layout
        file.abandon()


# --- metadata of any kind

ODD = {
    "none": None,
    "true": True,
    "mixed": [1, "a", None],
    "ragged": [[1], [2, 3]],
    "truths": [True, 1],
    "texts": ["a", "b"],
    "empty": [],
    "nothing": {},
    "huge": 2**70,
    "negative": -(2**63),
    "unsigned": 2**64 - 1,
    "": "no name",
    ".": "dot",
    "..": "dots",
    "a/b": "slash",
    "a_b": "no slash",
    "zero\0name": "x",
    "zero": "a\0b",
    "half": "\ud800",
    "nan": float("nan"),
    "matrix": [[1, 2], [3, 4]],
    "numbers": [1, 2.5],
    "bytes": b"abc\0",
    "array": np.arange(3),
    "deep": {"a": {"b": {"c": 1}}},
    "ünï": "ç",
    5: "five",
    "x" * 1000: 1,
}


def put(path: Path, values: dict) -> dict:
    with h5py.File(path, "w", libver="earliest") as h5:
        nexus.put_json(h5, values)
        found: dict = {}
        h5.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        return {name: (item[()], item.attrs.get("encoding")) for name, item in found.items()}


def test_odd_metadata(tmp_path: Path) -> None:
    found = put(tmp_path / "a.h5", ODD)
    assert found["none"] == (b"null", "json")
    assert json.loads(found["mixed"][0]) == [1, "a", None]
    assert json.loads(found["ragged"][0]) == [[1], [2, 3]]
    assert json.loads(found["truths"][0]) == [True, 1]
    assert json.loads(found["texts"][0]) == ["a", "b"]
    assert json.loads(found["huge"][0]) == 2**70
    assert found["true"][0] == np.True_
    assert found["unsigned"][0] == 2**64 - 1 and found["negative"][0] == -(2**63)
    assert found["matrix"][0].tolist() == [[1, 2], [3, 4]]
    assert json.loads(found["zero"][0]) == "a\0b"
    assert found["deep/a/b/c"][0] == 1
    assert {"a_b", "a_b_2"} <= set(found)
    values = list(found.values())
    assert sum(isinstance(v, bytes) and v in (b"no name", b"dot", b"dots", b"slash", b"five") for v, _ in values) == 5


def test_metadata_without_bounds(tmp_path: Path) -> None:
    deep: dict = {}
    at = deep
    for _ in range(500):
        at["below"] = at = {}
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    wide = {f"key{n}": n for n in range(50_000)}
    found = put(tmp_path / "a.h5", {"deep": deep, "nested": nested, "long": "x" * 1_000_000})
    assert len(found["long"][0]) == 1_000_000
    assert "not kept" in found["nested"][0].decode()
    assert json.loads(put(tmp_path / "b.h5", wide)["json"][0]) == wide


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=6), JSON, max_size=6))
def test_any_json_is_kept(tmp_path_factory, values: dict) -> None:
    put(tmp_path_factory.mktemp("json") / "a.h5", values)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    st.fixed_dictionaries(
        {},
        optional={k: JSON for k in ("exptime", "frame_time", "label", "detector", "x_pixel_size", "sensor_material")},
    )
)
def test_any_metadata_makes_a_file(tmp_path_factory, metadata: dict) -> None:
    path = tmp_path_factory.mktemp("meta") / "a.h5"
    assert check(written(path, 2, **metadata)).ok


def test_wrong_kinds_of_values_are_left_to_the_header(tmp_path: Path) -> None:
    metadata = {"exptime": "fast", "detector": {"x_pixel_size": [1], "description": 7, "sensor_thickness": True}}
    with h5py.File(written(tmp_path / "a.h5", **metadata)) as h5:
        group = h5[DETECTOR]
        assert "count_time" not in group and "x_pixel_size" not in group and "sensor_thickness" not in group
        assert text(group["description"]) == "7"
        assert text(group["header/exptime"]) == "fast"


def test_texts_that_do_not_fit(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(0), SMALL)
    file.close(Books(0, 0, [], 0, 0, 0, 1e9, "ü" * 1000 + "\0"))
    with h5py.File(file.path) as h5:
        reason = text(h5[DETECTOR]["end_reason"])
        assert reason == "ü" * (len(reason)) and len(reason) > 200
    assert check(file.path).ok


def test_times_beyond_reason(tmp_path: Path) -> None:
    for n, time in enumerate((float("nan"), 1e300, -1e300)):
        file = SeriesFile.create(tmp_path / f"{n}.h5", header(0), SMALL)
        file.close(Books(0, 0, [], 0, 0, 0, time, "complete"))
        assert check(file.path).ok
    assert nexus.iso_time(float("nan")) == ""


def test_not_ours(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as h5, pytest.raises(ConfigError, match="not a series file"):
        nexus.identity(h5)
    file = SeriesFile.create(tmp_path / "b.h5", header(0), SMALL)
    file.close(books(0, 0))
    with h5py.File(file.path, "r+") as h5:
        h5.attrs["series_file_format"] = 99
        with pytest.raises(ConfigError, match="newer"):
            nexus.identity(h5)
