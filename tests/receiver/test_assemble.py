"""`tangods-detector assemble`: whole images from modules of any angle, and every refusal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tangods_detector.cli import main
from tangods_receiver import assemble as tool
from tangods_receiver.errors import ConfigError, WriteError
from tangods_receiver.geometry import index_map, parse
from tangods_receiver.seriesfile import ImageLayout, SeriesFile
from tests.receiver.series_files import DATASET, DETECTOR, MODULES, SMALL, books, header, image, records, written

#: A windmill of 4 x 8.
TURNED: dict[str, Any] = {"x": [0, 9, 4], "y": [0, 0, 9], "rotation": [0, 270, 180], "full_shape": [14, 13]}
STRAIGHT: dict[str, Any] = {"x": [0, 10, 1], "y": [0, 0, 6]}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["assemble", *map(str, arguments)])


def made(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def modules(frame: int, layout: ImageLayout = MODULES) -> np.ndarray:
    return np.stack([image(frame, m, layout) for m in range(layout.modules)])


def turned(frame: int) -> np.ndarray:
    whole = np.zeros((14, 13), np.uint16)
    first, second, third = modules(frame)
    whole[:4, :8], whole[:8, 9:], whole[9:13, 4:12] = first, np.rot90(second, 3), np.rot90(third, 2)
    return whole


def test_turned_modules(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 5, MODULES, label="gold", **TURNED)
    assert made(path) == f"{tmp_path / 'a_assembled.h5'}: 5 images of 14 x 13\n"
    with h5py.File(path) as old, h5py.File(tmp_path / "a_assembled.h5") as new:
        data = new[DATASET]
        assert data.chunks == (1, 14, 13) and data.id.get_create_plist().get_filter(0)[0] == 32008
        assert not data.is_virtual and data.id.get_num_chunks() == 5
        for frame in range(5):
            np.testing.assert_array_equal(data[frame], turned(frame))
        assert new[new.attrs["default"]].attrs["default"] == "data"
        assert new["entry/data"].attrs["signal"] == "data" and new["entry/data/data"] == data
        np.testing.assert_array_equal(new[f"{DETECTOR}/pixel_mask"][()] == 1, turned(0) * 0 + gaps())
        assert set(old[DETECTOR]) - set(new[DETECTOR]) == set()
        for name in (
            "timestamp",
            "arrival_time",
            "sequence_number",
            "message_number",
            "frame_status",
            "frames_missing",
        ):
            np.testing.assert_array_equal(new[DETECTOR][name][()], old[DETECTOR][name][()])
            assert dict(new[DETECTOR][name].attrs) == dict(old[DETECTOR][name].attrs)
        assert new["entry/title"][()] == b"gold" and new[f"{DETECTOR}/header/x"][()].tolist() == [0, 9, 4]
        assert not [key for key in new.attrs if key.startswith("series_file")]
        assert json.loads(new["entry/assembly/geometry"][()])["rotation"] == [0, 270, 180]
        assert new["entry/assembly/source"][()] == b"a.h5"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a_assembled.h5"]


def gaps() -> np.ndarray:
    return index_map(parse(TURNED, 3), (4, 8)) == 3 * 32


def test_the_same_as_the_virtual_image(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 4, MODULES, **STRAIGHT)
    made(path, "--output", tmp_path / "b.h5")
    with h5py.File(path) as old, h5py.File(tmp_path / "b.h5") as new:
        np.testing.assert_array_equal(new[DATASET][()], old[f"{DETECTOR}/assembled"][()])
        np.testing.assert_array_equal(new[f"{DETECTOR}/pixel_mask"][()], old[f"{DETECTOR}/pixel_mask"][()])
        assert not {"assembled", "module_mask"} & set(new[DETECTOR]) and list(new["entry/data"]) == ["data"]


@pytest.mark.parametrize("dtype, gap", [("uint8", 0), ("uint32", 0), ("int32", -1), ("float32", np.nan)])
@pytest.mark.parametrize("codec", ["none", "bslz4"])
def test_any_type(tmp_path: Path, dtype: str, gap: float, codec: str) -> None:
    layout = ImageLayout((8, 16), dtype, codec, 2)
    path = written(tmp_path / "a.h5", 2, layout, x=[0, 20], y=[0, 3], rotation=[180, 0])
    made(path)
    with h5py.File(tmp_path / "a_assembled.h5") as new:
        shown = new[DATASET][1]
        np.testing.assert_array_equal(shown[:8, :16], np.rot90(image(1, 0, layout), 2))
        np.testing.assert_array_equal(shown[3:, 20:], image(1, 1, layout))
        np.testing.assert_array_equal(shown[8:, :20], np.full((3, 20), gap, dtype))


def test_a_part_of_the_frames(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 9, MODULES, **TURNED)
    for text, first, last in (("2:5", 2, 5), (":3", 0, 3), ("7:", 7, 9), (":", 0, 9)):
        output = tmp_path / f"{first}_{last}.h5"
        made(path, "--frames", text, "--output", output)
        with h5py.File(output) as new:
            assert len(new[DATASET]) == last - first
            np.testing.assert_array_equal(new[DATASET][0], turned(first))
            assert new[f"{DETECTOR}/sequence_number"][()].tolist() == list(range(first, last))
            assert new["entry/assembly/frames"][()].tolist() == [first, last]
            assert ("frames_received" in new[DETECTOR]) == (text == ":"), "books of a part would be wrong"


def test_geometry_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 2, MODULES, **TURNED)
    (tmp_path / "g.yaml").write_text("rotation: [0, 90, 180]  # the other way\n")
    made(path, "--geometry", tmp_path / "g.yaml")
    with h5py.File(tmp_path / "a_assembled.h5") as new:
        np.testing.assert_array_equal(new[DATASET][1][:8, 9:], np.rot90(image(1, 1)))


def test_geometry_for_a_file_that_has_none_at_any_angle(tmp_path: Path) -> None:
    layout = ImageLayout((40, 60), "uint32", "bslz4", 2)
    path = written(tmp_path / "a.h5", 2, layout)
    values = {"x": [3, 70.5], "y": [1, 8.25], "rotation": [12.5, -30], "rotation_about": "centre"}
    values["full_shape"] = [100, 150]
    (tmp_path / "g.yaml").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="outside"):
        tool.assemble(path, tmp_path / "b.h5", geometry=tool.load_geometry(tmp_path / "g.yaml"))
    values.update(x=[9, 82.5], y=[11, 22.25], full_shape=[100, 160])
    (tmp_path / "g.yaml").write_text(json.dumps(values))
    made(path, "--geometry", tmp_path / "g.yaml")
    found = index_map(parse(values, 2), (40, 60))
    with h5py.File(tmp_path / "a_assembled.h5") as new:
        expected = np.append(modules(1, layout).ravel(), 0).astype("uint32")[found]
        np.testing.assert_array_equal(new[DATASET][1], expected)


def test_missing_frames_and_a_series_that_is_not_closed(tmp_path: Path) -> None:
    file = SeriesFile.create(tmp_path / "a.h5", header(6, **TURNED), MODULES)
    file.append([r for r in records((0, 2, 3), MODULES) if (r.frame, r.module) != (2, 1)])
    file.commit()
    assert "the series was not closed" in made(file.path)
    file.append(records((5,), MODULES))
    file.close(books(6, 3, [(1, 1), (4, 4)]))
    output = made(file.path, "--output", tmp_path / "b.h5")
    assert "not closed" not in output
    with h5py.File(tmp_path / "b.h5") as new:
        data = new[DATASET]
        assert [data[frame].any() for frame in range(6)] == [True, False, True, True, False, True]
        assert not data[2][:8, 9:].any() and data[2][:4, :8].any()
        assert new[f"{DETECTOR}/frame_status"][()].tolist() == [1, 0, 2, 1, 0, 1]
        assert new[f"{DETECTOR}/frames_missing"][()].tolist() == [[1, 1], [4, 4]]


def test_files_of_others_and_master_files(tmp_path: Path) -> None:
    """A virtual dataset over other files, with the tree of somebody else; per-frame arrays virtual too."""
    parts = [written(tmp_path / f"{n}.h5", 3, MODULES) for n in range(2)]
    with h5py.File(tmp_path / "m.h5", "w") as h5:
        for name in (DATASET, f"{DETECTOR}/sequence_number"):
            inner = (3, 4, 8) if name == DATASET else ()
            joined = h5py.VirtualLayout((6, *inner), "u2" if inner else "i8")
            for n, part in enumerate(parts):
                joined[3 * n : 3 * n + 3] = h5py.VirtualSource(part.name, name, (3, *inner))
            h5.create_virtual_dataset(name, joined)
        h5["linked"] = h5py.ExternalLink("0.h5", "/")
    (tmp_path / "g.yaml").write_text(json.dumps(TURNED))
    output = tmp_path / "sub" / "b.h5"
    output.parent.mkdir()
    made(tmp_path / "m.h5", "--geometry", tmp_path / "g.yaml", "--output", output)
    with h5py.File(output) as new:
        np.testing.assert_array_equal(new[DATASET][()], [turned(n % 3) for n in range(6)])
        assert new[f"{DETECTOR}/sequence_number"][()].tolist() == [0, 1, 2] * 2
        assert not new[f"{DETECTOR}/sequence_number"].is_virtual and "linked" not in new
        plot = new[new.attrs["default"]]
        assert plot[plot.attrs["default"]]["data"] == new[DATASET]


def test_other_places_of_the_positions(tmp_path: Path) -> None:
    for n, metadata in enumerate(({"detector": TURNED}, {**TURNED, **{f"key{k}": k for k in range(3000)}})):
        path = written(tmp_path / f"{n}.h5", 2, MODULES, **metadata)
        made(path)
        with h5py.File(tmp_path / f"{n}_assembled.h5") as new:
            np.testing.assert_array_equal(new[DATASET][1], turned(1))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata, layout, arguments, yaml, sentence",
    [
        ({}, MODULES, (), None, "nothing in it says where the modules are"),
        ({"x": [0, 0, 0], "y": [1, 1, 1]}, MODULES, (), None, "these are planes of an image (thresholds)"),
        ({**TURNED, "x": [0, 9]}, MODULES, (), None, "x has 2 values, there are 3 modules"),
        ({**TURNED, "x": [0, 8, 4], "y": [0, 0, 7]}, MODULES, (), None, "overlap in 4 pixels"),
        ({**TURNED, "full_shape": [12, 13]}, MODULES, (), None, "outside the image of 12 x 13"),
        ({}, SMALL, (), None, "its images are not in modules"),
        (TURNED, MODULES, ("--frames", "3"), None, "frames '3': give A:B"),
        (TURNED, MODULES, ("--frames", "-1:3"), None, "give A:B"),
        (TURNED, MODULES, ("--frames", "1:99"), None, "there are 4 in the file"),
        (TURNED, MODULES, ("--frames", "2:2"), None, "one at least is needed"),
        (TURNED, MODULES, ("--geometry", "none.yaml"), None, "cannot read the geometry"),
        (TURNED, MODULES, (), "x: [", "cannot read the geometry"),
        (TURNED, MODULES, (), "", "no geometry in it; give some of x, y, rotation"),
        (TURNED, MODULES, (), "[1, 2]", "no geometry in it"),
        (TURNED, MODULES, (), "angle: 5", "angle not known; there are x, y"),
        (TURNED, MODULES, (), "y: 7", "y is 7, not a list of 3 numbers"),
        (TURNED, MODULES, (), "rotation: 2021-01-01", "not a list"),
        (TURNED, MODULES, ("--output", "no/such/b.h5"), None, "cannot write no/such/b.h5"),
        (TURNED, MODULES, ("--output", "a.h5"), None, "a.h5 exists and is never overwritten"),
    ],
)
def test_refused_in_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metadata: dict,
    layout: ImageLayout,
    arguments: tuple,
    yaml: str | None,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = written(Path("a.h5"), 4, layout, **metadata).read_bytes()
    if yaml is not None:
        Path("g.yaml").write_text(yaml)
        arguments = (*arguments, "--geometry", "g.yaml")
    result = run("a.h5", *arguments)
    assert result.exit_code == 1 and sentence in result.output, result.output
    assert result.output.startswith("Error: ") and "Traceback" not in result.output
    assert Path("a.h5").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"a.h5", "g.yaml"}


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    for path, sentence in ((tmp_path / "gone.h5", "cannot open"), (tmp_path / "text", "cannot open")):
        result = run(path)
        assert result.exit_code == 1 and sentence in result.output
    with h5py.File(tmp_path / "two.h5", "w") as h5:
        h5["a/b"], h5["a/c"] = np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3, 4))
    assert "found /a/b, /a/c" in run(tmp_path / "two.h5").output
    with h5py.File(tmp_path / "none.h5", "w") as h5:
        h5["a/b"] = np.zeros((2, 3, 4))
    assert "found none" in run(tmp_path / "none.h5").output


def test_what_came_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", 2, MODULES, **TURNED)
    with pytest.raises(WriteError, match="File exists"):
        tool.assemble(path, tmp_path / "b.h5", progress=lambda done, total: (tmp_path / "b.h5").touch())
    assert (tmp_path / "b.h5").read_bytes() == b"" and len(list(tmp_path.iterdir())) == 2


def test_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tool.os, "link", link)
    path = written(tmp_path / "a.h5", 2, MODULES, **TURNED)
    tool.assemble(path, tmp_path / "b.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_damaged_frame_is_named(tmp_path: Path) -> None:
    layout = ImageLayout((32, 32), "uint32", "bslz4", 2)
    path = written(tmp_path / "a.h5", 3, layout, x=[0, 40], y=[0, 0])
    with h5py.File(path) as h5:
        chunk = h5[DATASET].id.get_chunk_info_by_coord((2, 1, 0, 0))
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 12)
        raw.write(b"\xff" * 40)
    result = run(path)
    assert result.exit_code == 1 and f"cannot read frame 2 of {path}" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.slow
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    layout = ImageLayout((256, 256), "uint16", "none", 3)
    file = SeriesFile.create(tmp_path / "a.h5", header(400_000, x=[0, 300, 600], y=[0] * 3, rotation=90), layout)
    file.append(records(range(3), layout))
    file.close(books(400_000, 3, [(3, 399_999)]))
    command = [sys.executable, "-m", "tangods_detector.cli", "assemble", str(file.path)]
    code = f"import sys; sys.argv = {command[2:]!r}; from tangods_detector.cli import main; main()"
    done = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    hidden = []
    deadline = time.monotonic() + 30
    while not hidden and time.monotonic() < deadline:
        time.sleep(0.005)
        hidden = [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert hidden, "it began"
    done.send_signal(signal.SIGINT)
    _, error = done.communicate(timeout=30)
    assert done.returncode == 1 and "Aborted!" in error and "Traceback" not in error, error
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def test_memory_is_that_of_one_frame(tmp_path: Path) -> None:
    layout = ImageLayout((128, 128), "uint16", "none", 2)
    peaks = []
    for length in (10, 400):
        path = written(tmp_path / f"{length}.h5", length, layout, x=[0, 130], y=[0, 0], rotation=180)
        tracemalloc.start()
        tool.assemble(path, tmp_path / f"{length}_b.h5")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + (1 << 20), "400 frames of 64 KiB are 25 MiB"


def test_help_says_what_the_words_mean() -> None:
    text = run("--help").output
    assert all(word in text for word in ("rotation_about", "full_shape", "counter-clockwise", "interpolated"))
