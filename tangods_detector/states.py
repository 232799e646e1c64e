"""States of a detector and the only ways from one to another, as a table."""

from __future__ import annotations

import enum

from tangods_receiver.errors import ConfigError


class State(enum.Enum):
    """Where the detector is. `device.py` maps each to a Tango state."""

    CONNECTING = "connecting"
    OFFLINE = "hardware unreachable"
    NO_RECEIVER = "receiver unreachable"
    IDLE = "idle"
    ARMING = "arming"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHING = "finishing"
    FAULT = "fault"


class Event(enum.Enum):
    """What can happen."""

    CONNECTED = "connected"
    CONNECTED_ALONE = "connected without receiver"
    LOST = "hardware lost"
    RECEIVER_LOST = "receiver lost"
    RECEIVER_BACK = "receiver back"
    ARM = "arm"
    READY = "ready"
    DONE = "done"
    STOP = "stop"
    CLOSED = "closed"
    FAIL = "fail"
    RESET = "reset"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CONNECTING, Event.CONNECTED): State.IDLE,
    (State.CONNECTING, Event.CONNECTED_ALONE): State.NO_RECEIVER,
    (State.OFFLINE, Event.CONNECTED_ALONE): State.NO_RECEIVER,
    (State.CONNECTING, Event.LOST): State.OFFLINE,
    (State.OFFLINE, Event.CONNECTED): State.IDLE,
    (State.OFFLINE, Event.LOST): State.OFFLINE,
    (State.IDLE, Event.LOST): State.OFFLINE,
    (State.NO_RECEIVER, Event.LOST): State.OFFLINE,
    (State.IDLE, Event.RECEIVER_LOST): State.NO_RECEIVER,
    (State.NO_RECEIVER, Event.RECEIVER_LOST): State.NO_RECEIVER,
    (State.NO_RECEIVER, Event.RECEIVER_BACK): State.IDLE,
    (State.IDLE, Event.ARM): State.ARMING,
    (State.ARMING, Event.READY): State.RUNNING,
    (State.ARMING, Event.STOP): State.STOPPING,
    (State.RUNNING, Event.STOP): State.STOPPING,
    (State.FINISHING, Event.STOP): State.STOPPING,
    (State.RUNNING, Event.DONE): State.FINISHING,
    (State.FINISHING, Event.CLOSED): State.IDLE,
    (State.STOPPING, Event.CLOSED): State.IDLE,
    (State.FAULT, Event.RESET): State.CONNECTING,
    **{(state, Event.FAIL): State.FAULT for state in State},
}

BUSY = frozenset({State.ARMING, State.RUNNING, State.STOPPING, State.FINISHING})
AWAY = frozenset({State.CONNECTING, State.OFFLINE})
READY = frozenset({State.IDLE, State.NO_RECEIVER})


def after(state: State, event: Event) -> State:
    """The state that follows; ConfigError when that cannot happen now."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ConfigError(f"cannot {event.value} while {state.value}") from None
