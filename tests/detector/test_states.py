"""The table of states: every state is left, a fault is always possible and always acknowledged."""

import pytest

from tangods_detector.device import STATES
from tangods_detector.states import AWAY, BUSY, READY, TRANSITIONS, Event, State, after
from tangods_receiver.errors import ConfigError


def test_a_series_from_idle_to_idle() -> None:
    state = State.IDLE
    for event, expected in (
        (Event.ARM, State.ARMING),
        (Event.READY, State.RUNNING),
        (Event.DONE, State.FINISHING),
        (Event.CLOSED, State.IDLE),
    ):
        state = after(state, event)
        assert state is expected


@pytest.mark.parametrize("state", State)
def test_any_state_can_fail_and_a_fault_is_acknowledged(state: State) -> None:
    assert after(state, Event.FAIL) is State.FAULT
    assert after(State.FAULT, Event.RESET) is State.CONNECTING


@pytest.mark.parametrize("state", [State.ARMING, State.RUNNING, State.FINISHING])
def test_stop_from_every_busy_state(state: State) -> None:
    assert after(after(state, Event.STOP), Event.CLOSED) is State.IDLE


@pytest.mark.parametrize(("state", "event"), [(s, e) for s in State for e in Event if (s, e) not in TRANSITIONS])
def test_everything_else_is_refused_in_words(state: State, event: Event) -> None:
    with pytest.raises(ConfigError, match=f"cannot {event.value} while {state.value}"):
        after(state, event)


def test_every_state_is_reached_left_and_shown() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert set(TRANSITIONS.values()) | {State.CONNECTING} == set(State)
    assert set(STATES) == set(State)
    assert BUSY | AWAY | READY | {State.FAULT} == set(State)
