"""A whole engine that spreads a series over several files."""

import h5py
import pytest

from tests.receiver.streaming import SHAPE, Sender, holds, read, running, wait_closed, wait_opened
from tests.waiting import wait_for

INTERNAL = {"shape": SHAPE, "dtype": "uint16", "codec": "none"}


@pytest.fixture
def sender():
    with Sender() as sender:
        yield sender


@pytest.mark.parametrize("layout", [INTERNAL, {}], ids=["announced", "learnt"])
@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"parts": 2, "workers": 2}, ["a.h5", "a_part00.h5", "a_part01.h5"]),
        ({"frames_per_file": 40}, ["a.h5", "a_000000.h5", "a_000001.h5", "a_000002.h5"]),
    ],
    ids=["parts", "frames_per_file"],
)
def test_a_series_in_several_files(tmp_path, sender, values, names, layout):
    with running(tmp_path, sender.endpoint, **values) as engine:
        for series, nframes in ((1, 101), (2, None)):
            directory = tmp_path / str(series)
            directory.mkdir()
            sender.start(f"{series}/a.h5", series, **({"nframes": nframes} if nframes else {}), **layout)
            sender.frames(k for k in range(101) if k != 7)
            sender.end()
            snapshot = wait_closed(engine, series)
            assert (snapshot.written, snapshot.missing) == (100, 1), snapshot
            assert sorted(path.name for path in directory.iterdir()) == names
            assert holds(directory / "a.h5", set(range(101)) - {7})
            assert read(directory / "a.h5")[1]["frames_missing"].tolist() == [[7, 7]]


def test_a_part_that_exists_is_refused_when_armed_and_at_the_start(tmp_path, sender):
    (tmp_path / "a_part01.h5").write_text("mine")
    with running(tmp_path, sender.endpoint, parts=2) as engine:
        assert "a_part01.h5 exists" in engine.check("a.h5", 0)
        assert engine.check("b.h5", 0) == ""
        sender.start("a.h5", 1, nframes=2, **INTERNAL)
        wait_closed_with_error(engine, sender)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_part01.h5"]


def wait_closed_with_error(engine, sender):
    wait_for(lambda: "a_part01.h5 exists" in engine.snapshot().error, what="the refusal")
    sender.end()


def test_a_reader_follows_the_series(tmp_path, sender):
    with running(tmp_path, sender.endpoint, frames_per_file=5, parts=2, workers=2) as engine:
        sender.start("a.h5", 1, **INTERNAL)
        wait_opened(engine, 1)
        sender.frames(range(23))

        def length():
            with h5py.File(tmp_path / "a.h5") as h5:
                return len(h5["entry/data/data"])

        wait_for(lambda: length() == 23, what="23 frames to be seen")
        sender.end()
        wait_closed(engine, 1)
    assert holds(tmp_path / "a.h5", range(23))
