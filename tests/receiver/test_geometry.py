"""Modules put together: the rules in NumPy's words, the virtual image in the file at every moment of a series."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import silx.io
from hypothesis import given, settings
from hypothesis import strategies as st
from silx.io import nxdata

from tangods_receiver import assembled, geometry, nexus
from tangods_receiver.errors import ConfigError
from tangods_receiver.geometry import from_metadata, index_map, parse, place
from tangods_receiver.recovery import check, recover
from tangods_receiver.seriesfile import ImageLayout, SeriesFile
from tests.receiver.series_files import (
    DATASET,
    DETECTOR,
    MODULES,
    SMALL,
    books,
    header,
    image,
    records,
    written,
)
from tests.receiver.streaming import Sender, running, wait_closed

IMAGE = f"{DETECTOR}/assembled"
#: Three modules of 4 x 8 with gaps of 2 columns and 2 rows.
WHERE: dict[str, Any] = {"x": [0, 10, 1], "y": [0, 0, 6]}


# --- what is said ----------------------------------------------------------------------------------------------------


def test_what_senders_say() -> None:
    said = parse({"x": [0, 10.0], "y": (0, 3), "rotation": 450, "full_shape": [20.0, 30]}, 2)
    assert said == geometry.Geometry((0, 10), (0, 3), (90, 90), (20, 30))
    assert parse({"x": [0], "y": [0], "rotation": [-90]}, 1).rotation == (270,)
    assert from_metadata({"x": [1, 2], "detector": {"x": [5, 6], "y": [7, 8], "gain": 1}}, 2) == parse(
        {"x": [5, 6], "y": [7, 8]}, 2
    )
    assert from_metadata({"rotation": [0, 0], "full_shape": [3, 3], "detector": "Lambda"}, 2) is None


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"x": [0, 10]}, "y is None, not a list of 2 numbers, one for each module"),
        ({"x": 3, "y": [0, 0]}, "x is 3, not a list of 2 numbers"),
        ({"x": [0, 1, 2], "y": [0, 0]}, "x has 3 values, there are 2 modules"),
        ({"x": [0, "a"], "y": [0, 0]}, "x holds 'a', not a number"),
        ({"x": [0, True], "y": [0, 0]}, "x holds True"),
        ({"x": [0, float("nan")], "y": [0, 0]}, "x holds nan"),
        ({"x": [0, 2**80], "y": [0, 0]}, "x holds 12089"),
        ({"x": [0, [1]], "y": [0, 0]}, r"x holds \[1\]"),
        ({"x": [0, 9], "y": [0, 0], "rotation": [0]}, "rotation has 1 values"),
        ({"x": [0, 9], "y": [0, 0], "rotation": "left"}, "rotation is 'left'"),
        ({"x": [0, 9], "y": [0, 0], "full_shape": [5]}, r"full_shape is \[5\], not \[rows, columns\]"),
        ({"x": [0, 9], "y": [0, 0], "full_shape": [5, -1]}, "full_shape is"),
        ({"x": [0, 9], "y": [0, 0], "full_shape": [5, 1.5]}, "full_shape is"),
        ({"x": [0, 9], "y": [0, 0], "full_shape": [10**6, 10**6]}, "more than 268435456 pixels"),
        (
            {"x": [0, 9], "y": [0, 0], "rotation_about": "middle"},
            "rotation_about is 'middle', not one of box, corner, centre",
        ),
        ({"x": [0, 9], "y": [0, 0], "z": [0, 0]}, "z: not known; there are x, y"),
    ],
)
def test_nonsense_is_told_in_words(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(values, 2)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"x": [0, 7], "y": [0, 3]}, r"modules 0 and 1 overlap"),
        ({"x": [0, -1], "y": [0, 6]}, "module 1 reaches from row 6, column -1 to row 9, column 6: outside"),
        ({"x": [0, 10], "y": [0, 0], "full_shape": [4, 17]}, "module 1 .* outside the image of 4 x 17"),
        ({"x": [0, 10], "y": [0, 1], "full_shape": [4, 18]}, "module 1 .* outside the image of 4 x 18"),
        ({"x": [0, 10**8], "y": [0, 10**8]}, "the whole image would be 100000004 x 100000008"),
    ],
)
def test_modules_that_do_not_fit(values: dict, sentence: str) -> None:
    for find in (place, index_map):
        with pytest.raises(ConfigError, match=sentence):
            find(parse(values, 2), (4, 8))


def test_turned_modules_have_no_placement() -> None:
    for values in ({"x": [0, 9.5], "y": [0, 0]}, {"x": [0, 9], "y": [0, 0], "rotation": [0, 90]}):
        with pytest.raises(ConfigError, match="turned"):
            place(parse(values, 2), (4, 8))


# --- against NumPy ---------------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn, turns: bool = False) -> tuple[dict, tuple[int, int]]:
    """Modules in a grid of cells that are large enough, each moved within its cell."""
    shape = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    cell = (max(shape), max(shape)) if turns else shape
    cell = cell[0] + draw(st.integers(0, 4)), cell[1] + draw(st.integers(0, 4))
    across, number = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    rotation = [draw(st.sampled_from([0, 90, 180, 270, -90])) if turns else 0 for _ in range(number)]
    x, y = [], []
    for module in range(number):
        height, width = shape if rotation[module] % 180 == 0 else shape[::-1]
        y.append(module // across * cell[0] + draw(st.integers(0, cell[0] - height)))
        x.append(module % across * cell[1] + draw(st.integers(0, cell[1] - width)))
    values: dict[str, Any] = {"x": x, "y": y, "rotation": rotation}
    if draw(st.booleans()):
        values["full_shape"] = [cell[0] * (number // across + 1) + 1, cell[1] * across + 2]
    return values, shape


def by_numpy(values: dict, modules: np.ndarray, fill: Any) -> np.ndarray:
    """Modules (m, rows, columns), each turned and put at its place."""
    turned = [np.rot90(module, turn // 90) for module, turn in zip(modules, values["rotation"], strict=True)]
    ends = [(y + t.shape[0], x + t.shape[1]) for x, y, t in zip(values["x"], values["y"], turned, strict=True)]
    whole = np.full(values.get("full_shape") or np.max(ends, axis=0), fill, modules.dtype)
    for x, y, module in zip(values["x"], values["y"], turned, strict=True):
        whole[y : y + module.shape[0], x : x + module.shape[1]] = module
    return whole


@given(layouts(turns=True))
def test_the_map_is_what_numpy_makes(drawn: tuple[dict, tuple[int, int]]) -> None:
    values, shape = drawn
    modules = np.arange(len(values["x"]) * shape[0] * shape[1]).reshape(-1, *shape)
    found = index_map(parse(values, len(modules)), shape)
    np.testing.assert_array_equal(found, by_numpy(values, modules, modules.size))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(layouts(), st.sampled_from(["uint8", "uint16", "int32", "float32"]))
def test_the_file_shows_what_numpy_makes(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[dict, tuple[int, int]], dtype: str
) -> None:
    values, shape = drawn
    layout = ImageLayout((4, 4 + shape[1]), dtype, "none", len(values["x"]))
    values["x"] = [x + 8 * i for i, x in enumerate(values["x"])]  # wide enough for the numbers in the images
    values.pop("full_shape", None)
    path = written(tmp_path_factory.mktemp("g") / "a.h5", 2, layout, **values)
    fill = {"i": -1, "u": 0, "f": np.nan}[np.dtype(dtype).kind]
    modules = np.stack([image(1, m, layout) for m in range(layout.modules)])
    with h5py.File(path) as h5:
        try:
            place(parse(values, layout.modules), layout.shape)
        except ConfigError:
            assert IMAGE not in h5
            return
        whole = by_numpy(values, modules, fill)
        np.testing.assert_array_equal(h5[IMAGE][1], whole)
        gaps = by_numpy(values, np.zeros(modules.shape, int), 1)
        np.testing.assert_array_equal(h5[f"{DETECTOR}/pixel_mask"][()], gaps)


@pytest.mark.parametrize("said, whole", [(2.5, 2), (2.51, 3), (3.49, 3), (3.5, 3), (0.2, 0), (-0.4, 0)])
def test_positions_between_pixels_are_rounded(said: float, whole: int) -> None:
    found = index_map(parse({"x": [said], "y": [whole], "full_shape": [20, 20]}, 1), (4, 8))
    np.testing.assert_array_equal(
        found, index_map(parse({"x": [whole], "y": [said], "full_shape": [20, 20]}, 1), (4, 8))
    )
    np.testing.assert_array_equal(found[whole : whole + 4, whole : whole + 8], np.arange(32).reshape(4, 8))


@pytest.mark.parametrize("about, x, y", [("box", 3, 5), ("corner", 3, 5 + 8), ("centre", 3 - 2, 5 + 2)])
def test_what_a_module_is_turned_about(about: str, x: int, y: int) -> None:
    """4 x 8 turned by 90 degrees covers 8 rows and 4 columns, from row 5 and column 3 on."""
    found = index_map(
        parse({"x": [x], "y": [y], "rotation": 90, "rotation_about": about, "full_shape": [20, 20]}, 1), (4, 8)
    )
    np.testing.assert_array_equal(found[5:13, 3:7], np.rot90(np.arange(32).reshape(4, 8)))
    assert np.count_nonzero(found != 32) == 32


@pytest.mark.parametrize("angle", [1, 30, 89.5, 135, 300.25])
def test_other_angles_take_the_pixel_that_is_there(angle: float) -> None:
    shape = (40, 60)
    found = index_map(parse({"x": [10], "y": [7], "rotation": angle, "full_shape": [120, 120]}, 1), shape)
    rows, columns = np.nonzero(found != 2400)
    assert abs(len(rows) - 2400) < 120, "as many as the module has, but for its border"
    assert rows.min() in (7, 8) and columns.min() in (10, 11)
    # Neighbours in a row of the module follow each other in the direction of the angle.
    row, column = np.divmod(found[rows, columns], 60)
    matrix = np.linalg.lstsq(np.stack([column, row, np.ones(len(row))], 1), np.stack([columns, rows], 1), rcond=None)[0]
    a = np.radians(angle)
    np.testing.assert_allclose(matrix[:2], [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]], atol=0.02)


def test_windmill() -> None:
    """Four modules about a hole; at the next angle they bump into each other."""
    values = {"x": [0, 60, 20, 0], "y": [0, 0, 60, 20], "rotation": [0, 270, 180, 90], "full_shape": [80, 80]}
    found = index_map(parse(values, 4), (20, 60))
    assert np.count_nonzero(found == 4 * 1200) == 80 * 80 - 4 * 1200
    with pytest.raises(ConfigError, match="overlap in"):
        index_map(parse({**values, "rotation": [2, 270, 180, 90], "full_shape": [90, 90]}, 4), (20, 60))


# --- in the file -----------------------------------------------------------------------------------------------------


def whole(frame: int) -> np.ndarray:
    modules = np.stack([image(frame, m, MODULES) for m in range(3)])
    return by_numpy({**WHERE, "rotation": [0, 0, 0]}, modules, 0)


def shows(path: Path, frames: int, length: int | None = None) -> None:
    """The assembled image has these frames, the others read as 0."""
    with h5py.File(path) as h5:
        data = h5[IMAGE]
        assert data.shape == (length or frames, 10, 18) and data.maxshape == (None, 10, 18)
        for frame in range(len(data)):
            np.testing.assert_array_equal(data[frame], whole(frame) if frame < frames else 0)
        assert h5["entry/data"].attrs["signal"] == "assembled" and h5["entry/data/assembled"] == data
        assert h5["entry/data/data"] == h5[DATASET] and h5[DATASET].shape == (len(data), 3, 4, 8)


@pytest.mark.parametrize("announced", [None, 20])
@pytest.mark.parametrize("known", [True, False])
def test_the_image_grows_with_the_series(tmp_path: Path, announced: int | None, known: bool) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(announced, **WHERE), MODULES if known else None)
    if not known:
        file.define(MODULES)
    shows(file.path, 0, announced)
    for first in (0, 5):
        file.append(records(range(first, first + 5), MODULES))
        file.commit()
        shows(file.path, first + 5, announced)
    file.append(records(range(10, 14), MODULES))
    file.close(books(announced, 14, [(14, 19)] if announced else []))
    shows(file.path, 14, announced)
    assert check(file.path).ok


def test_after_a_kill(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(None, **WHERE), MODULES)
    file.append(records(range(5), MODULES))
    file.commit()
    file.append(records(range(5, 9), MODULES))
    file.abandon()
    shows(file.path, 5)
    assert recover(file.path).ok
    shows(file.path, 9)
    assert check(file.path).ok


@pytest.mark.parametrize("codec", ["none", "bslz4"])
def test_compressed_modules(tmp_path: Path, codec: str) -> None:
    import hdf5plugin  # noqa: F401

    layout = ImageLayout((16, 32), "uint32", codec, 2)
    path = written(tmp_path / "a.h5", 3, layout, x=[0, 40], y=[0, 0])
    with h5py.File(path) as h5:
        np.testing.assert_array_equal(h5[IMAGE][2][:, 40:], image(2, 1, layout))


def output(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_other_readers(tmp_path: Path) -> None:
    """Those of a distribution, of HDF5 1.10 or newer."""
    growing = SeriesFile.create(tmp_path / "b.h5", header(None, **WHERE), MODULES)
    growing.append(records(range(4), MODULES))
    growing.commit()
    for path in (written(tmp_path / "a.h5", 4, MODULES, **WHERE), growing.path):
        assert "/entry/data/assembled    Dataset {4/Inf, 10, 18}" in output("h5ls", "-r", path)
        assert 'DATASET "pixel_mask"' in output("h5dump", "-H", path)
        text = output("h5dump", "-d", f"/{IMAGE}", "-s", "2,1,0", "-c", "1,1,18", "-y", "-w", "200", path)
        assert "3, 3, 3, 3, 3, 3, 3, 3, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3" in text
    growing.abandon()


def test_default_plot(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 4, MODULES, **WHERE)
    with silx.io.open(str(path)) as h5:
        shown = nxdata.get_default(h5)
        assert shown.is_valid and shown.signal_name == "assembled" and shown.signal.shape == (4, 10, 18)
        np.testing.assert_array_equal(shown.signal[3], whole(3))


@pytest.mark.parametrize("dataset", ["entry/images", "entry/data/data", "a/b/c/assembled", "entry/d%b%%/pixel_mask"])
def test_other_dataset_paths(tmp_path: Path, dataset: str) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(2, dataset, **WHERE), MODULES)
    file.append(records(range(2), MODULES))
    file.close(books(2, 2))
    assert check(file.path).ok
    with h5py.File(file.path) as h5:
        plot = h5[dataset.split("/")[0]]
        plot = plot[plot.attrs["default"]]
        np.testing.assert_array_equal(plot[plot.attrs["signal"]][1], whole(1))
        assert h5[dataset].ndim == 4


def test_a_master_file_joins_whole_images_like_any_others(tmp_path: Path) -> None:
    parts = [written(tmp_path / f"{n}.h5", 3, MODULES, **WHERE) for n in range(2)]
    with h5py.File(tmp_path / "m.h5", "w", libver="earliest") as h5:
        joined = h5py.VirtualLayout((6, 10, 18), "u2")
        for n, part in enumerate(parts):
            joined[n::2] = h5py.VirtualSource(part.name, IMAGE, (3, 10, 18))
        h5.create_virtual_dataset("images", joined)
    with h5py.File(tmp_path / "m.h5") as h5:
        np.testing.assert_array_equal(h5["images"][()], [whole(frame // 2) for frame in range(6)])


@pytest.mark.parametrize(
    "metadata, said",
    [
        ({}, None),
        ({"full_shape": [100, 100]}, None),
        ({"x": [0, 0, 0], "y": [2, 2, 2]}, None),  # thresholds: planes at one place
        ({"x": [0, 10], "y": [0, 0]}, "x has 2 values, there are 3 modules"),
        ({"x": 1.5, "y": [0, 0, 0]}, "x is 1.5, not a list"),
        ({"detector": {"x": ["a"] * 3, "y": None}}, "x holds 'a'"),
        ({**WHERE, "x": [0, 3, 20]}, "modules 0 and 1 overlap"),
        ({**WHERE, "full_shape": [9, 18]}, "outside the image of 9 x 18"),
        ({**WHERE, "rotation": [0, 90, 0]}, "tangods-detector assemble"),
        ({**WHERE, "x": [0, 10.5, 1]}, "tangods-detector assemble"),
        ({**WHERE, "y": {"a": []}}, "y is {'a': []}"),
    ],
)
def test_kept_apart_and_said_once(
    tmp_path: Path, metadata: dict, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assembled._last_said = None
    with caplog.at_level(logging.INFO):
        file = SeriesFile.create(tmp_path / "a.h5", header(None, **metadata), None)
        file.define(MODULES)
        SeriesFile.create(tmp_path / "b.h5", header(None, **metadata), MODULES).abandon()  # another of this series
        file.append(records(range(2), MODULES))
        file.close(books(2, 2))
    assert check(file.path).ok
    with h5py.File(file.path) as h5:
        assert IMAGE not in h5 and "pixel_mask" not in h5[DETECTOR]
        assert h5["entry/data"].attrs["signal"] == "data"
    sentences = [r.getMessage() for r in caplog.records]
    assert len(sentences) == (said is not None) and all(str(said) in sentence for sentence in sentences)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
THREE = st.lists(st.integers(-3, 40) | st.floats(), min_size=3, max_size=3).flatmap(
    lambda values: st.sampled_from([values, tuple(values), np.array(values)])
)
SAID = st.fixed_dictionaries({}, optional={key: THREE | ANY for key in geometry.KEYS})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SAID, SAID | ANY)
def test_whatever_is_said_there_is_a_file(tmp_path_factory: pytest.TempPathFactory, said: dict, detector: Any) -> None:
    image_bytes, places = nexus.build(header(None, **said, detector=detector), MODULES, 5)
    path = tmp_path_factory.mktemp("any") / "a.h5"
    path.write_bytes(image_bytes)
    with h5py.File(path) as h5:
        assert places.images and h5["entry/data"].attrs["signal"] in h5["entry/data"]


def test_one_module_has_no_geometry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(written(tmp_path / "a.h5", 2, SMALL, x=[0], y=[0, 0])) as h5:
        assert IMAGE not in h5
    assert not caplog.records


@pytest.mark.parametrize("modules", [2, 10, 300])
@pytest.mark.parametrize("nframes", [None, 7])
def test_fields_never_straddle(modules: int, nframes: int | None) -> None:
    layout = ImageLayout((4, 8), "uint16", "bslz4", modules)
    metadata = {"x": [10 * m for m in range(modules)], "y": [0] * modules}
    image_bytes, places = nexus.build(header(nframes, **metadata), layout, 5)
    assert not places.torn() and places.images
    assert len(image_bytes) < 60_000 + 600 * modules


# --- from the sockets to the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False])
def test_stream_of_images_in_parts(tmp_path: Path, announced: bool) -> None:
    """As the four streams of a Lambda arrive: one message, k parts, chunks of one module, positions in the start."""
    from tangods_receiver.protocol import stins

    metadata = {"x": [0, 13, 0, 13], "y": [0, 1, 9, 10], "rotation": [0] * 4, "full_shape": [17, 25]}
    about = {"nframes": 5, "shape": [4, 6, 10], "dtype": "uint16", "codec": "none"} if announced else {}
    frames = np.random.default_rng(1).integers(0, 60_000, (5, 4, 6, 10), np.uint16)
    with Sender() as sender, running(tmp_path, sender.endpoint) as engine:
        sender.start(tmp_path / "a.h5", series=1, metadata=metadata, **about)
        for number, pixels in enumerate(frames):
            head = stins.encode_frame_header(
                number, (4, 6, 10), "uint16", "none", sender.serial, series=1, chunks=[1, 6, 10]
            )
            sender.parts([head, *(module.tobytes() for module in pixels)])
        sender.end()
        assert wait_closed(engine, 1).written == 20
    assert check(tmp_path / "a.h5").ok
    with h5py.File(tmp_path / "a.h5") as h5:
        assert h5[DATASET].chunks == (1, 1, 6, 10)
        assert h5[IMAGE].shape == (5, 17, 25)
        for number, pixels in enumerate(frames):
            np.testing.assert_array_equal(h5[IMAGE][number], by_numpy(metadata, pixels, 0))
