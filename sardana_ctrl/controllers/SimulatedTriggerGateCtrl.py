"""Sardana trigger/gate controller that lets edges come at the trigger inputs of simulated detectors."""

from __future__ import annotations

import threading
import time
from math import floor, nan
from typing import Any, NamedTuple

import tango
from sardana import DataAccess, State
from sardana.pool import SynchDomain, SynchParam
from sardana.pool.controller import (
    Access,
    DefaultValue,
    Description,
    FGet,
    FSet,
    Memorize,
    Memorized,
    TriggerGateController,
    Type,
)

from sardana_ctrl import pool

LOOK, SELDOM = 0.01, 0.05  # s
LATE = 5.0  # s that the last edges may wait for a detector
SLACK = 1e-9  # of a step, for rounding


class Group(NamedTuple):  # Sardana's way to load this file is too much for a dataclass
    """Edges as Sardana describes them: by time, and by position of a motor where one moves (else NaN)."""

    delay: float  # s
    total: float  # s from one to the next
    initial: float  # position of the first, in units of the motor
    step: float
    repeats: int


class SimulatedTriggerGateCtrl(TriggerGateController):
    """Axis n fires at the detectors in line n of `Devices`. By time: after the delay, every total time, so often as
    repeated; the simulator itself keeps the time between edges. By position, where `Motor` is set: whenever that motor
    has come one step further, as often as the Pool looks at it (its motionloop)."""

    gender = "Simulation"
    model = "Simulated edges"
    organization = "tangods-detector"
    MaxDevice = 16

    ctrl_properties = {
        "Devices": {
            Type: (str,),
            Description: "Per axis the Detector devices (backend simulator) that get its edges, with spaces between",
        },
    }

    axis_attributes = {
        "Motor": {
            Type: str,
            Access: DataAccess.ReadWrite,
            Description: "Motor of the scan, such as mot01, whose position makes the edges; empty: they come by time",
            DefaultValue: "",
            FGet: "getMotor",
            FSet: "setMotor",
            Memorize: Memorized,
        },
    }

    def __init__(self, inst: str, props: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(inst, props, *args, **kwargs)
        lines = [self.Devices] if isinstance(self.Devices, str) else list(self.Devices)
        self._lines = [line.split() for line in lines if line.strip()]
        self._groups: dict[int, list[Group]] = {}
        self._motors: dict[int, str] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._ends: dict[int, threading.Event] = {}
        self._problems: dict[int, str] = {}

    def AddDevice(self, axis: int) -> None:
        if not 1 <= axis <= len(self._lines):
            raise ValueError(f"axis {axis}: the property Devices has {len(self._lines)} lines; add one there")

    def DeleteDevice(self, axis: int) -> None:
        self.AbortOne(axis)

    def getMotor(self, axis: int) -> str:
        return self._motors.get(axis, "")

    def setMotor(self, axis: int, value: str) -> None:
        self._motors[axis] = value.strip()

    def SynchOne(self, axis: int, description: Any) -> None:
        self._groups[axis] = [
            Group(
                float(group.get(SynchParam.Delay, {}).get(SynchDomain.Time, 0.0)),
                float(group[SynchParam.Total][SynchDomain.Time]),
                float(group.get(SynchParam.Initial, {}).get(SynchDomain.Position, nan)),
                float(group[SynchParam.Total].get(SynchDomain.Position, nan)),
                int(group[SynchParam.Repeats]),
            )
            for group in description
        ]

    def PrepareOne(self, axis: int, nb_starts: int) -> None:
        self._problems[axis] = ""
        pool.refresh(self, axis)

    def PreStartOne(self, axis: int, value: float | None = None) -> bool:
        return True

    def StartOne(self, axis: int, value: float | None = None) -> None:
        self.AbortOne(axis)
        end = self._ends[axis] = threading.Event()
        self._problems[axis] = ""
        thread = threading.Thread(target=self._run, args=(axis, end), name=f"edges {axis}", daemon=True)
        self._threads[axis] = thread
        thread.start()

    def _run(self, axis: int, end: threading.Event) -> None:
        with tango.EnsureOmniThread():
            try:
                detectors = [tango.DeviceProxy(name) for name in self._lines[axis - 1]]
                motor = tango.DeviceProxy(self._motors[axis]) if self._motors.get(axis) else None
                for group in self._groups.get(axis, []):
                    # those that are not armed do not hear it
                    armed = [detector for detector in detectors if _armed(detector)]
                    if motor is not None and group.step == group.step:  # step and ct have no positions
                        late = _fire_by_position(armed, motor, group, end)
                    else:
                        late = _fire_by_time(armed, group, end)
                    _last_edges(armed, late + LATE, end)
                    if end.is_set():
                        return
            except tango.DevFailed as exc:
                self._problems[axis] = str(exc.args[0].desc)

    def StateOne(self, axis: int) -> tuple[Any, str]:
        if self._problems.get(axis):
            return State.Fault, self._problems[axis]
        thread = self._threads.get(axis)
        if thread and thread.is_alive():
            return State.Moving, "firing"
        return State.On, "ready"

    def AbortOne(self, axis: int) -> None:
        end = self._ends.pop(axis, None)
        if end:
            end.set()
            self._threads.pop(axis).join(3.0)

    def SetAxisPar(self, axis: int, parameter: str, value: Any) -> None:
        pass


def _armed(detector: tango.DeviceProxy) -> bool:
    return bool(detector.state() == tango.DevState.RUNNING)


def _fire_by_time(detectors: list[tango.DeviceProxy], group: Group, end: threading.Event) -> float:
    """When the last edge comes."""
    if end.wait(group.delay):
        return time.monotonic()
    for detector in detectors:
        detector.SimulatedEdgePeriod = group.total if group.repeats > 1 else 0.0
    over = time.monotonic() + group.total * group.repeats
    for detector in detectors:
        detector.SimulatedEdges = group.repeats
    while (left := over - time.monotonic()) > 0 and any(_armed(detector) for detector in detectors):
        if end.wait(min(left, SELDOM)):
            break
    return over


def _fire_by_position(
    detectors: list[tango.DeviceProxy], motor: tango.DeviceProxy, group: Group, end: threading.Event
) -> float:
    """When the last edge came."""
    for detector in detectors:
        detector.SimulatedEdgePeriod = 0.0
    fired = [0] * len(detectors)
    while min(fired, default=group.repeats) < group.repeats and any(_armed(detector) for detector in detectors):
        if end.wait(LOOK / 2):
            break
        steps = (float(motor.read_attribute("Position").value) - group.initial) / group.step
        passed = min(group.repeats, floor(steps + SLACK) + 1)
        for index, detector in enumerate(detectors):
            if passed > fired[index] and not detector.SimulatedEdges:  # else it may heed one while we add others
                detector.SimulatedEdges = passed - fired[index]
                fired[index] = passed
    return time.monotonic()


def _last_edges(detectors: list[tango.DeviceProxy], limit: float, end: threading.Event) -> None:
    """Wait until all edges were heeded, the detectors have stopped, or `limit` has come; then no more come."""
    while not end.is_set() and any(detector.SimulatedEdges and _armed(detector) for detector in detectors):
        if time.monotonic() > limit:
            break
        end.wait(LOOK)
    for detector in detectors:
        detector.SimulatedEdges = 0
