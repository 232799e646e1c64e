"""Sardana macros for standard Detector devices: information, single exposures, live view, and what scans need."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import tango
from sardana.macroserver.macro import Hookable, Macro, Optional, Type
from sardana.macroserver.macros.standard import uct
from sardana.macroserver.msexception import UnknownEnv
from taurus import tauruscustomsettings

from sardana_ctrl import naming

# Taurus leaves out an event that is older than a value read since, and here that is the last one. When a fly scan is
# aborted, Sardana reads the state of the measurement group anew (scan/gscan.py, CTScan: it asks only whether the macro
# was stopped) while its abort waits, without a limit, for the event that says the same (PoolElement.abort: waitReady).
# Where the reading came first, the event was left out, and the Door stayed RUNNING for ever: about once in twenty
# aborts. The setting is a public one of Taurus, and counts for this MacroServer.
tauruscustomsettings.FILTER_OLD_TANGO_EVENTS = False

__all__ = ["det_dark", "det_expose", "det_info", "det_live", "det_postscan", "det_prescan", "det_setup", "det_stop"]

BUSY = (tango.DevState.RUNNING, tango.DevState.MOVING)
HOOKS = {"det_prescan": "pre-scan", "det_postscan": "post-scan"}
RECORDER = "DetectorScanRecorder"
PATTERN = "DetectorFilePattern"  # environment variables
MAKE_DIRECTORIES = "DetectorMakeDirectories"
SLOW = 60000  # ms that a measurement group may take to prepare slow detectors
SHOWN = ["ExposureTime", "LatencyTime", "FrameShape", "DataType", "TriggerModes"]
SHOWN += ["nFramesExpected", "nFramesWritten", "nFramesMissing", "LastFilename", "LastError"]
ENDED = 15.0  # s for a stopped detector to close its file

DETECTOR = [
    "detector",
    Type.ExpChannel,
    Optional,
    "Channel of a detector (default: all detectors of the active measurement group)",
]


class Detector:
    """A channel of StandardDetectorTwoDCtrl, and the Detector device behind it."""

    def __init__(self, channel: Any) -> None:
        self.name: str = channel.getName()
        self.channel = tango.DeviceProxy(channel.getFullName())
        self.device = tango.DeviceProxy(self.channel.read_attribute("DeviceName").value)

    @property
    def busy(self) -> bool:
        return self.device.state() in BUSY

    def words(self) -> str:
        return f"{self.name}: {self.device.state()}: {self.device.status()}"


class _Detectors(Macro):
    """What the macros have in common."""

    def kept(self, name: str, default: Any = None) -> Any:
        try:
            return self.getEnv(name)
        except UnknownEnv:
            return default

    def group(self) -> Any:
        """The active measurement group; RuntimeError says how to choose one."""
        name = self.kept("ActiveMntGrp")
        group = self.getMeasurementGroup(name) if name else None
        if group is None:
            raise RuntimeError("no active measurement group: senv ActiveMntGrp NAME")
        return group

    def detectors(self, channel: Any = None) -> list[Detector]:
        """All enabled detectors of the active group, or the one named. RuntimeError: there is none."""
        if channel is not None:
            found = [Detector(channel)] if _is_detector(channel) else []
            if not found:
                raise RuntimeError(f"{channel.getName()} is no channel of a StandardDetectorTwoDCtrl")
            return found
        found = list(self.of_group(self.group()))
        if not found:
            raise RuntimeError("the active measurement group has no detector that is enabled")
        return found

    def of_group(self, group: Any) -> Iterator[Detector]:
        for info in group.getChannelsEnabledInfo():
            channel = self.getExpChannel(info.name)
            if channel is not None and _is_detector(channel):
                yield Detector(channel)

    def until_idle(self, detectors: list[Detector], limit: float = float("inf")) -> None:
        """Wait; RuntimeError has what a detector says that did not end well."""
        end = time.monotonic() + limit
        while any(detector.busy for detector in detectors):
            self.checkPoint()
            if time.monotonic() > end:
                raise RuntimeError("; ".join(d.words() for d in detectors if d.busy))
            time.sleep(0.02)
        bad = [d for d in detectors if d.device.state() not in (tango.DevState.ON, tango.DevState.ALARM)]
        if bad:
            raise RuntimeError("; ".join(detector.words() for detector in bad))


class Stopper:
    """What a Door stops with a scan besides its motors and its measurement group: the detectors themselves. Sardana
    refuses to abort a group whose state it does not know yet, and then one that was just armed would stay so."""

    def __init__(self, detectors: list[Detector]) -> None:
        self._detectors = detectors

    def __str__(self) -> str:
        return ", ".join(detector.device.dev_name() for detector in self._detectors)

    def stop(self) -> None:
        for detector in self._detectors:
            _quietly(detector.device.command_inout, "Stop")
        for detector in self._detectors:  # no hook comes after an abort; the next file has another name
            _quietly(detector.channel.write_attribute, "Filename", "")

    abort = stop


def _is_detector(channel: Any) -> bool:
    try:
        attributes = tango.DeviceProxy(channel.getFullName()).get_attribute_list()
        return {"DeviceName", "Filename", "MissingFrames"} <= set(attributes)
    except tango.DevFailed:
        return False


# --- for users ------------------------------------------------------------------------------------------------------


class det_info(_Detectors):
    """Shows what a detector is, what it does, and what it wrote last. The result is its state."""

    param_def = [DETECTOR]
    result_def = [["state", Type.String, None, "State of the detector (of the first, if there are several)"]]

    def run(self, detector: Any) -> str:
        states = []
        for one in self.detectors(detector):
            try:
                state, status = str(one.device.state()), one.device.status()
                read = {a.name: a.value for a in one.device.read_attributes(SHOWN)}
            except tango.DevFailed as exc:
                self.error("%s: %s", one.name, exc.args[0].desc)
                states.append("UNKNOWN")
                continue
            states.append(state)
            rows, columns = read["FrameShape"]
            self.output("%s  %s  %s", one.name, one.device.dev_name(), state)
            self.output("  status    %s", status)
            self.output("  image     %d x %d %s", rows, columns, read["DataType"])
            self.output("  exposure  %g s, dead time %g s", read["ExposureTime"], read["LatencyTime"])
            self.output("  triggers  %s", " ".join(read["TriggerModes"]))
            written = f"{read['nFramesWritten']} of {read['nFramesExpected']} written"
            self.output("  last      %s, %d missing: %s", written, read["nFramesMissing"], read["LastFilename"] or "-")
            if read["LastError"]:
                self.warning("  error     %s", read["LastError"])
        return states[0]


class _Exposing(_Detectors):
    """Takes images with the devices themselves, without a scan."""

    label = ""

    def expose(self, detectors: list[Detector], exposure: float, n: int, filename: str) -> list[str]:
        """Files written; "" where none was."""
        self._running = detectors
        several = len(detectors) > 1
        for one in detectors:
            wanted = _file_of(filename, one.name, several)
            for name, value in (
                ("ExposureTime", exposure),
                ("FrameTime", 0.0),
                ("TriggerMode", "INTERNAL"),
                ("nTriggers", 1),
                ("nFramesPerTrigger", n),
                ("DestinationFilename", wanted),
            ):
                one.device.write_attribute(name, value)
        labels = [one.device.read_attribute("Label").value for one in detectors]
        try:
            for one in detectors:
                if self.label:
                    one.device.write_attribute("Label", self.label)
                one.device.command_inout("Arm")
            self.until_idle(detectors)
        finally:
            if self.label:
                for one, label in zip(detectors, labels, strict=True):
                    _quietly(one.device.write_attribute, "Label", label)
        files = [str(one.device.read_attribute("LastFilename").value) for one in detectors]
        for one, path in zip(detectors, files, strict=True):
            lost = one.device.read_attribute("nFramesMissing").value
            self.output("%s: %d frames of %g s in %s", one.name, n - lost, exposure, path or "no file")
            if lost:
                self.warning("%s: %d frames are missing", one.name, lost)
        return files

    def on_stop(self) -> None:
        for one in getattr(self, "_running", []):
            _quietly(one.device.command_inout, "Stop")

    def hooked(self, place: str) -> None:
        for hook in self.getHooks(place):
            hook()


class det_expose(_Exposing, Hookable):
    """Takes n images of t seconds, each as soon as the one before is read out. A file name counts from the receiver's
    root unless it begins with /; it may have {number} (next that is free) and {date}. The result is the file."""

    hints = {"allowsHooks": ("pre-acq", "post-acq")}
    param_def = [
        ["n", Type.Integer, 1, "Number of images"],
        ["t", Type.Float, 1.0, "Exposure time of each, s"],
        ["file", Type.String, "", "File (default: none, live view only)"],
        DETECTOR,
    ]
    result_def = [["file", Type.String, None, "What was written (of the first detector); empty: nothing"]]

    def run(self, n: int, t: float, file: str, detector: Any) -> str:
        detectors = self.detectors(detector)
        self.hooked("pre-acq")
        files = self.expose(detectors, t, n, file)
        self.hooked("post-acq")
        return files[0]


class det_dark(_Exposing, Hookable):
    """Takes n images of t seconds that are labelled dark, into ScanDir. Close the shutter in a pre-acq hook and open it
    in post-acq. The result is the file, which is also put into the environment variable DetectorDark."""

    hints = {"allowsHooks": ("pre-acq", "post-acq")}
    param_def = [
        ["n", Type.Integer, 10, "Number of images"],
        ["t", Type.Float, 1.0, "Exposure time of each, s"],
        DETECTOR,
    ]
    result_def = [["file", Type.String, None, "What was written (of the first detector)"]]
    label = "dark"

    def run(self, n: int, t: float, detector: Any) -> str:
        detectors = self.detectors(detector)
        folder = self.kept("ScanDir")
        if not folder:
            raise RuntimeError("no directory for the dark images: senv ScanDir DIRECTORY")
        self.hooked("pre-acq")
        try:
            files = self.expose(detectors, t, n, os.path.join(folder, "dark_{date}_{number:03d}.h5"))
        finally:
            self.hooked("post-acq")
        self.setEnv("DetectorDark", files[0])
        return files[0]


class det_live(_Detectors):
    """Images for the live view, without a file, until det_stop or the next scan."""

    param_def = [["t", Type.Float, 0.1, "Exposure time, s"], DETECTOR]

    def run(self, t: float, detector: Any) -> None:
        for one in self.detectors(detector):
            one.device.write_attribute("ExposureTime", t)
            one.device.write_attribute("FrameTime", 0.0)
            one.device.command_inout("Live")
            self.output("%s: live, det_stop ends it", one.name)


class det_stop(_Detectors):
    """Ends what a detector does; images that came are kept."""

    param_def = [DETECTOR]

    def run(self, detector: Any) -> None:
        detectors = self.detectors(detector)
        for one in detectors:
            one.device.command_inout("Stop")
        self.until_idle(detectors, ENDED)
        for one in detectors:
            self.output("%s: %s", one.name, one.device.status())


class det_uct(uct):
    """Counts like uct on the active measurement group, and shows numbers while they change. uct itself gives up where
    there is an image among them."""

    def run(self, integ_time: float, countable_elem: Any) -> None:
        super().run(integ_time, countable_elem)
        for [name], channel, [value] in zip(self.names, self.channels, self.values, strict=True):
            if value is None:
                reference = tango.DeviceProxy(channel.getFullName()).read_attribute("ValueRef").value
                self.output("%12s  %s", name, reference)

    def printAllValues(self) -> None:
        shown = [
            (name[0], value[0]) for name, value in zip(self.names, self.values, strict=True) if value[0] is not None
        ]
        self.outputBlock([f"{name:>12}  {getattr(value, 'magnitude', value):.6g}" for name, value in shown])
        self.flushOutput()


class det_setup(_Detectors):
    """Makes this Door ready to scan with the detectors of the active measurement group: value references, the recorder,
    and hooks that name the files. Once; Sardana remembers it."""

    def run(self) -> None:
        group = self.group()
        group.getDeviceProxy().set_timeout_millis(SLOW)
        detectors = self.detectors()
        for one in detectors:
            if not all(group.getValueRefEnabled(one.name).values()):
                group.setValueRefEnabled(True, one.name)
            self.output("%s: scans refer to images in files of the detector", one.name)
        self.setEnv("ScanRecorder", [RECORDER])
        hooks = [(name, list(places)) for name, places in self.kept("_GeneralHooks", [])]
        for name, place in HOOKS.items():
            if not any(name == known and place in places for known, places in hooks):
                hooks.append((name, [place]))
        self.setEnv("_GeneralHooks", hooks)
        self.output("files: %s", self.kept(PATTERN, naming.SCAN_PATTERN))


# --- hooks of scans -------------------------------------------------------------------------------------------------


class det_prescan(_Detectors):
    """Hook of scans (pre-scan): gives each detector the name of its file, from ScanDir, ScanFile and ScanID.

    Set another pattern with senv DetectorFilePattern; it may have {ScanDir} {ScanFile} {ScanID} {channel} {index}
    {number} {date}. Missing directories are made unless DetectorMakeDirectories is False."""

    def run(self) -> None:
        group = self.group()
        group.getDeviceProxy().set_timeout_millis(SLOW)
        detectors = list(self.of_group(group))
        plain = [one.name for one in detectors if not all(group.getValueRefEnabled(one.name).values())]
        if plain:
            raise RuntimeError(
                f"{', '.join(plain)}: value references are off, so that images would go through Sardana one by one: "
                "give the macro det_setup"
            )
        scan = self.getParentMacro()
        if scan is not None and detectors:
            scan.addObj(Stopper(detectors))
        folder, file = self.kept("ScanDir"), self.kept("ScanFile")
        if not folder or not file:
            for one in detectors:
                one.channel.write_attribute("Filename", "")
            return  # nothing is kept of this scan; the channels' own ValueRefPattern counts
        first = file if isinstance(file, str) else file[0]
        pattern, number = self.kept(PATTERN, naming.SCAN_PATTERN), self.kept("ScanID", 0)
        for one in detectors:
            name = naming.for_scan(pattern, folder, first, number, one.name)
            self._make_directory(os.path.dirname(name))
            one.channel.write_attribute("Filename", name)

    def _make_directory(self, folder: str) -> None:
        if "{" in folder or not self.kept(MAKE_DIRECTORIES, True) or os.path.isdir(folder):
            return
        os.makedirs(folder, exist_ok=True)
        self.info("made %s", folder)


class det_postscan(_Detectors):
    """Hook of scans (post-scan): ends a scan with the words of a detector that failed, and leaves none armed when it
    was broken off."""

    def run(self) -> None:
        scan = self.getParentMacro()
        broken_off = scan is not None and (scan.isStopped() or scan.isAborted())
        failed = []
        for one in self.of_group(self.group()):
            one.channel.write_attribute("Filename", "")
            state, status = one.device.state(), one.device.status()
            if state in BUSY:
                one.channel.command_inout("Stop")
                self.info("%s: was still armed and is stopped", one.name)
            elif state not in (tango.DevState.ON, tango.DevState.ALARM):
                failed.append(f"{one.name}: {status}")
            elif one.channel.state() == tango.DevState.FAULT and not broken_off:  # such as a series that was cut short
                failed.append(f"{one.name}: {one.channel.status().splitlines()[-1]}")
        if failed:
            raise RuntimeError("; ".join(failed))


def _file_of(name: str, detector: str, several: bool) -> str:
    """Of several detectors each has a file of its own."""
    if not name or not several:
        return name
    stem, suffix = os.path.splitext(name)
    return f"{stem}_{detector}{suffix}"


def _quietly(act: Any, *arguments: Any) -> None:
    try:
        act(*arguments)
    except tango.DevFailed:
        pass
