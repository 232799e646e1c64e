"""Triggers and edges to exposures: no clock, every time is told."""

import pytest

from tangods_detector.simulators.eiger.course import Course, Plan
from tangods_detector.simulators.eiger.states import ALLOWED, STATES, allowed
from tangods_detector.simulators.pulses import Pulses


def course(mode, nimages=1, ntrigger=1, **more):
    return Course(Plan(mode, nimages, ntrigger, **{"count_time": 0.75, "frame_time": 1.0, **more}))


def taken(course, now):
    return [(e.number, e.start, e.stop) for e in course.due(now)]


def test_a_software_trigger_exposes_its_images_one_after_the_other():
    c = course("ints", nimages=3, ntrigger=2)
    assert c.trigger(10.0) and c.busy(12.9) and not c.busy(13.0)
    assert taken(c, 11.8) == [(0, 10.0, 10.75), (1, 11.0, 11.75)]
    assert not c.trigger(12.0)  # busy
    assert not c.complete(13.0)
    assert c.trigger(20.0)
    assert taken(c, 99.0) == [(2, 12.0, 12.75), (3, 20.0, 20.75), (4, 21.0, 21.75), (5, 22.0, 22.75)]
    assert c.complete(23.0) and not c.complete(22.9)
    assert not c.trigger(30.0) and c.taken == 6


def test_inte_takes_the_time_of_the_trigger():
    c = course("inte", ntrigger=2, gap=0.125)
    assert c.trigger(0.0, 4.0) and not c.trigger(4.0) and c.trigger(4.125)
    assert taken(c, 99) == [(0, 0.0, 4.0), (1, 4.125, 4.875)]


@pytest.mark.parametrize("mode", ["exts", "exte", "eies", "extg"])
def test_external_modes_take_no_software_trigger(mode):
    assert not course(mode).trigger(0.0)


@pytest.mark.parametrize("mode", ["ints", "inte"])
def test_internal_modes_take_no_edge(mode):
    assert not course(mode).edge(0.0)


def test_an_edge_while_the_detector_is_busy_is_ignored():
    c = course("exts", nimages=2, ntrigger=2, delay=0.5)
    assert c.edge(0.0) and not c.edge(2.0) and c.edge(2.5) and c.skipped == 1
    assert taken(c, 99) == [(0, 0.5, 1.25), (1, 1.5, 2.25), (2, 3.0, 3.75), (3, 4.0, 4.75)]


def test_fewer_edges_than_announced_never_complete_a_series():
    c = course("exts", ntrigger=3)
    assert c.edge(0.0) and c.edge(1.0)
    assert not c.complete(1e9) and not c.busy(1e9)


def test_a_gate_is_as_long_as_it_is():
    c = course("exte", ntrigger=3, gap=0.25)
    assert c.edge(0.0, 2.0) and not c.edge(2.0, 1.0) and c.edge(2.25, 0.5) and c.edge(3.0)
    assert taken(c, 99) == [(0, 0.0, 2.0), (1, 2.25, 2.75), (2, 3.0, 3.75)]


def test_n_continuous_edges_give_one_image_less():
    c = course("eies", ntrigger=4, gap=0.25)
    assert [c.edge(t) for t in (0.0, 1.5, 2.0, 3.0, 4.5, 6.0)] == [True, True, False, True, True, False]
    assert c.skipped == 1
    assert taken(c, 99) == [(0, 0.0, 1.25), (1, 1.5, 2.75), (2, 3.0, 4.25)]
    assert c.complete(5.0)


def test_gates_are_summed_and_extg_never_ends():
    c = course("extg", nimages=2, nexpi=3)
    for t in range(6):
        assert c.edge(float(t), 0.25)
    assert not c.edge(9.0)
    found = list(c.due(99.0))
    assert [(e.number, e.start, e.stop, e.real) for e in found] == [(0, 0.0, 2.25, 0.75), (1, 3.0, 5.25, 0.75)]
    assert not c.complete(1e9)


def test_double_gates_belong_to_two_images_in_turn():
    c = course("extg", nimages=2, nexpi=2, double=True)
    for t in range(4):
        assert c.edge(float(t), 0.25)
    assert taken(c, 99) == [(0, 0.0, 2.25), (1, 1.0, 3.25)]


@pytest.mark.parametrize(("finish", "numbers"), [(False, [0, 1]), (True, [0, 1, 2])])
def test_disarm_keeps_what_is_taken_and_cancel_the_image_in_progress(finish, numbers):
    c = course("ints", nimages=5)
    c.trigger(0.0)
    assert taken(c, 0.8)[0][0] == 0
    c.stop(2.5, finish)
    assert c.busy_until == (2.75 if finish else 2.5)
    assert [0] + [n for n, *_ in taken(c, 99)] == numbers
    assert c.next_at() is None and not c.trigger(50.0) and not c.edge(50.0)


def test_a_stop_in_a_long_run_is_exact_and_quick():
    c = course("ints", nimages=2_000_000_000, count_time=0.5, frame_time=0.5)
    c.trigger(0.0)
    c.stop(1e8 + 0.25, finish=True)
    c._at = 200_000_000 - 3
    assert [n for n, *_ in taken(c, 1e9)] == [199_999_997, 199_999_998, 199_999_999, 200_000_000]


def test_an_abort_forgets_the_rest():
    c = course("ints", nimages=5)
    c.trigger(0.0)
    taken(c, 1.8)
    assert c.discard() == 3 and taken(c, 99) == []


def test_pulses_come_at_their_time_or_when_the_detector_is_free():
    c = course("exts", nimages=2, ntrigger=3)
    pulses = Pulses()
    pulses.add(10.0, 5, 0.0, None)
    assert pulses.next_at(c) == 10.0
    pulses.give(c, 13.0)
    assert c.triggers == 2 and c.skipped == 0 and pulses.next_at(c) == 14.0
    pulses.give(c, 99.0)
    assert c.triggers == 3 and pulses.next_at(c) is None  # two were too many
    assert [start for _, start, _ in taken(c, 99.0)] == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    c = course("exts", nimages=2, ntrigger=3)
    pulses.add(0.0, 4, 0.0, 1.5)
    pulses.give(c, 99.0)
    assert (c.triggers, c.skipped) == (2, 2)  # at 0 and 3


# --- states ----------------------------------------------------------------------------------------------------------

YES = {
    "na": "initialize",
    "initialize": "",
    "idle": "initialize arm hv_reset disarm cancel abort",
    "configure": "abort cancel",
    "ready": "initialize trigger disarm cancel abort",
    "acquire": "disarm cancel abort",
    "error": "initialize disarm cancel abort",
    "test": "",
}


def test_the_states_are_those_of_the_vendor():
    assert set(STATES) == set(ALLOWED) == set(YES)


@pytest.mark.parametrize("state", STATES)
def test_which_command_is_allowed_when(state):
    commands = ("initialize", "arm", "trigger", "disarm", "cancel", "abort", "hv_reset")
    assert {c for c in commands if allowed(state, c)} == set(YES[state].split())
    assert allowed(state, "wait") and allowed(state, "status_update")
