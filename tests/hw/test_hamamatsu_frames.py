"""Numbers of frames by the camera's counts; buffers that the camera fills in turn."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_detector.hw.hamamatsu_frames import Numbers, text_of
from tangods_detector.hw.hamamatsu_ring import CameraRing
from tangods_receiver.errors import ConfigError, HardwareError


def take(numbers: Numbers, place: int, frame_stamp: int, camera_stamp: int | None = None) -> int:
    step = numbers.look(place, frame_stamp, camera_stamp)
    numbers.take(step)
    return step.number


@given(
    lost=st.sets(st.integers(1, 60)),
    overwritten=st.sets(st.integers(1, 60)),
    first=st.sampled_from([0, 1, 7]),
    camera=st.sampled_from([None, 0, 65_530, 2**31 - 5]),
    frame_stamps=st.booleans(),
)
def test_each_frame_gets_its_own_number(
    lost: set[int], overwritten: set[int], first: int, camera: int | None, frame_stamps: bool
) -> None:
    """`lost` never get into a buffer, so the places in the capture close up; `overwritten` do, and are not sent.

    Of two stamps one is enough, wherever it begins and wherever it wraps."""
    if not frame_stamps and camera is None:
        return
    numbers, place = Numbers(), 0
    overwritten -= lost
    for n in range(64):
        if n in lost:
            continue
        if n not in overwritten:
            stamp = None if camera is None else camera + n
            if stamp is not None:
                stamp = stamp % 65_536 if camera == 65_530 else (stamp + 2**31) % 2**32 - 2**31
            assert take(numbers, place, first + n if frame_stamps else -1, stamp) == n
        place += 1
    missing = sorted(n for n in lost | overwritten)
    assert [n for a, b in numbers.lost for n in range(a, b + 1)] == missing
    assert numbers.count_lost == len(missing) and numbers.overwritten == len(overwritten)
    if missing:
        words = f"{len(overwritten)} because the buffers were full"
        assert (words in numbers.describe(64)) == bool(overwritten)


def test_the_first_frames_can_be_lost() -> None:
    numbers = Numbers()
    numbers.tell(0)
    numbers.tell(0)
    assert take(numbers, 0, 2) == 2
    assert numbers.describe(10) == "lost frames: 0-1 (2 between camera and computer)"
    numbers = Numbers()
    numbers.tell(1)
    assert take(numbers, 0, 2) == 2, "two losses may be told at once"
    assert take(Numbers(), 0, 1) == 0, "a counter that begins at 1"
    assert take(Numbers(), 3, 3) == 3


def test_losses_that_no_stamp_shows_are_told() -> None:
    numbers = Numbers()
    take(numbers, 0, 0)
    numbers.tell(1)
    assert take(numbers, 1, 1) == 1 and numbers.told == 0
    assert numbers.describe(10) == "the library told of 1 lost frames that no frame stamp shows"


@pytest.mark.parametrize("goes_on", [False, True])
def test_stamps_of_the_next_capture_begin_anew_or_go_on(goes_on: bool) -> None:
    numbers = Numbers()
    for capture in range(3):
        begin = 3 * capture * goes_on
        assert [take(numbers, place, begin + place) for place in range(3)] == [0, 1, 2]
        numbers = Numbers(numbers)
    numbers.tell(0)
    assert take(numbers, 0, 9 * goes_on + 2) == 2


def test_without_any_stamp_a_told_loss_is_one_frame() -> None:
    for stamp in (-1, 7):
        numbers = Numbers()
        assert take(numbers, 0, stamp) == 0
        numbers.tell(1)
        numbers.tell(2)
        assert take(numbers, 2, stamp) == 4, "one was written over, two lost"
        assert take(numbers, 3, stamp) == 5
        assert (
            numbers.describe(6) == "lost frames: 1-3 (1 because the buffers were full, 2 between camera and computer)"
        )


def test_losses_at_the_end() -> None:
    numbers = Numbers()
    take(numbers, 0, 0)
    numbers.tell(1)
    numbers.tell(1)
    numbers.give_up_told()
    assert numbers.next == 3 and numbers.describe(3) == "lost frames: 1-2 (2 between camera and computer)"
    assert take(numbers, 1, 40) == 42
    assert numbers.describe(6) == "lost frames: 1-2, 3-5 (5 between camera and computer)", "not beyond the series"


def test_losses_that_are_told_while_frames_wait() -> None:
    """Those of a gap are settled by it, those behind the last frame are not."""
    numbers = Numbers()
    assert take(numbers, 0, 0) == 0
    numbers.tell(3)
    numbers.tell(3)
    assert take(numbers, 1, 2) == 2 and numbers.told == 1
    assert take(numbers, 2, 3) == 3 and numbers.told == 1
    numbers.give_up_told()
    assert numbers.describe(5) == "lost frames: 1, 4 (2 between camera and computer)"


def test_stamps_that_make_no_sense_lose_nothing() -> None:
    numbers = Numbers()
    for place, stamp in enumerate((5, 5, -1, 3, 2_000_000_000)):
        assert take(numbers, place, stamp) == place


def test_ranges_as_text() -> None:
    assert text_of([(1, 1), (5, 7)]) == "1, 5-7"
    assert text_of([(n, n) for n in range(0, 60, 2)]).endswith("38 and 10 more ranges")


# --- buffers ----------------------------------------------------------------------------------------------------------


class Loans:
    """ZeroMQ that keeps what it has until told."""

    def __init__(self) -> None:
        self.bell, self.out, self.done = -1, set[int](), set[int]()

    @property
    def held(self) -> int:
        return len(self.out)

    def back(self) -> list[int]:
        came, self.done = sorted(self.done), set()
        self.out -= set(came)
        return came

    def is_held(self, slot: int) -> bool:
        return slot in self.out


@pytest.fixture
def ring() -> Iterator[CameraRing]:
    ring = CameraRing(100 * 4096)
    ring.divide(4000)
    ring.ring.loans = Loans()
    yield ring
    ring.ring.loans.out.clear()
    ring.close()


def give(ring: CameraRing, frame: int) -> memoryview:
    """To ZeroMQ; what ZeroMQ sees."""
    slot = ring.slot(frame)
    ring.ring.loans.out.add(slot)
    ring.given(frame, frame)
    return memoryview((ctypes.c_uint8 * 4000).from_address(ring.ring.address(slot) + ring.shift)).cast("B")


def write(ring: CameraRing, frame: int) -> None:
    ring.ring.memory(ring.slot(frame))[:] = bytes([frame % 251]) * 4000


def test_what_is_under_way_is_not_written_over(ring: CameraRing) -> None:
    assert ring.buffers == 88 and ring.window == 12 and ring.margin == 35
    for frame in range(3):
        write(ring, frame)
    seen = [give(ring, frame) for frame in range(3)]
    count = 3
    while count < 300:
        ring.guard(count, lambda count=count: count)
        write(ring, count)
        count += 1
        assert [set(view) for view in seen] == [{0}, {1}, {2}]
    assert ring.rescued == 3 and not ring.has_room(88), "slot 0 is not back yet"
    ring.ring.loans.done |= {0, 1, 2}
    assert ring.has_room(88 * 4)
    assert set(seen[0]) == {264 % 251}, "it is what the camera writes again"
    write(ring, 88 * 4)
    assert set(give(ring, 88 * 4)) == {88 * 4 % 251}


def test_spare_slots_come_back(ring: CameraRing) -> None:
    for n in range(50):
        begin = 1000 * n
        for frame in range(begin, begin + 12):
            write(ring, frame)
            view = give(ring, frame)
        assert not ring.has_room(begin + 12), "as many as there are spare slots"
        ring.guard(begin + 80, lambda begin=begin: begin + 80)
        ring.ring.loans.done |= set(ring.ring.loans.out)
        assert ring.under_way == 0
        del view
    assert ring.rescued == 600


def test_a_frame_that_was_spoiled_is_told(ring: CameraRing) -> None:
    give(ring, 5)
    with pytest.raises(HardwareError, match="wrote over frame 5 while it was sent.*88 buffers are too few"):
        ring.guard(80, lambda: 93)


@given(counts=st.lists(st.integers(0, 60), max_size=40))
def test_what_is_sent_next_is_never_near_the_camera(counts: list[int]) -> None:
    ring = CameraRing(100 * 4096)
    ring.divide(4000)
    place = count = 0
    for n in counts:
        count += n
        before, place = place, ring.place(place, count)
        assert before <= place <= count
        assert place == count or place >= count - ring.buffers + ring.margin
        place = min(count, place + 3)
    ring.close()


def test_too_little_memory() -> None:
    ring = CameraRing(5_000_000)
    with pytest.raises(ConfigError, match="room for 0 frames of 8388608 bytes"):
        ring.divide(8_388_608)
    assert ring.divide(100_000) == 42, "48 slots, 6 of them spare"
    ring.close()
