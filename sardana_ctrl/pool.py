"""The Pool around a controller: what its measurement group is and remembers. All that we use of Sardana's insides.

Checked with Sardana 3.7.1; a test fails where another version has other names. They are not documented, and needed
because a controller is not told which channels of it take part, when a group has ended, or that the group remembers an
old state:

    Controller._getPoolController()        from a controller to the object that holds it, as Sardana's dummies do
    PoolController.operator                the measurement group that prepares; `prepare` of a group sets it
    PoolController.get_element(axis=)      channel, trigger or counter of an axis, with get_state(cache, propagate)
    group.configuration.get_timerable_ctrls(enabled=True), their element and get_channels(enabled=True)[].axis
    group.nb_starts                        starts that it prepares for
    group._pending_starts                  starts that will still come; `prepare` sets it, `stop` makes it 0
    group.acquisition.is_running()         whether a start is being worked on

Elsewhere: the recorder overrides `_endRecordList` of Sardana's own HDF5 recorder and reads its datadesc, fd, entryname
and currentlist (there is no other way into its file); det_setup writes the environment variable `_GeneralHooks`, as
Sardana's defgh does, for defgh adds a hook a second time; det_uct fills in what Sardana's uct prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

LOOK = 0.05  # s between two looks at a group
CHECKED_WITH = "3.7"  # versions of Sardana that begin so


def group_of(controller: Any) -> Any:
    """The measurement group that prepared this controller last, also where a channel was used on its own since."""
    try:
        group = controller._getPoolController().operator
    except (AttributeError, TypeError):  # no Pool, no group yet: the property calls a None then
        return None
    return group if hasattr(group, "configuration") else None


def axes_in_group(controller: Any) -> list[int]:
    """Axes of this controller that are enabled in its group; none: it has no group."""
    group = group_of(controller)
    if group is None:
        return []
    for other in group.configuration.get_timerable_ctrls(enabled=True):
        if other.element is controller._getPoolController():
            return [channel.axis for channel in other.get_channels(enabled=True)]
    return []


def starts_of_group(controller: Any, told: int) -> int:
    """For channels that one event starts. Sardana tells them the number of points of all starts, where the group also
    has channels with an event for each point: PoolAcquisition.prepare multiplies for those first, in one variable."""
    group = group_of(controller)
    return told if group is None else int(group.nb_starts)


def is_over(group: Any) -> bool:
    """Nothing runs, and no start is to come."""
    return bool(group._pending_starts == 0 and not group.acquisition.is_running())


def wait_over(group: Any, wanted: Callable[[], bool]) -> bool:
    """Until the group is over; False: nobody wants to know any more. It takes two looks: when a start begins, there is
    a moment in which none is to come and nothing runs yet."""
    looks = 0
    while wanted():
        time.sleep(LOOK)
        looks = looks + 1 if is_over(group) else 0
        if looks == 2:
            return wanted()
    return False


def refresh(controller: Any, axis: int, alone: bool = False) -> None:
    """Let the Pool look now at an element, and at the group unless the element is counted `alone`. A macro waits 3 s
    for a group whose remembered state is not On, and then gives up: without this, after a Reset of a detector that had
    failed (Fault), and after an abort just when a start began (Unknown)."""
    holder = controller._getPoolController()
    if holder is None:
        return
    holder.get_element(axis=axis).get_state(cache=False, propagate=2)
    group = None if alone else group_of(controller)
    if group is not None:  # an element whose last event said On tells nothing to its group
        group.get_state(cache=False, propagate=2)
