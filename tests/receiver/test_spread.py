"""Which file a frame is in: the rule itself, and everything that follows from it."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tangods_receiver.spread import Spread

spreads = st.builds(Spread, st.integers(1, 64), st.integers(0, 50))
FEW = st.integers(0, 500)


@given(spreads, st.integers(0, 1 << 40))
@example(Spread(2, 3), 7)
def test_the_rule(spread, frame):
    parts, size = spread.parts, spread.frames_per_file
    group = frame // (parts * size) if size else 0
    assert spread.place(frame) == ((group, frame % parts), (frame - group * parts * size) // parts)


@given(spreads, FEW)
def test_every_frame_has_one_place_and_files_are_filled_without_holes(spread, nframes):
    found = {}
    for frame in range(nframes):
        key, position = spread.place(frame)
        found.setdefault(key, []).append(position)
        assert spread.first(key) + position * spread.parts == frame
    assert sorted(found) == spread.keys(nframes)
    for key, positions in found.items():
        assert positions == list(range(spread.share(key, nframes)))
    assert spread.groups(nframes) == len({group for group, _ in found})


@given(spreads, st.sets(st.integers(0, 300)))
def test_ranges_of_frames_are_ranges_of_positions(spread, frames):
    ranges = []
    for frame in sorted(frames):
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1] = ranges[-1][0], frame
        else:
            ranges.append((frame, frame))
    for key in spread.keys(301):
        listed = [p for first, last in spread.ranges_in(key, ranges) for p in range(first, last + 1)]
        assert listed == [spread.place(frame)[1] for frame in sorted(frames) if spread.place(frame)[0] == key]


@pytest.mark.parametrize(
    ("spread", "name"),
    [
        (Spread(2), "a.b_part01.h5"),
        (Spread(1, 10), "a.b_000003.h5"),
        (Spread(2, 10), "a.b_000003_part01.h5"),
    ],
)
def test_names(spread, name):
    key = (3 if spread.frames_per_file else 0, 1 if spread.parts > 1 else 0)
    master = Path("/data/a.b.h5")
    assert spread.name(master, key) == name
    assert spread.key_of(master, name) == key


@pytest.mark.parametrize(
    "name", ["a.h5", "a_000000.h5", "a_part00.h5", "a_000000_part02.h5", "a_0_part00.h5", "b_000000_part00.h5", "a_0"]
)
def test_other_names_are_of_no_set(name):
    assert Spread(2, 10).key_of(Path("a.h5"), name) is None


@given(spreads, st.integers(0, 2_000_000), st.integers(0, 63))
def test_a_name_leads_back_to_the_file(spread, group, part):
    key = (group if spread.frames_per_file else 0, part % spread.parts)
    if spread != Spread(1, 0):
        assert spread.key_of(Path("x y%.nxs"), spread.name(Path("x y%.nxs"), key)) == key
