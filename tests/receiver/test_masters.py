"""check and recover of a series in several files: after its end, after kills, after damage."""

import os
import random

import h5py
import pytest

from tangods_detector import cli
from tangods_receiver.errors import ConfigError
from tangods_receiver.fileset import FileSet
from tangods_receiver.recovery import check, recover
from tangods_receiver.spread import Spread
from tests.receiver.series_files import (
    CHANNELS,
    CHANNELS_TIMED,
    DETECTOR,
    MODULES,
    PACKED,
    SMALL,
    books,
    header,
    image,
    records,
)
from tests.receiver.test_fileset import SPREADS, files, gaps, ids, shows


def whole(path, spread, n=30, layout=SMALL, lost=()):
    file = FileSet.create(path, header(n), layout, spread)
    frames = [k for k in range(n) if k not in lost]
    file.append(records(frames, layout))
    file.close(books(n, len(frames), gaps(frames, n)))
    return path


@pytest.mark.parametrize(
    ("spread", "layout"), list(zip(SPREADS, [SMALL, MODULES, PACKED, CHANNELS, CHANNELS_TIMED], strict=True))
)
def test_a_whole_set_is_ok_and_untouched_by_recover(tmp_path, spread, layout):
    path = whole(tmp_path / "a.h5", spread, layout=layout, lost=(0, 7, 8, 29))
    report = check(path)
    assert report.ok, report.problems
    assert (report.frames, report.expected, report.missing) == (26, 30, [(0, 0), (7, 8), (29, 29)])
    before = {file: (tmp_path / file).read_bytes() for file in files(tmp_path)}
    assert recover(path).lines() == report.lines()
    assert {file: (tmp_path / file).read_bytes() for file in files(tmp_path)} == before
    for file in before:
        assert check(tmp_path / file).ok


def test_the_command_line_knows_no_difference(tmp_path, capsys):
    path = whole(tmp_path / "a.h5", Spread(2, 5), lost=(3,))
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(path)])
    assert ended.value.code == 0
    assert "29 of 30 frames, 1 missing" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("spread", SPREADS, ids=ids)
@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(s, marks=pytest.mark.soak) for s in range(2, 40))])
def test_after_a_kill_everything_that_was_written_is_there(tmp_path, spread, known, seed):
    dice, path, n = random.Random(seed), tmp_path / "a.h5", 25
    layout = (CHANNELS_TIMED, SMALL, MODULES)[seed % 3]
    file = FileSet.create(path, header(n if known else None), layout, spread)
    frames = dice.sample(range(n), dice.randrange(n))
    at = 0
    while at < len(frames):
        size = dice.randrange(1, 6)
        file.append(records(frames[at : at + size], layout))
        at += size
        if dice.random() < 0.4:
            file.commit()
    file.abandon()
    with h5py.File(path) as h5:  # also before
        h5[DETECTOR]["frame_status"][()], h5["entry/data/data"][()]
    assert not check(path).ok
    report = recover(path)
    length = n if known else max(frames, default=-1) + 1
    assert report.recovered and report.ok and report.frames == len(frames)
    assert report.missing == gaps(frames, length)
    assert shows(path, frames, length, layout)
    again = check(path)
    assert again.ok, again.problems
    assert recover(path).frames == len(frames) and shows(path, frames, length, layout)


@pytest.mark.parametrize("victim", ["a_000001_part00.h5", "a.h5"])
def test_a_set_in_use_is_refused(tmp_path, victim):
    file = FileSet.create(tmp_path / "a.h5", header(40), SMALL, Spread(2, 5))
    file.append(records(range(13)))
    with pytest.raises(ConfigError, match="is being written"):
        recover(tmp_path / victim)
    assert any("is being written" in problem for problem in check(tmp_path / "a.h5").problems)
    file.close(books(40, 13, [(13, 39)]))


def test_files_that_a_kill_left_half_made_are_removed(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, Spread(2, 5))
    file.append(records(range(13)))
    file.abandon()
    with open(tmp_path / "a_000002_part01.h5", "wb") as half:
        os.truncate(half.fileno(), 1 << 30)
    (tmp_path / f".{file._nonce:016x}.a.h5").write_bytes(b"half")
    assert recover(tmp_path / "a.h5").ok
    assert len(files(tmp_path)) == 5 and check(tmp_path / "a.h5").ok and shows(tmp_path / "a.h5", range(13))


