"""The Detector Tango device: attributes, commands and states over an Acquisition. No logic."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tango
from numpy.typing import NDArray
from tango import AttReqType, AttrQuality, AttrWriteType, DevState
from tango.server import attribute, command, device_property

from tangods_detector import __version__
from tangods_detector.acquisition import Acquisition
from tangods_detector.filenames import check_pattern
from tangods_detector.hw import BACKENDS, base, load_backend
from tangods_detector.options import parse_options
from tangods_detector.receiver import open_receiver
from tangods_detector.settings import OverwritePolicy, Settings, TriggerMode, parse_metadata
from tangods_detector.snapshot import Request, Snapshot
from tangods_detector.states import BUSY, State
from tangods_receiver import imaging, tango_edge
from tangods_receiver.errors import ConfigError, DaqError

log = logging.getLogger(__name__)

STATES = {
    State.CONNECTING: DevState.INIT,
    State.OFFLINE: DevState.UNKNOWN,
    State.NO_RECEIVER: DevState.DISABLE,
    State.IDLE: DevState.ON,
    State.ARMING: DevState.MOVING,
    State.RUNNING: DevState.RUNNING,
    State.FINISHING: DevState.RUNNING,
    State.STOPPING: DevState.MOVING,
    State.FAULT: DevState.FAULT,
}
STATES_MEAN = {
    DevState.INIT: "The hardware is being connected.",
    DevState.ON: "Ready: settings can be changed, and Arm begins a series.",
    DevState.ALARM: "Ready, as ON; the quality of an attribute says what to look at, such as a temperature.",
    DevState.MOVING: "A series is being armed or stopped.",
    DevState.RUNNING: "A series is under way, until its file is closed.",
    DevState.FAULT: "The hardware, the receiver or a property is wrong; Status says what to do. Reset acknowledges it.",
    DevState.DISABLE: "The hardware is there, the receiver cannot be reached.",
    DevState.UNKNOWN: "The hardware cannot be reached; it is tried again all the time.",
}
MAX_SIDE = 32768  # rows and columns of LastImage
KEPT = "__kept"  # attribute property of settings that are lists; Tango itself memorises scalars only

NOISE = {"abs_change": 0.1, "archive_abs_change": 0.5}  # what readings may change without an event, as it comes

SHOWN: dict[str, Callable[[Detector], Any]] = {}  # attributes whose changes are pushed; filled by the class body
SET_POINTS: dict[str, Callable[[Detector], Any]] = {}  # those of them that can be written
MEMORISED: set[str] = set()  # those of them that Tango memorises


class Shown(attribute):
    """A read-only attribute that shows something of the snapshot."""

    def __init__(self, get: Callable[[Snapshot], Any], dtype: Any, label: str, doc: str, **more: Any) -> None:
        self._get = get
        super().__init__(lambda device: get(device._snapshot), dtype=dtype, label=label, doc=doc, **more)

    def __set_name__(self, owner: type, name: str) -> None:
        get = self._get
        SHOWN[name] = lambda device: get(device._snapshot)


class Setting(attribute):
    """A setting: read back as the hardware accepted it; refused while a series runs; memorised if it is a scalar."""

    def __init__(
        self,
        get: Callable[[Detector], Any],
        put: Callable[[Detector, Any], None],
        dtype: Any,
        label: str,
        doc: str,
        memorised: bool = True,
        **more: Any,
    ) -> None:
        self._get, self._put, self._memorised = get, put, memorised
        super().__init__(
            lambda device: get(device),
            fset=self._write,
            fisallowed=lambda device, request: device._may_change(request),
            access=AttrWriteType.READ_WRITE,
            dtype=dtype,
            label=label,
            doc=doc,
            memorized=memorised,
            hw_memorized=memorised,
            **more,
        )

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        SHOWN[name] = SET_POINTS[name] = self._get
        if self._memorised:
            MEMORISED.add(name)

    @property
    def _write(self) -> Callable[[Detector, Any], None]:
        def write(device: Detector, value: Any) -> None:
            with tango_edge.as_dev_failed(f"Detector.{self._name}"):
                self._put(device, value)
            device._hand_over()

        return write


def _of_hardware(
    field: str, dtype: Any, label: str, doc: str, convert: Callable[[Any], Any] = lambda value: value, **more: Any
) -> Setting:
    """A setting that the hardware has to accept."""
    return Setting(
        lambda device: getattr(device._settings, field),
        lambda device, value: device._change(**{field: convert(value)}),
        dtype,
        label,
        doc,
        **more,
    )


def _of_request(
    field: str, dtype: Any, label: str, doc: str, convert: Callable[[Any], Any] = lambda value: value, **more: Any
) -> Setting:
    """A setting that says what is recorded, not how."""
    return Setting(
        lambda device: getattr(device._request, field),
        lambda device, value: device._change_request(**{field: convert(value)}),
        dtype,
        label,
        doc,
        **more,
    )


def _count(get: Callable[[Snapshot], int], label: str, doc: str, **more: Any) -> Shown:
    return Shown(get, int, label, doc, format="%d", min_value=0, **more)


def _one_of(kind: Any, what: str) -> Callable[[str], Any]:
    """Text -> member of an enumeration; ConfigError lists what can be given."""

    def convert(text: str) -> Any:
        try:
            return kind(text.strip().upper())
        except ValueError:
            raise ConfigError(f"{what}: {text!r} is not one of {', '.join(member.value for member in kind)}") from None

    return convert


def _filename(text: str) -> str:
    check_pattern(text.strip())
    return text.strip()


class Detector(tango_edge.AlarmedDevice):
    """Area detector: set exposure, number of triggers and file name, Arm, and wait for ON."""

    # --- properties --------------------------------------------------------------------------------------------------

    Backend: str = device_property(
        default_value="",
        doc=f"Kind of detector: {', '.join(sorted(BACKENDS))}, or package.module:Class of one that is installed "
        "elsewhere. Must be set.",
    )
    BackendOptions = device_property(
        dtype=(str,),
        default_value=[],
        doc="How the detector is reached and set up, one `key = value` per line; the keys are in the page of the "
        "backend, resources/detectors/NAME.md. Lines that begin with # are comments.",
    )
    Receiver: str = device_property(
        default_value="",
        doc="Who writes the files: a StreamReceiver device such as b1/daq/receiver, or the http:// address of an "
        "engine. Must be set.",
    )
    ReceiverTokenFile: str = device_property(
        default_value="",
        doc="Where Receiver is an http:// address: file with the token that its POST needs, a copy of its "
        "http_token_file that this server alone can read. Empty: none is sent; Stop and Reset are then refused there.",
    )
    AllowOverwrite: bool = device_property(
        default_value=False, doc="True: OverwritePolicy OVERWRITE may replace existing files. False: nobody can."
    )
    FilenamePattern: str = device_property(
        default_value="",
        doc="For a DestinationFilename that does not begin with /: the whole path, with {name} for what was written, "
        "{number} for the next free number, {date} for today; such as /data/b1/{date}/{name}_{number:04d}.h5. "
        "Empty: such names count from the receiver's root directory.",
    )
    TriggerTimeout: float = device_property(
        default_value=0.0,
        doc="Seconds to wait for the next software or external trigger before the series ends in FAULT; 0: for ever.",
    )

    # --- settings ----------------------------------------------------------------------------------------------------

    ExposureTime = _of_hardware(
        "exposure_time",
        float,
        "Exposure time",
        "Exposure time of one frame. Reads back what the hardware accepted.",
        float,
        unit="s",
        format="%12.7f",
        min_value=1e-7,
        max_value=1e5,
    )
    FrameTime = _of_hardware(
        "frame_time",
        float,
        "Frame period",
        "Time from the beginning of one frame to the beginning of the next; 0: as fast as possible. "
        "Arm refuses a period shorter than ExposureTime plus LatencyTime.",
        float,
        unit="s",
        format="%12.7f",
        min_value=0.0,
        max_value=1e5,
    )
    FrameRate = Setting(
        lambda device: device._frame_rate(),
        lambda device, value: device._change(frame_time=1.0 / value if value else 0.0),
        float,
        "Frame rate",
        "FrameTime as a rate: writing it sets FrameTime, 0 means as fast as possible. Reads the rate that follows from "
        "FrameTime, ExposureTime and LatencyTime.",
        memorised=False,
        unit="Hz",
        format="%10.3f",
        min_value=0.0,
        max_value=1e7,
    )
    TriggerMode = Setting(
        lambda device: device._settings.trigger_mode.value,
        lambda device, value: device._change(trigger_mode=_one_of(TriggerMode, "TriggerMode")(value)),
        str,
        "Trigger mode",
        "Who starts exposures. INTERNAL: the detector itself. SOFTWARE: each SoftwareTrigger gives nFramesPerTrigger "
        "frames. EXTERNAL_SINGLE: one edge starts all. EXTERNAL_MULTI: each edge gives nFramesPerTrigger frames. "
        "EXTERNAL_GATE: each gate is one exposure. TriggerModes lists what this detector can.",
    )
    nTriggers = _of_hardware(
        "n_triggers",
        int,
        "Triggers",
        "Number of triggers of a series. A series has nTriggers x nFramesPerTrigger frames, in every mode.",
        int,
        format="%d",
        min_value=1,
        max_value=2**31 - 1,
    )
    nFramesPerTrigger = _of_hardware(
        "n_frames_per_trigger",
        int,
        "Frames per trigger",
        "Number of frames that follow each trigger.",
        int,
        format="%d",
        min_value=1,
        max_value=2**31 - 1,
    )
    DestinationFilename = _of_request(
        "filename",
        str,
        "File",
        "HDF5 file that the next series is written to, as the receiver's computer names it; empty: no file. {number} "
        "becomes the next free number ({number:04d} with leading zeros), {date} today. Not memorised. LastFilename "
        "says what it became.",
        _filename,
        memorised=False,
    )
    OverwritePolicy = Setting(
        lambda device: device._request.policy.value,
        lambda device, value: device._change_request(policy=_one_of(OverwritePolicy, "OverwritePolicy")(value)),
        str,
        "If the file exists",
        "What Arm does when the file exists. ABORT: it refuses. NEXT_NUMBER: a number is put behind the name. "
        "OVERWRITE: the file is replaced, where the property AllowOverwrite permits it.",
    )
    SaveRaw = _of_request(
        "save_raw", bool, "Save images", "False: no file although there is a file name; live view only.", bool
    )
    Label = _of_request("label", str, "Label", "Free text that is written into the file.")
    Metadata = Setting(
        lambda device: json.dumps(dict(device._request.metadata)),
        lambda device, value: device._change_request(metadata=parse_metadata(value)),
        str,
        "Metadata",
        'JSON object that is written into the file, such as {"sample": "A1"}.',
    )
    Rotation = _of_hardware(
        "rotation",
        int,
        "Rotation",
        "Rotation of the image, counter-clockwise, after the flips: 0, 90, 180 or 270.",
        int,
        unit="deg",
        format="%d",
    )
    Fliplr = _of_hardware("fliplr", bool, "Flip left-right", "Mirror the image: left becomes right.", bool)
    Flipud = _of_hardware("flipud", bool, "Flip up-down", "Mirror the image: top becomes bottom.", bool)
    BitDepth = _of_hardware(
        "bit_depth",
        int,
        "Bit depth",
        "Bits of a pixel; 0: the detector's default. Reads back what the hardware chose.",
        int,
        unit="bit",
        format="%d",
        min_value=0,
        max_value=64,
    )
    Binning = Setting(
        lambda device: list(device._settings.binning),
        lambda device, value: device._change_binning(value),
        (int,),
        "Binning",
        "Pixels that are added up: horizontal, vertical.",
        memorised=False,
        max_dim_x=2,
        format="%d",
    )
    Roi = Setting(
        lambda device: device._roi(),
        lambda device, value: device._change_roi(value),
        (int,),
        "Region of interest",
        "Part of the sensor that is read: x, y, width, height in unbinned pixels. 0, 0, 0, 0: all of it.",
        memorised=False,
        max_dim_x=4,
        unit="pixel",
        format="%d",
    )

    # --- what a series does ------------------------------------------------------------------------------------------

    nFramesExpected = _count(
        lambda s: s.expected, "Frames expected", "Frames of the running or last series; 0: until Stop, or none yet."
    )
    nFramesAcquired = _count(
        lambda s: s.acquired, "Frames acquired", "Frames of the running or last series that the detector has taken."
    )
    nFramesReceived = _count(
        lambda s: s.received,
        "Frames received",
        "Frames of the running or last series that the receiver has.",
    )
    nFramesWritten = _count(
        lambda s: s.written, "Frames written", "Frames of the running or last series that are in the file."
    )
    nFramesMissing = _count(
        lambda s: s.missing,
        "Frames missing",
        "Frames of the running or last series that are known to be lost. An alarm from 1 on.",
        max_alarm=1,
    )
    Progress = Shown(
        lambda s: s.progress,
        float,
        "Progress",
        "Part of the expected frames that the receiver has.",
        unit="%",
        format="%5.1f",
        min_value=0.0,
        max_value=100.0,
    )
    MeasuredRate = Shown(
        lambda s: s.rate,
        float,
        "Measured rate",
        "Frames per second: of the last second while a series runs, of the whole series after it.",
        unit="Hz",
        format="%10.2f",
        min_value=0.0,
    )
    LastFilename = Shown(
        lambda s: s.filename, str, "Last file", "Path that the running or last series is written to; empty: no file."
    )
    LastError = Shown(
        lambda s: s.last_error,
        str,
        "Last error",
        "Why the last series, or the hardware, failed, and what to do; empty when all is well.",
    )
    ReceiverState = Shown(
        lambda s: s.receiver_state,
        str,
        "Receiver",
        "State of the receiver: idle, running, error or unreachable.",
    )

    # --- what the detector is ----------------------------------------------------------------------------------------

    FrameShape = Shown(
        lambda s: list(s.shape),
        (int,),
        "Frame shape",
        "Rows and columns of an image with the present settings.",
        max_dim_x=2,
        unit="pixel",
        format="%d",
    )
    DataType = Shown(lambda s: s.dtype, str, "Data type", "NumPy name of the pixels' type with the present settings.")
    LatencyTime = Shown(
        lambda s: s.latency,
        float,
        "Latency",
        "Dead time between two frames: the shortest FrameTime is ExposureTime plus this.",
        unit="s",
        format="%12.7f",
        min_value=0.0,
    )
    TriggerModes = Shown(
        lambda s: list(s.trigger_modes),
        (str,),
        "Trigger modes",
        "What TriggerMode can be set to with this detector.",
        max_dim_x=16,
    )
    Endpoints = Shown(
        lambda s: list(s.endpoints),
        (str,),
        "Endpoints",
        "Where the image stream can be pulled from; the receiver's Endpoints must be these.",
        max_dim_x=64,
    )
    Model = Shown(lambda s: s.info.model if s.info else "", str, "Model", "What the hardware calls itself.")
    SerialNumber = Shown(
        lambda s: s.info.serial_number if s.info else "", str, "Serial number", "Serial number of the detector."
    )
    Firmware = Shown(
        lambda s: s.info.firmware if s.info else "", str, "Firmware", "Version of the detector's firmware or library."
    )
    PixelSize = Shown(
        lambda s: list(s.info.pixel_size) if s.info else [0.0, 0.0],
        (float,),
        "Pixel size",
        "Vertical and horizontal size of one unbinned pixel.",
        max_dim_x=2,
        unit="m",
        format="%11.4e",
    )
    SensorShape = Shown(
        lambda s: list(s.info.shape) if s.info else [0, 0],
        (int,),
        "Sensor shape",
        "Rows and columns of the whole sensor.",
        max_dim_x=2,
        unit="pixel",
        format="%d",
    )
    SensorMaterial = Shown(
        lambda s: s.info.sensor_material if s.info else "", str, "Sensor material", "Such as Si or CdTe."
    )
    SensorThickness = Shown(
        lambda s: s.info.sensor_thickness if s.info else 0.0,
        float,
        "Sensor thickness",
        "Thickness of the sensor; 0: not known.",
        unit="m",
        format="%11.4e",
        min_value=0.0,
    )

    @attribute(
        dtype=((np.float32,),),
        max_dim_x=MAX_SIDE,
        max_dim_y=MAX_SIDE,
        label="Last image",
        doc="Newest image that the receiver has, rows x columns, as float32 whatever the detector's type; where it has "
        "none of this series, the one that the detector itself keeps, if it does. Empty before the first. For a live "
        "view: read it some times a second, there are no events.",
    )
    def LastImage(self) -> NDArray[np.float32]:
        with tango_edge.as_dev_failed("Detector.LastImage"):
            picture = self._running().picture()
        if picture is None:
            return np.zeros((0, 0), np.float32)
        array = picture.array.reshape(-1, picture.array.shape[-1])
        return np.ascontiguousarray(array[:MAX_SIDE, :MAX_SIDE], np.float32)

    @attribute(
        dtype="DevEncoded",
        label="Last image, encoded",
        doc="Newest image that the receiver has, as LImA's VIDEO_IMAGE, for its viewers: a header of 32 bytes and "
        "pixels of the detector's type. Before the first: an image of no pixels with the number -1.",
    )
    def video_last_image(self) -> tuple[str, bytes]:
        with tango_edge.as_dev_failed("Detector.video_last_image"):
            return imaging.VIDEO_FORMAT, self._running().video_image()

    @attribute(
        dtype=int,
        format="%d",
        label="Last image number",
        doc="Number of the receiver's newest image in its series, from 0; -1: there is none yet.",
    )
    def LastImageNumber(self) -> int:
        with tango_edge.as_dev_failed("Detector.LastImageNumber"):
            return self._running().picture_number()

    # --- commands ----------------------------------------------------------------------------------------------------

    @command
    def Arm(self) -> None:
        """Begin a series: MOVING, RUNNING, at the end ON. What can be checked is checked and refused at once."""
        with tango_edge.as_dev_failed("Detector.Arm"):
            self._running().arm(self._whole_request())
        tango_edge.push(self, "State", DevState.MOVING)

    @command
    def Live(self) -> None:
        """Images for the live view, without a file, until Stop."""
        with tango_edge.as_dev_failed("Detector.Live"):
            self._running().live()
        tango_edge.push(self, "State", DevState.MOVING)

    @command
    def SoftwareTrigger(self) -> None:
        """One trigger, in TriggerMode SOFTWARE; refused while the frames of the last one are not all taken."""
        with tango_edge.as_dev_failed("Detector.SoftwareTrigger"):
            self._running().trigger()

    @command
    def Stop(self) -> None:
        """End the series and keep what came; allowed in every state, harmless when nothing runs."""
        with tango_edge.as_dev_failed("Detector.Stop"):
            if self._acquisition:
                self._acquisition.stop()

    @command
    def Abort(self) -> None:
        """End the series at once, whatever is still under way; allowed in every state."""
        with tango_edge.as_dev_failed("Detector.Abort"):
            if self._acquisition:
                self._acquisition.stop(abort=True)

    @command
    def Reset(self) -> None:
        """Acknowledge an error, of the receiver too, and leave FAULT; wrong properties are read again."""
        with tango_edge.as_dev_failed("Detector.Reset"):
            if self._acquisition:
                self._acquisition.reset()
            else:
                self._build()

    @command
    def RestartReceiver(self) -> None:
        """Let the receiver begin afresh: sockets and threads are replaced. Refused while a series runs."""
        with tango_edge.as_dev_failed("Detector.RestartReceiver"):
            self._running().restart_receiver()

    # --- life --------------------------------------------------------------------------------------------------------

    _acquisition: Acquisition | None = None
    _events: tango_edge.EventPusher | None = None
    _log: tango_edge.TangoLog | None = None
    _problem = ""  # why there is no acquisition
    _constructed = False
    _request: Request = Request()

    def init_device(self) -> None:
        """Also after Init and DevRestart. Returns at once and never fails: connecting goes on in a thread."""
        self._pushed: dict[str, Any] = {}
        self._handing_over = threading.Lock()
        self._request = Request()
        self._parameters: dict[str, base.Parameter] = {}
        self._set_once: set[str] = set()
        self._log = tango_edge.attach_log(self)
        self._events = tango_edge.EventPusher(self)
        tango_edge.announce(self, *SHOWN)
        self.add_version_info("tangods-detector", __version__)
        self._build()
        again = self._constructed  # after Init Tango sets what is memorised to what it was set to
        tango_edge.set_points(
            self, {name: get(self) for name, get in SET_POINTS.items() if not (again and name in MEMORISED)}
        )
        self._events.start()
        if self._constructed:
            self.initialize_dynamic_attributes()

    def delete_device(self) -> None:
        """Hardware stopped, file closed, threads ended: Init, DevRestart, Kill and SIGTERM come here. Bounded."""
        tango_edge.ending()
        if self._events:
            self._events.close()
        acquisition, self._acquisition = self._acquisition, None
        if acquisition:
            acquisition.__exit__()
        if self._log:
            tango_edge.detach_log(self._log)
        super().delete_device()

    def _build(self) -> None:
        """Read the properties and start the acquisition; what is wrong becomes FAULT and a sentence."""
        try:
            self.get_device_properties()
            backend = self._make_backend()
            self._parameters = {p.name: p for p in backend.parameters}
            receiver = open_receiver(self.Receiver, self.ReceiverTokenFile.strip()) if _given(self.Receiver) else None
            acquisition = Acquisition(
                backend,
                receiver,
                allow_overwrite=bool(self.AllowOverwrite),
                trigger_timeout=float(self.TriggerTimeout),
                changed=lambda snapshot: self._hand_over(),
            )
        except (DaqError, ValueError) as exc:  # ValueError: a property that is not the number it should be
            log.error("not started: %s", exc)
            self._problem = f"{exc}. Correct the properties, then give the command Init"
            self._snapshot_without = Snapshot(state=State.FAULT, status=self._problem, last_error=self._problem)
            self._hand_over()
            return
        for name, values in self._kept().items():
            try:
                acquisition.change(**{name: values})
            except ConfigError as exc:
                log.warning("%s", exc)
        self._acquisition = acquisition.__enter__()

    def _make_backend(self) -> base.Backend:
        if not _given(self.Backend):
            raise ConfigError(f"Backend: not set; give one of {', '.join(sorted(BACKENDS))} or package.module:Class")
        kind = load_backend(self.Backend)
        try:
            return kind(parse_options(kind.Options, [line for line in self.BackendOptions if _given(line)]))
        except ConfigError as exc:
            raise ConfigError(f"BackendOptions: {exc}") from exc

    def initialize_dynamic_attributes(self) -> None:
        """The backend's own parameters."""
        self._constructed = True
        for p in self._parameters.values():
            limits = {"min_value": p.min_value, "max_value": p.max_value, "max_alarm": p.max_alarm}
            limits.update(NOISE if p.max_alarm is not None else {})
            self.add_attribute(
                attribute(
                    name=p.name,
                    label=p.name,
                    dtype=p.dtype,
                    access=AttrWriteType.READ_WRITE if p.set else AttrWriteType.READ,
                    fget=self._read_parameter,
                    fset=self._write_parameter if p.set else None,
                    fisallowed=self._is_parameter_allowed,
                    display_level=tango.DispLevel.OPERATOR if p.max_alarm else tango.DispLevel.EXPERT,
                    doc=p.doc,
                    unit=p.unit,
                    format=p.format,
                    **{key: value for key, value in limits.items() if value is not None},
                )
            )
        tango_edge.announce(self, *(p.name for p in self._parameters.values() if p.max_alarm is not None), noisy=True)

    # --- between Tango and the acquisition ---------------------------------------------------------------------------

    _snapshot_without = Snapshot(state=State.FAULT, status="not started")

    @property
    def _snapshot(self) -> Snapshot:
        return self._acquisition.snapshot if self._acquisition else self._snapshot_without

    @property
    def _settings(self) -> Settings:
        return self._acquisition.settings if self._acquisition else self._snapshot_without.settings

    def _running(self) -> Acquisition:
        if self._acquisition is None:
            raise ConfigError(self._problem)
        return self._acquisition

    def _change(self, **values: Any) -> None:
        self._running().change(**values)

    def _change_request(self, **values: Any) -> None:
        self._request = replace(self._request, **values)

    def _whole_request(self) -> Request:
        return replace(self._request, pattern=self.FilenamePattern.strip() if _given(self.FilenamePattern) else "")

    def _frame_rate(self) -> float:
        settings = self._settings
        return 1.0 / max(settings.frame_time, settings.exposure_time + self._snapshot.latency)

    def _may_change(self, request: AttReqType) -> bool:
        return request == AttReqType.READ_REQ or self._snapshot.state not in BUSY

    def _roi(self) -> list[int]:
        info = self._snapshot.info
        return list(self._settings.roi or ((0, 0, info.shape[1], info.shape[0]) if info else (0, 0, 0, 0)))

    def _change_roi(self, value: Any) -> None:
        numbers = tuple(int(n) for n in value)
        if len(numbers) != 4:
            raise ConfigError(f"Roi: {len(numbers)} numbers; give x, y, width, height")
        self._change(roi=numbers if any(numbers) else None)
        self._keep("Roi", list(numbers))

    def _change_binning(self, value: Any) -> None:
        numbers = tuple(int(n) for n in value)
        if len(numbers) != 2:
            raise ConfigError(f"Binning: {len(numbers)} numbers; give horizontal, vertical")
        self._change(binning=numbers)
        self._keep("Binning", list(numbers))

    # Lists are memorised here, because Tango memorises scalars only.

    def _keep(self, name: str, numbers: list[int]) -> None:
        try:
            database = tango.Util.instance().get_database()
            database.put_device_attribute_property(self.get_name(), {name: {KEPT: [str(n) for n in numbers]}})
        except tango.DevFailed as exc:
            log.warning("%s cannot be memorised: %s", name, exc.args[0].desc)

    def _kept(self) -> dict[str, Any]:
        try:
            database = tango.Util.instance().get_database()
            found = database.get_device_attribute_property(self.get_name(), ["Roi", "Binning"])
            roi, binning = ([int(n) for n in found.get(name, {}).get(KEPT, [])] for name in ("Roi", "Binning"))
        except (tango.DevFailed, ValueError) as exc:
            log.warning("Roi and Binning are not restored: %s", exc)
            return {}
        kept: dict[str, Any] = {}
        if len(roi) == 4 and any(roi):
            kept["roi"] = tuple(roi)
        if len(binning) == 2:
            kept["binning"] = tuple(binning)
        return kept

    # The backend's own parameters.

    def _read_parameter(self, attr: tango.Attribute) -> Any:
        name = attr.get_name()
        p = self._parameters.get(name)
        with tango_edge.as_dev_failed(f"Detector.{name}"):
            if p is None:
                raise ConfigError(f"{name}: the backend that is now set has no such parameter; DevRestart the device")
            if p.max_alarm is None:
                value = self._running().call(p.get, name)
                if p.set and name not in self._set_once:  # what panels show until somebody sets it
                    self._set_once.add(name)
                    tango_edge.set_points(self, {name: value})
                return value
            value = self._snapshot.readings.get(name)
        if value is None:
            return p.dtype(), 0.0, AttrQuality.ATTR_INVALID
        return value

    def _write_parameter(self, attr: tango.WAttribute) -> None:
        name, value = attr.get_name(), attr.get_write_value()
        p = self._parameters.get(name)
        with tango_edge.as_dev_failed(f"Detector.{name}"):
            if p is None or p.set is None:
                raise ConfigError(f"{name}: cannot be set with this backend")
            put = p.set
            self._set_once.add(name)
            self._running().call(lambda backend: put(backend, value), name, p.writable_while_running)

    def _is_parameter_allowed(self, request: AttReqType) -> bool:
        return True

    # --- states and events -------------------------------------------------------------------------------------------

    def show(self) -> None:
        """State and Status are those of the series."""
        snapshot = self._snapshot
        self.set_state(STATES[snapshot.state])
        self.set_status(snapshot.status or snapshot.state.value)

    def _hand_over(self) -> None:
        """Give what is new to the pusher, which limits the rate; from any thread."""
        events = self._events
        if events is None:
            return
        with self._handing_over:  # so that an older value never comes after a newer one
            snapshot = self._snapshot
            if self._pushed.get("State") != (state := (snapshot.state, snapshot.status)):
                self._pushed["State"] = state
                events.push_state()
            for name, value in [*((name, get(self)) for name, get in SHOWN.items()), *snapshot.readings.items()]:
                if self._pushed.get(name) != value:
                    self._pushed[name] = value
                    events.push(name, value)


def _given(text: Any) -> bool:
    """Jive's wizard may store the word None where nothing was meant."""
    return bool(text) and str(text).strip() not in ("", "None")


def main() -> None:
    """Server `Detector INSTANCE`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads of bitshuffle that wait must not take the processor
    tango_edge.serve(Detector)


if __name__ == "__main__":
    main()
