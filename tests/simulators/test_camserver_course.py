"""Edges to exposures: no clock, every time is told."""

import pytest

from tangods_detector.simulators.camserver.course import Course, Plan


def course(mode, nimages=1, now=0.0, **more):
    return Course(Plan(mode, nimages, **{"exptime": 0.5, "period": 1.0, "readout": 0.25, **more}), now)


def taken(course, now):
    found = []
    while exposure := course.take(now):
        found.append((exposure.number, exposure.start, exposure.stop, exposure.ready))
    return found


def test_internal_images_follow_the_period_and_are_there_when_they_are_read_out():
    c = course("exposure", 3, now=10.0)
    assert taken(c, 10.7) == []
    assert taken(c, 11.75) == [(0, 10.0, 10.5, 10.75), (1, 11.0, 11.5, 11.75)]
    assert not c.over and c.next().ready == 12.75
    assert taken(c, 99) == [(2, 12.0, 12.5, 12.75)] and c.over
    assert not c.edge(100.0)


def test_sums_take_as_long_as_their_exposures():
    c = course("exposure", 2, sums=3)
    assert taken(c, 99) == [(0, 0.0, 2.5, 2.75), (1, 3.0, 5.5, 5.75)]


def test_one_edge_starts_the_whole_series_after_the_delay():
    c = course("exttrigger", 2, delay=2.0)
    assert not c.over and c.next() is None
    assert c.edge(5.0) and not c.edge(6.0) and not c.edge(99.0) and c.skipped == 2
    assert taken(c, 99) == [(0, 7.0, 7.5, 7.75), (1, 8.0, 8.5, 8.75)] and c.over


def test_one_edge_for_each_image_and_none_in_the_read_out():
    c = course("extmtrigger", 3)
    assert [c.edge(t) for t in (0.0, 0.4, 0.6, 0.75, 1.0, 5.0, 9.0)] == [True, False, False, True, False, True, False]
    assert [number for number, *_ in taken(c, 99)] == [0, 1, 2] and c.over and c.skipped == 4


def test_a_gate_is_as_long_as_it_is():
    c = course("extenable", 2)
    assert c.edge(0.0, 2.0) and not c.edge(2.2, 1.0) and c.edge(3.0)
    assert taken(c, 99) == [(0, 0.0, 2.0, 2.25), (1, 3.0, 3.5, 3.75)]


@pytest.mark.parametrize("mode", ["exttrigger", "extmtrigger", "extenable"])
def test_without_edges_a_series_waits_for_ever(mode):
    c = course(mode, 2)
    assert taken(c, 1e9) == [] and not c.over
    c.stop()
    assert c.over and not c.edge(1e9)


def test_what_is_not_read_out_is_lost_by_a_stop():
    c = course("exposure", 5)
    assert len(taken(c, 1.8)) == 2
    c.stop()
    assert taken(c, 99) == [] and c.over and c.taken == 2
