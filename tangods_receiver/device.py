"""The StreamReceiver Tango device: shows an engine, here or elsewhere; no logic of its own."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tango import DevState
from tango.server import Device, attribute, command, device_property, run

from tangods_receiver import __version__, config, stats, tango_edge
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError, DaqError
from tangods_receiver.protocol.stins import MAX_FRAMES
from tangods_receiver.remote import RemoteEngine

log = logging.getLogger(__name__)

MAX_WORKERS = 64
MAX_LOSSES = 32  # kinds; there are fewer
LOOK = 0.05  # s between two looks at the engine for events
MAX_SIDE = 32768  # rows and columns of LastImage
CLOSE_LIMIT = 2.0  # s that Init and Kill wait for the file; closing goes on after that
STATES = {"idle": DevState.ON, "running": DevState.RUNNING, "error": DevState.FAULT, "unreachable": DevState.UNKNOWN}
DEFAULT = {name: field.default for name, field in config.ReceiverConfig.model_fields.items()}

# Property -> key of the configuration.
PROPERTIES = {
    "Name": "name",
    "Protocol": "protocol",
    "Socket": "socket",
    "Endpoints": "endpoints",
    "Workers": "workers",
    "IoThreads": "io_threads",
    "Root": "root",
    "Dataset": "dataset",
    "Http": "http",
    "HwmBytes": "hwm_bytes",
    "EndTimeout": "end_timeout",
    "StallTimeout": "stall_timeout",
    "CommitInterval": "commit_interval",
    "AllowOverwrite": "allow_overwrite",
    "Transforms": "transforms",
    "Parts": "parts",
    "FramesPerFile": "frames_per_file",
    "FsyncInterval": "fsync_interval",
    "PayloadCrc": "payload_crc",
    "Channels": "channels",
    "ContextPerWorker": "context_per_worker",
}


SHOWN: dict[str, Callable[[stats.Snapshot], Any]] = {}  # attribute -> what it shows; filled by the class body


class Shown(attribute):
    """A read-only attribute that shows something of the snapshot; its changes are pushed as events."""

    def __init__(self, get: Callable[[stats.Snapshot], Any], dtype: Any, label: str, doc: str, **more: Any) -> None:
        self._get = get
        super().__init__(lambda device: get(device._now), dtype=dtype, label=label, doc=doc, **more)

    def __set_name__(self, owner: type, name: str) -> None:
        SHOWN[name] = self._get


def _count(get: Callable[[stats.Snapshot], int], label: str, doc: str, **more: Any) -> Shown:
    return Shown(get, int, label, doc, format="%d", **more)


def _seconds(get: Callable[[stats.Snapshot], float], label: str, doc: str) -> Shown:
    return Shown(get, float, label, doc, unit="s", format="%.3f")


def _per_worker(get: Callable[[stats.WorkerStats], Any], dtype: Any, label: str, doc: str, **more: Any) -> Shown:
    """A spectrum with one value for each worker; empty while the engine cannot be asked."""
    return Shown(lambda s: [get(w) for w in s.workers], (dtype,), label, doc, max_dim_x=MAX_WORKERS, **more)


def _share(get: Callable[[stats.Shares], float], label: str, doc: str) -> Shown:
    more = {"unit": "%", "format": "%.0f"}
    return _per_worker(lambda w: round(100.0 * get(w.now)), float, label, f"{doc} Of each worker.", **more)


class StreamReceiver(Device):
    """Receives a detector's image stream over ZeroMQ and writes HDF5/NeXus files."""

    Address: str = device_property(
        default_value="",
        doc="http://host:port of an engine that runs elsewhere (tangods-detector receive), to be shown and commanded "
        "by this device. Empty: the device has an engine of its own, set up by the other properties.",
    )
    Name: str = device_property(default_value="", doc="Name of the receiver in logs. Empty: the device's name.")
    Protocol: str = device_property(
        default_value=DEFAULT["protocol"], doc=f"Protocol of the stream. Known: {', '.join(config.PROTOCOLS)}."
    )
    Socket: str = device_property(
        default_value=DEFAULT["socket"],
        doc="pull or sub: the ZeroMQ socket that fits the sender's PUSH or PUB. Empty: what is usual for the protocol.",
    )
    Endpoints = device_property(
        dtype=(str,),
        default_value=[],
        doc="Where the stream is pulled from, one per line, like tcp://host:9999 (the Detector's attribute Endpoints). "
        "Must be set.",
    )
    Workers: int = device_property(
        default_value=DEFAULT["workers"], doc="Threads that receive and write, each with a socket to all endpoints."
    )
    IoThreads: int = device_property(
        default_value=DEFAULT["io_threads"], doc="ZeroMQ's own threads, of each worker; 2 are enough for 10 GbE."
    )
    Root: str = device_property(
        default_value="", doc="Directory below which files may be written; anything outside is refused. Must be set."
    )
    Dataset: str = device_property(default_value=DEFAULT["dataset"], doc="Path of the image dataset in the file.")
    Http: str = device_property(
        default_value="",
        doc="host:port of the HTTP side (status, last image, metrics), for example 127.0.0.1:8000; port 0 takes a free "
        "one, see the attribute HttpAddress. Empty or none: no HTTP.",
    )
    HwmBytes: int = device_property(
        default_value=DEFAULT["hwm_bytes"], doc="Bytes that may wait in memory, per worker and endpoint."
    )
    EndTimeout: float = device_property(
        default_value=DEFAULT["end_timeout"],
        doc="Seconds to wait for missing frames after the end message, or after Stop, before the file is closed.",
    )
    StallTimeout: float = device_property(
        default_value=DEFAULT["stall_timeout"],
        doc="Seconds without any frame after which an open series is closed with an error; 0: never (late triggers).",
    )
    CommitInterval: float = device_property(
        default_value=DEFAULT["commit_interval"],
        doc="Seconds between two updates of the file's index: what a reader of a growing file may lag behind.",
    )
    AllowOverwrite: bool = device_property(
        default_value=DEFAULT["allow_overwrite"],
        doc="True: a Detector whose OverwritePolicy is OVERWRITE may have existing files below Root replaced.",
    )
    Transforms = device_property(
        dtype=(str,),
        default_value=[],
        doc="Work on the pixels before they are written, one step per line, in this order: a name such as bslz4 or "
        "flip, or in YAML a name and what it needs, such as rotate: 90. A wrong step is refused with a list of what "
        "there is. Empty: frames are written as they come.",
    )
    Parts: int = device_property(
        default_value=DEFAULT["parts"],
        doc="Files over which the frames of a series are spread, joined by a master file; more than 1 where one file "
        "cannot be written fast enough by several workers.",
    )
    FramesPerFile: int = device_property(
        default_value=DEFAULT["frames_per_file"],
        doc="A new file is begun each so many frames, joined by a master file; 0: all frames in one.",
    )
    FsyncInterval: float = device_property(
        default_value=DEFAULT["fsync_interval"],
        doc="Seconds between two times that what was written is put on the disk while the series runs, so that a power "
        "loss takes no more; 0: only after the series has ended.",
    )
    Channels: str = device_property(
        default_value=DEFAULT["channels"],
        doc="axis or datasets: how the file has the images of a detector with several channels, such as the thresholds "
        "of an EIGER2: frame, channel, row, column in one dataset, or a dataset of its own for each channel.",
    )
    PayloadCrc: bool = device_property(
        default_value=DEFAULT["payload_crc"],
        doc="True: each frame is written with a checksum of its pixels, by which recovery finds damaged ones.",
    )
    ContextPerWorker: bool = device_property(
        default_value=DEFAULT["context_per_worker"],
        doc="True: each worker has IoThreads ZeroMQ threads of its own, which is faster; False: all share them.",
    )

    SeriesOpened = _count(lambda s: s.opened, "Series opened", "Id of the last series whose file was opened; 0: none.")
    SeriesClosed = _count(lambda s: s.closed, "Series closed", "Id of the last series whose file was closed; 0: none.")
    CurrentFile = Shown(lambda s: s.file, str, "Current file", "File that is being written; empty when none is.")
    LastFile = Shown(lambda s: s.last_file, str, "Last file", "File that was closed last; empty when none was yet.")
    nFramesExpected = _count(
        lambda s: -1 if s.expected is None else s.expected,
        "Frames expected",
        "Frames announced for the present or last series; -1: not announced.",
    )
    nFramesReceived = _count(
        lambda s: s.received,
        "Frames received",
        "Frames that came in the present or last series: written + repeated + foreign + rejected + discarded.",
    )
    nFramesWritten = _count(lambda s: s.written, "Frames written", "Frames in the file of the present or last series.")
    nFramesMissing = _count(
        lambda s: s.missing,
        "Frames missing",
        "Frames known to be lost in the present or last series; the file lists them. A warning from 1 on.",
        max_warning=1,
    )
    nFramesRepeated = _count(
        lambda s: s.repeated, "Frames repeated", "Frames that came again; the first of each was kept."
    )
    nFramesForeign = _count(
        lambda s: s.foreign, "Frames foreign", "Frames of another series, for example leftovers of an aborted one."
    )
    nFramesRejected = _count(
        lambda s: s.rejected, "Frames rejected", "Messages that were malformed or did not fit the series; LastError."
    )
    nFramesDiscarded = _count(
        lambda s: s.discarded,
        "Frames discarded",
        "Frames not to be stored: sent so, no file wanted, or after an error.",
    )
    FrameRate = Shown(
        lambda s: s.rate, float, "Frame rate", "Frames per second over the last second.", unit="Hz", format="%.1f"
    )
    Throughput = Shown(
        lambda s: s.throughput / 1e6,
        float,
        "Throughput",
        "Image data written over the last second; 1 MB is 1 000 000 bytes.",
        unit="MB/s",
        format="%.1f",
    )
    FramesPerWorker = _per_worker(
        lambda w: w.received, int, "Frames per worker", "Frames that each worker has received since the engine began."
    )
    RatePerWorker = _per_worker(
        lambda w: w.rate,
        float,
        "Rate per worker",
        "Frames per second that each worker received over the last second.",
        unit="Hz",
        format="%.1f",
    )
    BatchSize = _per_worker(
        lambda w: w.batch_size,
        float,
        "Batch size",
        "Frames that each worker takes from its socket at a time, mean over the last second. It grows with the load.",
        format="%.1f",
    )
    Backlog = _per_worker(
        lambda w: w.behind,
        float,
        "Backlog",
        "Time since each worker last found its socket empty; 0: just now. When it keeps growing the stream is faster "
        "than this worker, and the sender will have to wait.",
        unit="s",
        format="%.2f",
    )
    WaitingShare = _share(
        lambda shares: shares.waiting, "Waiting", "Share of the last second spent waiting for the socket."
    )
    TransformShare = _share(
        lambda shares: shares.transforming, "Transforms", "Share of the last second spent on the pixels (Transforms)."
    )
    WritingShare = _share(
        lambda shares: shares.writing, "Writing", "Share of the last second spent in calls that write to the file."
    )
    CommitTime = _seconds(
        lambda s: s.commit_time, "Commit time", "Time that the last update of the file's index took (CommitInterval)."
    )
    LongestCommit = _seconds(
        lambda s: s.longest_commit, "Longest commit", "Longest update of the index in the present or last series."
    )
    SyncTime = _seconds(lambda s: s.sync_time, "Sync time", "Time that it took to put the last file on the disk.")
    Losses = Shown(
        lambda s: [f"{loss.kind} {loss.count}: {loss.sentence}" for loss in s.lost],
        (str,),
        "Losses",
        "What went wrong in the present or last series: a line for each kind, how often, and the first case in words.",
        max_dim_x=MAX_LOSSES,
    )
    nFramesDurable = _count(
        lambda s: s.durable_frames,
        "Frames durable",
        "Frames of the present or last series that have reached the disk and survive a power loss (FsyncInterval).",
    )
    Durable = Shown(
        lambda s: s.durable, bool, "Durable", "True when the last closed file has reached the disk (fdatasync)."
    )
    LastError = Shown(
        lambda s: s.error,
        str,
        "Last error",
        "Why the last series, or the start, failed and what to do; empty: it did not.",
    )
    Snapshot = Shown(
        lambda s: json.dumps(s.as_dict()),
        str,
        "Snapshot",
        "All of the above at one moment, as JSON with the keys of GET /status; what the Detector reads.",
    )

    LastImageNumber = _count(
        lambda s: s.last_number,
        "Last image number",
        "Number of the newest image in its series; -1: none was received yet.",
    )

    @attribute(
        dtype=((np.float32,),),
        max_dim_x=MAX_SIDE,
        max_dim_y=MAX_SIDE,
        label="Last image",
        doc="Newest image received, rows x columns, decoded when it is read; modules of one image below each other. "
        "Empty before the first. As float32 (exact up to 16 777 216), whatever the detector's type; the exact values "
        "are at HttpAddress/last_frame. For a live view: read it some times a second, no events.",
    )
    def LastImage(self) -> np.ndarray:
        with tango_edge.as_dev_failed("StreamReceiver.LastImage"):
            last = self._engine.last_frame() if self._engine else None
        if last is None:
            return np.zeros((0, 0), np.float32)
        array = last.array.reshape(-1, last.array.shape[-1])
        return np.ascontiguousarray(array[:MAX_SIDE, :MAX_SIDE], np.float32)

    @attribute(
        dtype=str, label="HTTP address", doc="Where the engine's HTTP side is, like http://127.0.0.1:8000; empty: none."
    )
    def HttpAddress(self) -> str:
        if isinstance(self._engine, RemoteEngine):
            return self._engine.address
        if self._engine and self._engine.http_port:
            return f"http://{self.Http.strip().rpartition(':')[0]}:{self._engine.http_port}"
        return ""

    @command(
        dtype_in=(str,),
        doc_in="Path of the file on the receiver's computer; bytes that it will need (0 or left out: unknown); "
        "the word overwrite if an existing file is to be replaced.",
        dtype_out=str,
        doc_out="Empty: the file can be written. Else a sentence: what is in the way and what to do.",
    )
    def CheckFile(self, arguments: list[str]) -> str:
        """Can this file be written? Allowed in every state."""
        with tango_edge.as_dev_failed("StreamReceiver.CheckFile"):
            path, nbytes, overwrite = file_to_check(arguments)
            return self._running_engine().check(path, nbytes, overwrite)

    @command
    def Stop(self) -> None:
        """Close the open series with the frames that came; harmless when none is open. Allowed in every state."""
        with tango_edge.as_dev_failed("StreamReceiver.Stop"):
            if self._engine:
                self._engine.stop()

    @command(
        dtype_in=str,
        doc_in='JSON: {"filename": path of the file ("" or left out: live view only), "nframes": how many (left out: '
        'until Stop), "metadata": {for the file}}.',
        dtype_out=int,
        doc_out="Id of the series.",
    )
    def BeginSeries(self, what: str) -> int:
        """Open a series of a stream that announces none (xspd, array-1.0): what comes from now on goes into it."""
        with tango_edge.as_dev_failed("StreamReceiver.BeginSeries"):
            return self._running_engine().begin(*series_to_begin(what))

    @command
    def Reset(self) -> None:
        """Acknowledge an error. Where the engine could not be started: read the properties again and start it."""
        with tango_edge.as_dev_failed("StreamReceiver.Reset"):
            if self._engine:
                self._engine.reset()
            else:
                self._build()

    # --- life --------------------------------------------------------------------------------------------------------

    _engine: Engine | RemoteEngine | None = None
    _watcher: threading.Thread | None = None
    _events: tango_edge.EventPusher | None = None
    _log: tango_edge.TangoLog | None = None

    def init_device(self) -> None:
        """Also after Init and DevRestart. Never fails: what is wrong becomes FAULT and a sentence."""
        self._now = stats.Snapshot(state="error", error="not started yet")
        self._pushed: dict[str, Any] = {}
        self._handed_over: stats.Snapshot | None = None
        self._stop = threading.Event()
        self._log = tango_edge.attach_log(self)
        self._events = tango_edge.EventPusher(self)
        tango_edge.announce(self, *SHOWN)
        self.add_version_info("tangods-receiver", __version__)
        self._build()
        self._events.start()

    def delete_device(self) -> None:
        """The open file is closed before anything else ends: Init, DevRestart, Kill and SIGTERM come here."""
        if self._events:
            self._events.close()
        self._close()
        if self._log:
            tango_edge.detach_log(self._log)
        super().delete_device()

    def _build(self) -> None:
        """Read the properties and start the engine."""
        self._close()
        self._stop = threading.Event()
        try:
            self.get_device_properties()
            engine = RemoteEngine(self.Address.strip()) if self.Address.strip() else Engine(self._config())
            engine.__enter__()
        except (DaqError, ValueError) as exc:  # ValueError: a property that is not the number it should be
            reason = in_property_names(str(exc))
            log.error("not started: %s", reason)
            self._now = stats.Snapshot(
                state="error", error=f"{reason}. Correct the properties, then give the command Reset"
            )
            self._show()
            engine = None
        else:
            self._engine = engine
            self._now = stats.Snapshot(state="unreachable", error=f"asking {self.Address}")
            self.always_executed_hook()
        self._watcher = threading.Thread(
            target=self._watch, args=(engine, self._stop), name=f"watch {self.get_name()}", daemon=True
        )
        self._watcher.start()

    def _config(self) -> config.ReceiverConfig:
        values = {key: stripped(getattr(self, name)) for name, key in PROPERTIES.items()}
        values["name"] = values["name"] or self.get_name()
        values["http"] = "" if values["http"].lower() == "none" else values["http"]
        present = {key: value for key, value in values.items() if key not in ("root", "endpoints") or value}
        return config.make(present, "properties")

    def _close(self) -> None:
        """Bounded: what storage does not take in `CLOSE_LIMIT` goes on in a thread that the process waits for."""
        engine, self._engine = self._engine, None
        self._stop.set()
        if self._watcher:
            self._watcher.join(CLOSE_LIMIT)
            self._watcher = None
        if engine:
            # daemon=False is not the default here: it is inherited from Tango's thread
            closer = threading.Thread(
                target=engine.__exit__, args=(None, None, None), name="close engine", daemon=False
            )
            closer.start()
            closer.join(CLOSE_LIMIT)
            if closer.is_alive():
                log.error(
                    "the file is not closed after %g s; storage is slow, it goes on in the background", CLOSE_LIMIT
                )

    def _running_engine(self) -> Engine | RemoteEngine:
        if self._engine is None:
            raise ConfigError(self._now.error)
        return self._engine

    # --- looking at the engine ---------------------------------------------------------------------------------------

    def always_executed_hook(self) -> None:
        """Before each request: a client reads what is, not what was. An engine elsewhere may not answer: the watcher
        alone asks it."""
        if isinstance(self._engine, Engine):
            self._look(self._engine)

    def _look(self, engine: Engine | RemoteEngine) -> None:
        try:
            self._now = engine.snapshot()
        except DaqError as exc:
            self._now = replace(self._now, state="unreachable", error=str(exc))
        self._show()

    def _show(self) -> None:
        self.set_state(STATES.get(self._now.state, DevState.UNKNOWN))
        self.set_status(status_text(self._now))

    def _watch(self, engine: Engine | RemoteEngine | None, stop: threading.Event) -> None:
        """Thread: hand what is new to the pusher, which limits the rate."""
        while True:
            try:
                if engine:
                    self._look(engine)
                self._hand_over()
            except Exception:  # outermost loop of this thread; clients that read still get the truth
                log.exception("events not sent")
            if engine is None or stop.wait(LOOK):
                return

    def _hand_over(self) -> None:
        now, events = self._now, self._events
        if events is None or now == self._handed_over:
            return
        if self._pushed.get("State") != (state := (now.state, status_text(now))):
            self._pushed["State"] = state
            events.push_state()
        for name, get in SHOWN.items():
            if self._pushed.get(name) != (value := get(now)):
                self._pushed[name] = value
                events.push(name, value)
        self._handed_over = now


