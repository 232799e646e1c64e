"""Sardana TwoD controller of standard Detector devices: one axis per detector, a whole scan is one series, one file."""

from __future__ import annotations

import threading
import time
from typing import Any

import tango
from sardana import DataAccess, State
from sardana.pool import AcqSynch
from sardana.pool.controller import (
    Access,
    DefaultValue,
    Description,
    FGet,
    FSet,
    Memorize,
    Memorized,
    NotMemorized,
    Referable,
    TwoDController,
    Type,
)

from sardana_ctrl import pool
from sardana_ctrl.channel import Channel, ChannelError, wait_all_ready
from sardana_ctrl.plan import Request, Synch
from sardana_ctrl.references import DATASET

STATES = {"On": State.On, "Moving": State.Moving, "Fault": State.Fault}
SOON = 2.0  # s that a prepare waits for all detectors: clients of a measurement group give up after 3 s
CLOSED = 2.5  # s that a stop waits for the files to be closed, for the same reason
REFERENCE_MODES = ("AUTO", "FRAME", "SERIES")


class StandardDetectorTwoDCtrl(TwoDController, Referable):
    """Area detectors through their Detector devices: images stay in the detector's file, scans get references."""

    gender = "2D controller"
    model = "Detector"
    organization = "tangods-detector"
    MaxDevice = 64
    default_timer = 1

    ctrl_properties = {
        "Devices": {
            Type: (str,),
            Description: "Detector devices, one per axis: the first is axis 1. Such as b1/dia/det1",
        },
        "Dataset": {
            Type: str,
            Description: "Where the images are in the files",
            DefaultValue: DATASET,
        },
        "ArmTimeout": {
            Type: float,
            Description: "Seconds that a detector may take to arm",
            DefaultValue: 120.0,
        },
    }
    axis_attributes = {
        "DeviceName": {
            Type: str,
            Access: DataAccess.ReadOnly,
            Description: "The Detector device",
            FGet: "getDeviceName",
        },
        "Filename": {
            Type: str,
            Access: DataAccess.ReadWrite,
            Description: "File of the next scan, before ValueRefPattern; empty: ValueRefPattern. May have {channel}, "
            "{index} (series armed with this name), {date}, {number} (next that is free). Hooks of scans set it",
            FGet: "getFilename",
            FSet: "setFilename",
            Memorize: NotMemorized,
        },
        "FramesPerPoint": {
            Type: int,
            Access: DataAccess.ReadWrite,
            Description: "Frames of each point; they share the integration time",
            DefaultValue: 1,
            FGet: "getFramesPerPoint",
            FSet: "setFramesPerPoint",
            Memorize: Memorized,
        },
        "ReferenceMode": {
            Type: str,
            Access: DataAccess.ReadWrite,
            Description: "FRAME: a reference for each point. SERIES: one for all points of a start, for fast fly "
            "scans. AUTO: SERIES above 500 points a second",
            DefaultValue: "AUTO",
            FGet: "getReferenceMode",
            FSet: "setReferenceMode",
            Memorize: Memorized,
        },
        "MissingFrames": {
            Type: int,
            Access: DataAccess.ReadOnly,
            Description: "Frames of the last series that were lost",
            FGet: "getMissingFrames",
        },
    }

    def __init__(self, inst: str, props: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(inst, props, *args, **kwargs)
        devices = [self.Devices] if isinstance(self.Devices, str) else list(self.Devices)
        self._devices = [device.strip() for device in devices if device.strip()]
        self._channels: dict[int, Channel] = {}
        self._synch = Synch.SOFTWARE_TRIGGER  # of the next prepare; each channel has its own
        self._told: list[int] = []  # axes that a measurement group spoke of before it prepared
        self._starting: list[int] = []
        self._stopping: list[int] = []
        self._turn = 0  # counts prepares
        self._turns: dict[int, int] = {}  # axis -> the prepare that it was part of last

    # --- axes --------------------------------------------------------------------------------------------------------

    def AddDevice(self, axis: int) -> None:
        if not 1 <= axis <= len(self._devices):
            raise ValueError(
                f"axis {axis}: the property Devices of controller {self.GetName()} names {len(self._devices)} "
                "detectors; add one there, then reload the controller or restart the Pool"
            )
        channel = Channel(self._devices[axis - 1], lambda: str(self.GetAxisName(axis)), self.Dataset)
        self._channels[axis] = channel
        channel.disarm_leftover()

    def DeleteDevice(self, axis: int) -> None:
        self._channels.pop(axis, None)

    def getDeviceName(self, axis: int) -> str:
        return self._channels[axis].device

    def getFilename(self, axis: int) -> str:
        return self._channels[axis].filename

    def setFilename(self, axis: int, value: str) -> None:
        self._channels[axis].filename = value.strip()

    def getFramesPerPoint(self, axis: int) -> int:
        return self._channels[axis].frames_per_point

    def setFramesPerPoint(self, axis: int, value: int) -> None:
        if value < 1:
            raise ValueError(f"FramesPerPoint: {value}; give 1 or more")
        self._channels[axis].frames_per_point = int(value)

    def getReferenceMode(self, axis: int) -> str:
        return self._channels[axis].reference_mode

    def setReferenceMode(self, axis: int, value: str) -> None:
        mode = value.strip().upper()
        if mode not in REFERENCE_MODES:
            raise ValueError(f"ReferenceMode: {value!r} is not one of {', '.join(REFERENCE_MODES)}")
        self._channels[axis].reference_mode = mode

    def getMissingFrames(self, axis: int) -> int:
        return self._channels[axis].missing()

    def GetAxisPar(self, axis: int, parameter: str) -> Any:
        if parameter == "shape":
            return self._channels[axis].shape()
        return super().GetAxisPar(axis, parameter)

    def SetAxisPar(self, axis: int, parameter: str, value: Any) -> None:
        channel = self._channels[axis]
        if parameter == "value_ref_enabled":
            channel.refs_enabled = bool(value)
            if axis not in self._told:
                self._told.append(axis)
        elif parameter == "value_ref_pattern":
            channel.pattern = (value or "").strip()

    def GetCtrlPar(self, parameter: str) -> Any:
        if parameter == "latency_time":
            return max(self._latencies(), default=0.0)
        return super().GetCtrlPar(parameter)

    def _latencies(self) -> list[float]:
        """Of the detectors that answer: one that is away must not stop the others, prepare says it where it counts."""
        found = []
        for channel in self._channels.values():
            try:
                found.append(channel.latency())
            except ChannelError as exc:
                self._log.debug("%s", exc)
        return found

    def SetCtrlPar(self, parameter: str, value: Any) -> None:
        if parameter == "synchronization":
            self._synch = Synch(int(value))
        else:
            super().SetCtrlPar(parameter, value)

    # --- a measurement -----------------------------------------------------------------------------------------------

    def PrepareOne(self, axis: int, value: float, repetitions: int, latency: float, nb_starts: int) -> None:
        """`axis` is the group's timer; all enabled detectors of the group are prepared, and wait side by side."""
        if self._synch is Synch.SOFTWARE_START:
            nb_starts = pool.starts_of_group(self, nb_starts)
        axes, group = self._who_takes_part(axis)
        self._told = []
        self._turn += 1
        self._turns.update(dict.fromkeys(axes, self._turn))
        try:
            for number in axes:
                channel = self._channels[number]
                channel.prepare(Request(self._synch, value, repetitions, latency, nb_starts, channel.frames_per_point))
            wait_all_ready((self._channels[number] for number in axes), SOON)
            for number in axes:
                pool.refresh(self, number, alone=group is None)
        except ChannelError:
            self._stop_all(axes)
            raise
        if group is not None and self._synch.point_by_point and nb_starts > 1:
            threading.Thread(target=self._end_leftover, args=(self._turn, group, axes), daemon=True).start()

    def _end_leftover(self, turn: int, group: Any, axes: list[int]) -> None:
        """Sardana leaves out software triggers that come while a point is not finished, so that fewer come than were
        prepared: when the group is over, the detector must not wait for the rest."""

        def ours() -> list[int]:
            return [n for n in axes if n in self._channels and self._turns[n] == turn]

        def armed() -> bool:
            return any(self._channels[n].busy for n in ours())

        with tango.EnsureOmniThread():
            if pool.wait_over(group, armed):
                self._stop_all(ours())

    def _who_takes_part(self, timer: int) -> tuple[list[int], Any]:
        """Axes, and their measurement group; None: a channel is counted on its own. A controller is not told of that
        and still has the group of before; but a group speaks of all its channels before it prepares."""
        axes = pool.axes_in_group(self)
        if timer in axes and set(axes) <= set(self._told):
            return axes, pool.group_of(self)
        return sorted(set(self._told) & set(self._channels)) or [timer], None  # the timer may be another detector

    def _stop_all(self, axes: list[int]) -> None:
        for number in axes:
            try:
                self._channels[number].stop()
            except ChannelError as exc:
                self._log.warning("%s", exc)

    def LoadOne(self, axis: int, value: float, repetitions: int, latency: float) -> None:
        pass  # all was said when it was prepared

    def PreStartAll(self) -> None:
        self._starting = []

    def PreStartOne(self, axis: int, value: float | None = None) -> bool:
        channel = self._channels[axis]
        try:
            if not channel.wait_ready(self.ArmTimeout):
                raise ChannelError(f"{channel.name}: not armed within {self.ArmTimeout:g} s")
        except ChannelError as exc:
            if not channel.synch.by_software:
                raise
            channel.fail(str(exc))  # Sardana would swallow it here, and its macro wait for ever
        return True

    def StartOne(self, axis: int, value: float | None = None) -> None:
        self._starting.append(axis)

    def StartAll(self) -> None:
        for axis in self._starting:
            self._channels[axis].start()

    def PreStateAll(self) -> None:
        """The Pool of our configuration asks every millisecond, for the sake of step scans; the devices have other
        things to do, too."""
        time.sleep(min((self._channels[axis].rest() for axis in self._starting), default=0.0))

    def StateOne(self, axis: int) -> tuple[Any, str]:
        state, status = self._channels[axis].state()
        return STATES[state], status

    def ReadOne(self, axis: int) -> Any:
        if self._channels[axis].synch.point_by_point:
            return self._channels[axis].image()
        return []  # images of fly scans never go through Sardana

    def RefOne(self, axis: int) -> Any:
        if self._channels[axis].synch.point_by_point:
            return self._channels[axis].reference()
        return self._channels[axis].new_references()

    # Sardana reads the state right after a stop or an abort and fires what it read, however late (PoolDevice.Stop and
    # Abort: get_state(cache=False, propagate=2), without the lock of the group). Where the acquisition has ended in
    # between, a Moving that is old comes after the On; no other event follows, and the macro waits for it for ever.
    # So they return when the detectors are idle: nobody can read Moving then.

    def StopOne(self, axis: int) -> None:
        self._channels[axis].stop()
        self._stopping.append(axis)

    def StopAll(self) -> None:
        axes, self._stopping = self._stopping, []
        end = time.monotonic() + CLOSED
        for axis in axes:
            self._channels[axis].wait_idle(end - time.monotonic())

    def AbortOne(self, axis: int) -> None:
        self._channels[axis].stop(abort=True)
        self._stopping.append(axis)

    def AbortAll(self) -> None:
        self.StopAll()


assert set(Synch) == {Synch(int(member)) for member in AcqSynch}, "this Sardana has other synchronizations"
