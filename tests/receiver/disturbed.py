"""What can happen to the images of a series on their way, drawn by hypothesis: shuffled, lost, repeated, cut."""

from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

COUNT = 12  # images of a series
WHOLE = 100  # percent of a message
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # each is a file


class Step(NamedTuple):
    """An image comes, or `percent` of its message."""

    number: int
    percent: int = WHOLE


_numbers = st.integers(0, COUNT - 1)
_percent = st.sampled_from([WHOLE] * 6 + [0, 40, 99])
shuffled = st.lists(st.builds(Step, _numbers, _percent), max_size=2 * COUNT)
#: As PUB and TCP can do it: in order, some not at all, some twice in a row.
in_order = st.lists(st.builds(Step, _numbers, _percent), max_size=COUNT + 4).map(sorted)


class Outcome(NamedTuple):
    kept: set[int]
    repeated: int
    refused: int


def outcome(steps):
    whole = [step.number for step in steps if step.percent == WHOLE]
    return Outcome(set(whole), len(whole) - len(set(whole)), len(steps) - len(whole))


def cut(parts, percent):
    """The last part with pixels in it, which is the largest, shorter by what is missing: a byte at least."""
    if percent == WHOLE:
        return parts
    largest = max(range(len(parts)), key=lambda k: len(parts[k]))
    data = bytes(parts[largest])
    return [*parts[:largest], data[: min(len(data) - 1, len(data) * percent // 100)], *parts[largest + 1 :]]
