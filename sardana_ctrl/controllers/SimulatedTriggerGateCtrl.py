"""Sardana trigger/gate controller that lets edges come at the trigger inputs of simulated detectors."""

from __future__ import annotations

import threading
import time
from typing import Any

import tango
from sardana import State
from sardana.pool import SynchDomain, SynchParam
from sardana.pool.controller import Description, TriggerGateController, Type

LOOK = 0.01  # s
LATE = 5.0  # s that the last edges may wait for a detector


class SimulatedTriggerGateCtrl(TriggerGateController):
    """Axis n fires at the detectors in line n of `Devices`: after the delay, every total time, so often as repeated.

    The simulator itself keeps the time between edges."""

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

    def __init__(self, inst: str, props: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(inst, props, *args, **kwargs)
        lines = [self.Devices] if isinstance(self.Devices, str) else list(self.Devices)
        self._lines = [line.split() for line in lines if line.strip()]
        self._groups: dict[int, list[tuple[float, float, int]]] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._ends: dict[int, threading.Event] = {}
        self._problems: dict[int, str] = {}

    def AddDevice(self, axis: int) -> None:
        if not 1 <= axis <= len(self._lines):
            raise ValueError(f"axis {axis}: the property Devices has {len(self._lines)} lines; add one there")

    def DeleteDevice(self, axis: int) -> None:
        self.AbortOne(axis)

    def SynchOne(self, axis: int, description: Any) -> None:
        self._groups[axis] = [
            (
                float(group.get(SynchParam.Delay, {}).get(SynchDomain.Time, 0.0)),
                float(group[SynchParam.Total][SynchDomain.Time]),
                int(group[SynchParam.Repeats]),
            )
            for group in description
        ]

    def PrepareOne(self, axis: int, nb_starts: int) -> None:
        pass

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
                for delay, total, repeats in self._groups.get(axis, []):
                    if end.wait(delay):
                        return
                    self._fire(detectors, total, repeats, end)
            except tango.DevFailed as exc:
                self._problems[axis] = str(exc.args[0].desc)

    @staticmethod
    def _fire(detectors: list[tango.DeviceProxy], total: float, repeats: int, end: threading.Event) -> None:
        """Detectors that are not armed do not hear it."""
        armed = [detector for detector in detectors if detector.state() == tango.DevState.RUNNING]
        for detector in armed:
            detector.SimulatedEdgePeriod = total if repeats > 1 else 0.0
        over = time.monotonic() + total * repeats
        for detector in armed:
            detector.SimulatedEdges = repeats
        while time.monotonic() < over or any(detector.SimulatedEdges for detector in armed):
            if end.wait(LOOK) or time.monotonic() > over + LATE:
                for detector in armed:
                    detector.SimulatedEdges = 0
                return

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