def test_a_kill_between_the_parts_and_the_master(tmp_path, monkeypatch):
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, Spread(2, 5))
    file.append(records(range(13)))
    monkeypatch.setattr(file, "_show", lambda *args: file.abandon())
    file.close(books(13, 13))
    assert recover(tmp_path / "a.h5").frames == 13
    assert check(tmp_path / "a.h5").ok and shows(tmp_path / "a.h5", range(13))


def test_one_file_alone_can_be_recovered(tmp_path):
    file = FileSet.create(tmp_path / "a.h5", header(None), SMALL, Spread(2))
    file.append(records(range(13)))
    file.abandon()
    assert recover(tmp_path / "a_part01.h5").frames == 6
    with h5py.File(tmp_path / "a_part01.h5") as h5:
        assert h5[DETECTOR]["sequence_number"][()].tolist() == [1, 3, 5, 7, 9, 11]
    assert recover(tmp_path / "a.h5").frames == 13 and shows(tmp_path / "a.h5", range(13))


def spoil_missing(directory):
    (directory / "a_000001_part00.h5").unlink()


def spoil_other(directory):
    (directory / "x").mkdir()
    whole(directory / "x/a.h5", Spread(2, 5))
    (directory / "x/a_000001_part00.h5").replace(directory / "a_000001_part00.h5")


def spoil_bytes(directory):
    (directory / "a_000001_part00.h5").write_bytes(b"nothing")


def spoil_swap(directory):
    for name in ("a_000001_part00.h5", "a_000002_part00.h5"):
        (directory / name).rename(directory / f"{name}.old")
    (directory / "a_000001_part00.h5.old").rename(directory / "a_000002_part00.h5")


def spoil_record(directory):
    with h5py.File(directory / "a_000001_part00.h5") as h5:
        at = h5["entry/data/data"].id.get_chunk_info(2).byte_offset - 64
    with open(directory / "a_000001_part00.h5", "r+b") as file:
        file.seek(at)
        file.write(b"junk")


def spoil_map(directory):
    with h5py.File(directory / "a.h5", "r+") as h5:
        del h5[DETECTOR]["frame_status"]
        h5[DETECTOR]["frame_status"] = [1] * 30


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_missing, "a_000001_part00.h5: is missing, and 5 frames with it"),
        (spoil_other, "a_000001_part00.h5: is of another series"),
        (spoil_bytes, "a_000001_part00.h5"),
        (spoil_swap, "a_000001_part00.h5: is missing"),
        (spoil_record, "a_000001_part00.h5: frame 2: chunk in the index has no record"),
        (spoil_map, "frame_status does not show these files in their places"),
    ],
)
def test_damage_is_told_with_the_name_of_the_file(tmp_path, spoil, told):
    path = whole(tmp_path / "a.h5", Spread(2, 5))
    assert check(path).ok
    spoil(tmp_path)
    report = check(path)
    assert any(told in problem for problem in report.problems), report.problems
    assert recover(path).problems or spoil in (spoil_missing, spoil_swap, spoil_record, spoil_map)


@pytest.mark.parametrize("text", [b"", b"not HDF5 at all" * 10])
def test_what_is_no_file_of_ours_is_refused_as_before(tmp_path, text):
    (tmp_path / "a.h5").write_bytes(text)
    for look in (check, recover):
        with pytest.raises(ConfigError):
            look(tmp_path / "a.h5")


@pytest.mark.parametrize("nframes", [13, None])
def test_whole_images_of_modules_are_shown_across_files(tmp_path, nframes):
    for name, end in (("a.h5", lambda file: file.close(books(13, 13))), ("b.h5", FileSet.abandon)):
        path = tmp_path / name
        geometry = {"x": [0, 8, 17], "y": [0, 0, 0]}
        file = FileSet.create(path, header(nframes, **geometry), MODULES, Spread(2, 5))
        file.append(records(range(13), MODULES))
        file.commit()
        assert assembled(path) == (nframes or 0)  # without a length HDF5 does not look through two layers
        end(file)
        assert recover(path).ok and assembled(path) == 13


def assembled(path):
    """How many whole images there are, each of them right."""
    with h5py.File(path) as h5:
        images = h5[f"{DETECTOR}/assembled"][()]
        assert h5["entry/data"].attrs["signal"] == "assembled"
        for k, pixels in enumerate(images):
            parts = [pixels[:, 0:8], pixels[:, 8:16], pixels[:, 17:25]]
            assert all((part == image(k, m, MODULES)).all() for m, part in enumerate(parts))
        return len(images)
