"""From what Sardana wants to the settings of one series: a whole scan is armed once. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

SLACK = 1e-6  # a part of the exposure that rounding may take


class Synch(enum.IntEnum):
    """Who starts a point; the numbers are Sardana's AcqSynch."""

    SOFTWARE_TRIGGER = 0
    HARDWARE_TRIGGER = 1
    SOFTWARE_GATE = 2
    HARDWARE_GATE = 3
    SOFTWARE_START = 4
    HARDWARE_START = 5

    @property
    def by_software(self) -> bool:
        return self in (Synch.SOFTWARE_TRIGGER, Synch.SOFTWARE_GATE, Synch.SOFTWARE_START)

    @property
    def whole_start(self) -> bool:
        """One event begins all repetitions of a start."""
        return self in (Synch.SOFTWARE_START, Synch.HARDWARE_START)

    @property
    def point_by_point(self) -> bool:
        """Sardana sends a software event for each point."""
        return self.by_software and not self.whole_start


class PlanError(ValueError):
    """What this detector cannot do; the sentence says what to do."""


@dataclass(frozen=True)
class Request:
    """What a measurement group asks for when it prepares."""

    synch: Synch
    integration: float  # s, of one point
    repetitions: int  # points of a start
    dead_time: float  # s between two points, at least the latency
    starts: int
    frames_per_point: int = 1

    @property
    def points(self) -> int:
        return self.repetitions * self.starts


@dataclass(frozen=True)
class Plan:
    """Settings of a Detector device, and what belongs to a start."""

    exposure: float  # s
    frame_time: float  # s; 0: as fast as possible
    trigger_mode: str
    triggers: int
    frames_per_trigger: int
    frames_per_start: int
    starts: int  # of one series
    frames_per_point: int
    software: bool  # we send the triggers

    @property
    def frames(self) -> int:
        return self.triggers * self.frames_per_trigger

    @property
    def arms_each_start(self) -> bool:
        """The hardware knows no trigger of ours: arming it is the start."""
        return self.software and self.trigger_mode == "INTERNAL"


def plan(request: Request, modes: Sequence[str], latency: float) -> Plan:
    """`modes`: what the hardware can (attribute TriggerModes); `latency`: its dead time between frames, s.

    PlanError: there is no mode for this, or the points are too short."""
    k = request.frames_per_point
    per_start = request.repetitions * k
    exposure, period = _times(request, latency)
    mode, triggers, frames = _mode(request, modes)
    starts = 1 if mode == "INTERNAL" else request.starts
    return Plan(
        exposure=exposure,
        frame_time=period if frames > 1 else 0.0,
        trigger_mode=mode,
        triggers=triggers,
        frames_per_trigger=frames,
        frames_per_start=per_start,
        starts=starts,
        frames_per_point=k,
        software=request.synch.by_software,
    )


def _times(request: Request, latency: float) -> tuple[float, float]:
    """Exposure of a frame, and period of those that the detector takes on its own, s."""
    k, point = request.frames_per_point, request.integration + request.dead_time
    if k == 1:
        return request.integration, max(point, request.integration + latency)
    period = (point if request.synch.whole_start else request.integration) / k
    exposure = period - latency
    if exposure <= 0:
        raise PlanError(
            f"{k} frames do not fit into a point of {request.integration:g} s: the detector needs {latency:g} s "
            "between frames; set a longer time or a smaller FramesPerPoint"
        )
    return exposure * (1 - SLACK), period


def _mode(request: Request, modes: Sequence[str]) -> tuple[str, int, int]:
    """Trigger mode, number of triggers, frames of each."""
    k, synch = request.frames_per_point, request.synch
    if synch.whole_start:
        triggers, frames = request.starts, request.repetitions * k
    else:
        triggers, frames = request.points, k
    if synch.by_software:
        wanted = ["SOFTWARE"]
        if synch.whole_start or request.points == request.starts:
            wanted.append("INTERNAL")  # one series for each start
    elif synch is Synch.HARDWARE_START:
        wanted = ["EXTERNAL_SINGLE"] if request.starts == 1 else []
        wanted.append("EXTERNAL_MULTI")
    else:
        wanted = ["EXTERNAL_GATE"] if synch is Synch.HARDWARE_GATE and k == 1 else []
        wanted.append("EXTERNAL_MULTI")
    for mode in wanted:
        if mode in modes:
            break
    else:
        raise PlanError(
            f"{synch.name.lower().replace('_', ' ')}: the detector needs trigger mode {' or '.join(wanted)} and has "
            f"{', '.join(modes) or 'none'}; choose another synchronization"
        )
    if mode == "INTERNAL":
        return mode, 1, request.repetitions * k
    if mode == "EXTERNAL_SINGLE":
        return mode, 1, frames
    return mode, triggers, frames