def status_text(now: stats.Snapshot) -> str:
    """What an operator reads; it does not change with every frame, so that it can be pushed."""
    if now.state in ("error", "unreachable"):
        return now.error or "error, for a reason that was not given"
    if now.state == "running":
        return f"Series {now.series} into {now.file}" if now.file else f"Series {now.series}, no file: live view only"
    text = "Idle"
    if now.closed:
        text += f". Series {now.closed}: {now.written} frames, {now.missing} missing"
        text += f", in {now.last_file}" if now.last_file else ""
    return f"{text}. {now.error}" if now.error else text


def stripped(value: Any) -> Any:
    """Without the blanks that people leave in properties; empty lines of a list are dropped."""
    if isinstance(value, str):
        return value.strip()
    return [line.strip() for line in value if line.strip()] if isinstance(value, list | tuple) else value


def in_property_names(text: str) -> str:
    """The configuration's mistakes with the names that the operator knows: `end_timeout: ..` -> `EndTimeout: ..`."""
    names = {key: name for name, key in PROPERTIES.items()}
    return re.sub(r"(?:^|(?<=[;:] ))(\w+)(?=[.:])", lambda found: names.get(found[1], found[1]), text)


def file_to_check(arguments: list[str]) -> tuple[str, int, bool]:
    """[path], [path, bytes] or [path, bytes, "overwrite"]; ConfigError when it is none of them."""
    path, size, wish, *rest = [*arguments, *["", "0", ""][len(arguments) :]]
    if not path or rest or not size.isdecimal() or wish not in ("", "overwrite"):
        raise ConfigError(f"CheckFile takes [path], [path, bytes] or [path, bytes, overwrite], not {list(arguments)}")
    return path, int(size), wish == "overwrite"


def series_to_begin(what: str) -> tuple[str, int | None, dict[str, Any]]:
    """(file name, number of frames, metadata); ConfigError when it is not like that."""
    try:
        told = json.loads(what or "{}")
        filename, nframes, metadata = told.pop("filename", ""), told.pop("nframes", None), told.pop("metadata", {})
    except (ValueError, AttributeError, RecursionError) as exc:
        raise ConfigError(f"BeginSeries takes a JSON object, not {what[:80]!r} ({exc})") from exc
    fits = type(filename) is str and type(metadata) is dict and not told
    if not fits or not (nframes is None or (type(nframes) is int and 0 <= nframes <= MAX_FRAMES)):
        raise ConfigError(f'BeginSeries takes {{"filename", "nframes", "metadata"}}, not {what[:200]!r}')
    return filename, nframes, metadata


def main() -> None:
    """Server `StreamReceiver INSTANCE`."""
    tango_edge.setup_logging()
    run((StreamReceiver,))
