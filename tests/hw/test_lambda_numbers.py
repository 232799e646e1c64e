"""The place of a Lambda frame, by the number of a counter that rolls over."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tangods_detector.hw.lambda_numbers import Numbers


def counter(n, bits, skips_zero):
    """What a unit calls its n-th frame, from 1."""
    top = (1 << bits) - 1
    return (n - 1) % top + 1 if skips_zero else n & top


@pytest.mark.parametrize("skips_zero", [False, True])
def test_the_counter_of_24_bits_rolls_over(skips_zero):
    numbers = Numbers(24)
    for n in [*range(1, 4), 9_000_000, *range(16_777_200, 16_777_240), 25_000_000, 33_554_000, 33_554_440]:
        assert numbers.place(counter(n, 24, skips_zero)) == n - 1
    assert numbers.skips_zero is skips_zero, "it has seen what comes after the highest"


@given(
    st.integers(3, 8), st.booleans(), st.lists(st.integers(1, 100), max_size=300), st.lists(st.booleans(), min_size=1)
)
@example(3, True, [1] * 30, [False])
def test_lost_frames_move_no_other(bits, skips_zero, steps, late):
    """Any gaps up to three quarters of a turn, any frame overtaken by the next; the roll-over known beforehand."""
    turn = 1 << bits
    sent, n = [], 0
    for step in steps:
        n += min(step, turn * 7 // 8 - turn // 8 - 2)
        sent.append(n)
    order = sent[:]
    for k in range(0, len(order) - 1, 2):
        if late[k % len(late)] and order[k + 1] - order[k] + skips_zero <= turn // 8:
            order[k], order[k + 1] = order[k + 1], order[k]
    numbers = Numbers(bits, skips_zero=skips_zero)
    assert [numbers.place(counter(n, bits, skips_zero)) for n in order] == [n - 1 for n in order]


@given(st.booleans(), st.integers(1, 300))
def test_without_losses_the_roll_over_is_learned(skips_zero, count):
    numbers = Numbers(4)
    assert [numbers.place(counter(n, 4, skips_zero)) for n in range(1, count + 1)] == [*range(count)]


@given(st.booleans(), st.sets(st.integers(3, 59)))
def test_pairs_of_a_dual_counter_share_a_number_or_do_not(shared, lost):
    """The first pair came whole; where `shared` a lost first of a pair is not told from a lost second, so pairs are."""
    numbers, found = Numbers(24, dual=True), []
    if shared:
        lost = {k for k in lost if k % 2}
    came = [k for k in range(60) if k not in lost]
    for k in came:
        found.append(numbers.place(1 + k // 2 if shared else 1 + k))
    assert found == came
    assert numbers.shared == shared


def test_a_repeated_number_is_the_same_frame_where_there_are_no_pairs():
    numbers = Numbers(24)
    assert [numbers.place(n) for n in (1, 2, 2, 3)] == [0, 1, 1, 2]
    assert numbers.shared is False


def test_a_third_frame_of_a_pair_is_a_repetition():
    numbers = Numbers(24, dual=True, shared=True)
    assert [numbers.place(n) for n in (1, 1, 1, 2, 2)] == [0, 1, 1, 2, 3]


def test_zero_is_no_first_number():
    assert Numbers(24).place(0) == -1
