"""The ledger against a naive model."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangods_receiver.ledger import JUMP, Ledger, NumberSet, Verdict, total

numbers = st.integers(0, 60) | st.integers(4090, 4100) | st.integers(0, 10**12)


def ranges_of(numbers):
    ranges = []
    for n in sorted(numbers):
        if ranges and ranges[-1][1] == n - 1:
            ranges[-1] = (ranges[-1][0], n)
        else:
            ranges.append((n, n))
    return ranges


@given(st.lists(numbers), st.integers(0, 10_000))
def test_number_set(added, upto):
    numbers, model = NumberSet(), set()
    for n in added:
        assert numbers.add(n) == (n not in model)
        model.add(n)
    assert numbers.count == len(model) and numbers.highest == max(model, default=-1)
    assert all(n in numbers for n in model) and (upto in numbers) == (upto in model)
    assert numbers.gaps(upto) == ranges_of(set(range(upto)) - model)


@given(
    st.none() | st.integers(0, 40),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(-1, 45), st.integers(-1, 4), st.booleans())),
    st.integers(0, 60),
)
def test_ledger(expected, modules, events, closed_at):
    ledger, seen, lost = Ledger(expected, modules), set(), set()
    counts = dict.fromkeys(Verdict, 0)
    for i, (frame, module, lose) in enumerate(events):
        ledger.closed = i >= closed_at
        if not 0 <= module < modules or frame < 0 or (expected is not None and frame >= expected):
            wanted = Verdict.FOREIGN
        elif (frame, module) in seen:
            wanted = Verdict.REPEATED
        elif i >= closed_at:
            wanted = Verdict.LATE
        else:
            wanted = Verdict.NEW
            seen.add((frame, module))
            if lose:
                lost.add((frame, module))
        assert ledger.see(frame, module) is wanted
        if wanted is Verdict.NEW and lose:
            ledger.lose(frame, module)
        counts[wanted] += 1
    complete = {f for f, _ in seen if all((f, m) in seen for m in range(modules))}
    highest = max((f for f, _ in seen), default=-1)
    limit = highest + 1 if expected is None else expected
    assert ledger.complete == len(complete) and ledger.highest == highest
    assert ledger.all_came == (expected is not None and len(complete) == expected)
    assert (ledger.repeated, ledger.foreign, ledger.late) == (
        counts[Verdict.REPEATED],
        counts[Verdict.FOREIGN],
        counts[Verdict.LATE],
    )
    stored = {f for f in complete if not any((f, m) in lost for m in range(modules))}
    missing = ledger.missing()
    assert missing == ranges_of(set(range(limit)) - stored)
    assert total(missing) == limit - len([f for f in stored if f < limit])
    assert ledger.stored == len(stored)
    if modules == 1:
        assert ledger.known_missing == total(ledger.missing(highest + 1))


@given(st.permutations(range(200)), st.sets(st.integers(0, 199)))
def test_any_order_gives_the_same_books(order, dropped):
    ledger = Ledger(200)
    for n in order:
        if n not in dropped:
            assert ledger.see(n) is Verdict.NEW
    assert ledger.missing() == ranges_of(dropped) and ledger.all_came == (not dropped)


def test_left_out_is_absent_but_not_missing():
    ledger = Ledger(10)
    for n in range(8):
        ledger.see(n)
    ledger.leave_out(3)
    ledger.lose(5)
    assert ledger.missing() == [(5, 5), (8, 9)] and ledger.absent() == [(3, 3), (5, 5), (8, 9)]
    assert ledger.stored == 6 and ledger.complete == 8


def test_absurd_numbers_are_refused_where_none_was_announced():
    ledger = Ledger()
    assert ledger.see(5) is Verdict.NEW
    for absurd in (10**12, 2**63, 6 + JUMP):
        assert ledger.see(absurd) is Verdict.FOREIGN
    assert ledger.see(JUMP) is Verdict.NEW
    assert total(ledger.missing()) == JUMP - 1


@pytest.mark.parametrize("far", [2**24, 2**32])
def test_counters_that_once_rolled_over(far):
    ledger = Ledger(far + 10)
    for n in (far - 1, far, far + 1):
        assert ledger.see(n) is Verdict.NEW
    assert ledger.missing() == [(0, far - 2), (far + 2, far + 9)]


@pytest.mark.slow
def test_a_million_frames_cost_what_a_thousand_cost():
    ledger = Ledger(1_000_000)
    cost = []
    for start in range(0, 1_000_000, 250_000):
        begun = time.thread_time()
        for n in range(start, start + 250_000):
            ledger.see(n ^ 3)
        cost.append(time.thread_time() - begun)
    assert ledger.all_came and ledger.missing() == []
    assert cost[-1] < 5 * cost[0]
    assert len({id(page) for page in ledger._seen._pages.values()}) == 2  # full pages share their memory


@given(
    st.none() | st.integers(0, 20_000),
    st.lists(st.tuples(st.integers(0, 15_000), st.integers(1, 300), st.sampled_from([1, 1, 2, 3, 64])), max_size=20),
)
def test_ranges_are_entered_as_their_numbers(expected, batches):
    """A batch at once, or refused as a whole and then entered one by one: the same books."""
    one, other = Ledger(expected), Ledger(expected)
    for first, count, step in batches:
        numbers = range(first, first + count * step, step)
        if not one.see_range(numbers):
            for number in numbers:
                one.see(number)
        for number in numbers:
            other.see(number)
        for what in ("complete", "repeated", "foreign", "highest", "all_came", "known_missing"):
            assert getattr(one, what) == getattr(other, what), what
    assert one.missing() == other.missing()
