"""Sardana counter/timer controller: a number of a region of interest for each point, for plots and alignment scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tango
from sardana import DataAccess, State
from sardana.pool.controller import (
    Access,
    CounterTimerController,
    DefaultValue,
    Description,
    FGet,
    FSet,
    Memorize,
    Memorized,
    Type,
)

from sardana_ctrl import pool
from sardana_ctrl.plan import Synch
from sardana_ctrl.roi import STATISTICS, Meter, RoiError


class StandardDetectorRoiCtrl(CounterTimerController):
    """Regions of interest that the detector's StreamReceiver measures; give the channels its synchronization.

    In step scans each point has its number; in fly scans those whose image was looked at, some ten a second."""

    gender = "Counter"
    model = "Region of interest"
    organization = "tangods-detector"
    MaxDevice = 48
    default_timer = 1

    ctrl_properties = {
        "Device": {Type: str, Description: "The Detector device, such as b1/dia/det1"},
        "Receiver": {
            Type: str,
            Description: "Its StreamReceiver device; empty: the detector's own property Receiver says it",
            DefaultValue: "",
        },
    }
    axis_attributes = {
        "Roi": {
            Type: str,
            Access: DataAccess.ReadWrite,
            Description: "Name of the region, as in the receiver's attribute Rois",
            DefaultValue: "",
            FGet: "getRoi",
            FSet: "setRoi",
            Memorize: Memorized,
        },
        "Statistic": {
            Type: str,
            Access: DataAccess.ReadWrite,
            Description: f"What of it: {', '.join(STATISTICS)}",
            DefaultValue: "Sum",
            FGet: "getStatistic",
            FSet: "setStatistic",
            Memorize: Memorized,
        },
    }

    def __init__(self, inst: str, props: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(inst, props, *args, **kwargs)
        self._meters: dict[int, Meter] = {}
        self._synch = Synch.SOFTWARE_TRIGGER
        self._over: set[int] = set()  # axes whose points are all there
        self._failed: dict[int, str] = {}  # shown as Fault until the next start
        self._starting: list[int] = []

    def AddDevice(self, axis: int) -> None:
        self._meters[axis] = Meter(self.Device, lambda: str(self.GetAxisName(axis)), self.Receiver)

    def DeleteDevice(self, axis: int) -> None:
        self._meters.pop(axis, None)

    def getRoi(self, axis: int) -> str:
        return self._meters[axis].roi

    def setRoi(self, axis: int, value: str) -> None:
        self._meters[axis].roi = value.strip()

    def getStatistic(self, axis: int) -> str:
        return self._meters[axis].statistic

    def setStatistic(self, axis: int, value: str) -> None:
        known = {name.lower(): name for name in STATISTICS}
        if value.strip().lower() not in known:
            raise ValueError(f"Statistic: {value!r} is not one of {', '.join(STATISTICS)}")
        self._meters[axis].statistic = known[value.strip().lower()]

    def SetCtrlPar(self, parameter: str, value: Any) -> None:
        if parameter == "synchronization":
            self._synch = Synch(int(value))
        else:
            super().SetCtrlPar(parameter, value)

    def PrepareOne(self, axis: int, value: float, repetitions: int, latency: float, nb_starts: int) -> None:
        """Errors reach the user from here only: at a start by software Sardana would swallow them."""
        if self._synch is Synch.SOFTWARE_START:
            nb_starts = pool.starts_of_group(self, nb_starts)
        self._failed.clear()
        self._over.clear()
        in_group = pool.axes_in_group(self)
        axes = in_group if axis in in_group else [axis]
        for each in axes:
            self._meters[each].check()
        for meter in self._meters.values():
            meter.prepare(repetitions, nb_starts)
        for each in axes:
            pool.refresh(self, each)

    def LoadOne(self, axis: int, value: float, repetitions: int, latency: float) -> None:
        pass

    def PreStartAll(self) -> None:
        self._starting = []
        self._failed.clear()

    def PreStartOne(self, axis: int, value: float | None = None) -> bool:
        self._try(axis, self._meters[axis].check)
        return True

    def _try(self, axis: int, act: Callable[[], None]) -> None:
        """What goes wrong shows in the state: an error here would leave the measurement group waiting for ever."""
        try:
            act()
        except (tango.DevFailed, RoiError) as exc:
            self._failed[axis] = _words(exc)

    def StartOne(self, axis: int, value: float | None = None) -> None:
        self._starting.append(axis)

    def StartAll(self) -> None:
        for axis in self._starting:
            self._over.discard(axis)
            self._try(axis, self._meters[axis].start)

    def StateOne(self, axis: int) -> tuple[Any, str]:
        if axis in self._failed:
            return State.Fault, self._failed[axis]
        try:
            if axis in self._over or self._meters[axis].done():
                self._over.add(axis)
                return State.On, "measured"
        except (tango.DevFailed, RoiError) as exc:
            return State.Fault, _words(exc)
        return State.Moving, "waiting for the image"

    def ReadOne(self, axis: int) -> Any:
        meter = self._meters[axis]
        if self._synch.point_by_point:
            return meter.value()
        if axis in self._failed:
            return []
        return meter.new_values(axis in self._over)

    def StopOne(self, axis: int) -> None:
        self._over.add(axis)

    def AbortOne(self, axis: int) -> None:
        self._over.add(axis)


def _words(exc: tango.DevFailed | RoiError) -> str:
    return str(exc.args[0].desc if isinstance(exc, tango.DevFailed) else exc)
