"""The StreamReceiver Tango device: shows an engine, here or elsewhere; no logic of its own."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
from tango import AttrQuality, DevState
from tango.server import attribute, command, device_property

from tangods_receiver import __version__, config, imaging, rois, stats, tango_edge
from tangods_receiver.engine import Engine
from tangods_receiver.errors import ConfigError, DaqError
from tangods_receiver.live import LastFrame
from tangods_receiver.protocol.stins import MAX_FRAMES
from tangods_receiver.remote import RemoteEngine

log = logging.getLogger(__name__)

MAX_WORKERS = 64
MAX_LOSSES = 32  # kinds; there are fewer
LOOK = 0.05  # s between two looks at the engine for events
MAX_SIDE = 32768  # rows and columns of LastImage
PREVIEW = (1024, 1024)  # rows and columns into which LiveDownsample 0 fits an image
CLOSE_LIMIT = 2.0  # s that Init and Kill wait for the file; closing goes on after that
STATES = {"idle": DevState.ON, "running": DevState.RUNNING, "error": DevState.FAULT, "unreachable": DevState.UNKNOWN}
STATES_MEAN = {
    DevState.ON: "Ready for the next series.",
    DevState.ALARM: "Ready, as ON; frames of the last series are missing (nFramesMissing), or room is (FreeSpace).",
    DevState.RUNNING: "A series is being received, until its file is closed.",
    DevState.FAULT: "A series or the start failed; Status says why and what to do. Reset acknowledges it.",
    DevState.UNKNOWN: "The engine at Address cannot be reached.",
}
DEFAULT = {name: field.default for name, field in config.ReceiverConfig.model_fields.items()}

# Property -> key of the configuration.
PROPERTIES = {
    "Name": "name",
    "Protocol": "protocol",
    "Images": "images",
    "Socket": "socket",
    "Endpoints": "endpoints",
    "Workers": "workers",
    "IoThreads": "io_threads",
    "Root": "root",
    "Dataset": "dataset",
    "Http": "http",
    "HttpHosts": "http_hosts",
    "TokenFile": "http_token_file",
    "Forward": "forward",
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
    "LiveMaxRate": "live_rate",
    "LiveAverage": "live_average",
    "InitialRois": "rois",
    "CurveKey": "curve_key",
    "CurveServerKeys": "curve_server_keys",
    "CurveClients": "curve_clients",
    "AllowPeers": "allow_peers",
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


def _per_port(get: Callable[[stats.PortStats], Any], dtype: Any, label: str, doc: str, **more: Any) -> Shown:
    """A spectrum with one value for each forwarding port; empty where there is none."""
    return Shown(lambda s: [get(port) for port in s.forward], (dtype,), label, doc, max_dim_x=config.MAX_PORTS, **more)


def _share(get: Callable[[stats.Shares], float], label: str, doc: str) -> Shown:
    more = {"unit": "%", "format": "%.0f"}
    return _per_worker(lambda w: round(100.0 * get(w.now)), float, label, f"{doc} Of each worker.", **more)


def _per_roi(get: Callable[[stats.RoiStats], Any], dtype: Any, label: str, doc: str, **more: Any) -> Shown:
    """A spectrum with one value for each region of interest."""
    return Shown(lambda s: [get(roi) for roi in s.live.rois], (dtype,), label, doc, max_dim_x=rois.MOST, **more)


def _or_nan(value: float | None) -> float:
    return nan if value is None else value


class StreamReceiver(tango_edge.AlarmedDevice):
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
    Images: str = device_property(
        default_value="",
        doc="How images are, for a protocol whose messages do not tell (xspd), in YAML: {shape: [516, 1556]}, rows "
        "first; also type: uint16 (else as their size says), compression: zlib, counters: 2. Empty for all others.",
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
        doc="host:port of the HTTP side (status, images, live page, metrics), for example 127.0.0.1:8000; port 0 takes "
        "a free one, see the attribute HttpAddress. Empty or none: no HTTP.",
    )
    HttpHosts = device_property(
        dtype=(str,),
        default_value=[],
        doc="More host names by which the HTTP side may be asked, one per line, for example that of a proxy; its own "
        "names and addresses are known. All others are refused.",
    )
    TokenFile: str = device_property(
        default_value=DEFAULT["http_token_file"],
        doc="File with the token that HTTP needs for what changes something (POST: stop, reset, begin); it is made, "
        "readable by its owner alone, when it is not there. With Address: the token of the engine there, a copy of its "
        "file. Empty: HTTP is read-only; Tango commands need none.",
    )
    Forward = device_property(
        dtype=(str,),
        default_value=[],
        doc="Ports where what is received is sent on, as STINS, one per line: an address such as tcp://127.0.0.1:9998, "
        "or settings such as endpoint: tcp://127.0.0.1:9998, socket: pub, policy: lossless, every: 10. Empty: none.",
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
    LiveMaxRate: float = device_property(
        default_value=DEFAULT["live_rate"],
        doc="Images a second that are decoded for the live view and the regions of interest, while somebody looks.",
    )
    LiveAverage: int = device_property(
        default_value=DEFAULT["live_average"],
        doc="Images of the live view's moving average (HTTP, kind average): the newest weighs one part in so many.",
    )
    InitialRois = device_property(
        dtype=(str,),
        default_value=[],
        doc="Regions of interest from the start on, one per line: name x y width height, in pixels of the whole image. "
        "The attribute Rois changes them until the next start.",
    )

    CurveKey: str = device_property(
        default_value="",
        doc="Path of the receiver's own .key_secret file (tangods-detector keygen), mode 0600. Empty: no CURVE.",
    )
    CurveServerKeys = device_property(
        dtype=(str,),
        default_value=[],
        doc="Paths of the senders' public .key files: one for all Endpoints, or one per line for each in their order. "
        "The streams are then encrypted, and only these senders are listened to. Empty: detectors that speak no CURVE.",
    )
    CurveClients: str = device_property(
        default_value="",
        doc="Directory with the public .key files of those who may connect to the forwarding port. Empty: no CURVE.",
    )
    AllowPeers = device_property(
        dtype=(str,),
        default_value=[],
        doc="Addresses or networks, such as 10.0.3.0/24, one per line, that may connect to the forwarding port. Empty: "
        "all.",
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
        "Frames known to be lost in the present or last series; the file lists them. An alarm from 1 on.",
        max_alarm=1,
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
    nFramesDropped = _count(
        lambda s: s.dropped,
        "Frames dropped",
        "Frames that a PUB socket did not send, because they were not fetched in time, since the present or last "
        "series began; found by the numbers of those that came. 0 where the sender's socket is PUSH, which waits.",
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
    ForwardEndpoints = _per_port(
        lambda port: port.endpoint,
        str,
        "Forward endpoints",
        "Where frames are sent on: the ports of Forward, as bound.",
    )
    ForwardPeers = _per_port(
        lambda port: port.peers, int, "Forward peers", "Clients that are connected to each forwarding port."
    )
    ForwardedFrames = _per_port(
        lambda port: port.frames,
        int,
        "Frames forwarded",
        "Frames that each forwarding port has sent to a client since the engine began.",
    )
    ForwardDropped = _per_port(
        lambda port: port.dropped,
        int,
        "Forward dropped",
        "Frames that each forwarding port has dropped since the engine began, because its clients were too slow.",
    )
    ForwardUnheard = _per_port(
        lambda port: port.unheard,
        int,
        "Forward unheard",
        "Frames that each forwarding port had nobody to send to, since the engine began.",
    )
    ForwardQueue = _per_port(
        lambda port: port.queued / 1e6,
        float,
        "Forward queue",
        "What waits at each forwarding port for its clients; 1 MB is 1 000 000 bytes.",
        unit="MB",
        format="%.1f",
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
    nConnectionsRefused = _count(
        lambda s: s.refused,
        "Connections refused",
        "Connections to senders that failed in the handshake since the engine began: a wrong key, or not allowed. "
        "LastError says what to do while it is so.",
    )
    nPeersRefused = _count(
        lambda s: s.peers_refused,
        "Peers refused",
        "Connections to the forwarding port that were refused since the engine began: no key in CurveClients, or an "
        "address that is not in AllowPeers.",
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

    LiveFrameNumber = _count(
        lambda s: s.live.number,
        "Live frame number",
        "Number, in its series, of the image that was decoded last for the live view; -1: none yet.",
    )
    LiveRate = Shown(
        lambda s: s.live.rate,
        float,
        "Live rate",
        "Images decoded per second for the live view and the regions of interest; 0 while nobody looks. At most "
        "LiveMaxRate, less where images are large.",
        unit="Hz",
        format="%.1f",
    )
    nLiveDamaged = _count(
        lambda s: s.live.damaged,
        "Live frames damaged",
        "Images that could not be decoded for the live view since the engine began; the last good one stayed.",
    )
    RoiNames = _per_roi(lambda roi: roi.name, str, "ROI names", "Names of the regions of interest (Rois).")
    RoiSum = _per_roi(
        lambda roi: roi.sum,
        float,
        "ROI sums",
        "Sum of the pixels of each region in the image RoiFrameNumber. Masked and saturated pixels are left out, here "
        "and in all other values of a region.",
    )
    RoiMean = _per_roi(lambda roi: _or_nan(roi.mean), float, "ROI means", "Mean of the pixels of each region.")
    RoiMax = _per_roi(lambda roi: _or_nan(roi.max), float, "ROI maxima", "Largest pixel of each region.")
    RoiCentreX = _per_roi(
        lambda roi: _or_nan(roi.centre_x),
        float,
        "ROI centres, x",
        "Column of the centre of mass of each region, in pixels of the whole image; NaN where nothing is.",
        unit="pixels",
    )
    RoiCentreY = _per_roi(
        lambda roi: _or_nan(roi.centre_y),
        float,
        "ROI centres, y",
        "Row of the centre of mass of each region, in pixels of the whole image; NaN where nothing is.",
        unit="pixels",
    )
    RoiPixels = _per_roi(
        lambda roi: roi.pixels, int, "ROI pixels", "Pixels of each region that have a value and are in the image."
    )
    RoiFrameNumber = _count(
        lambda s: s.live.roi_number,
        "ROI frame number",
        "Number, in its series, of the image in which the regions were measured; -1: none yet. A client that reads it "
        "gets the newest image measured first.",
    )
    RoiSeries = _count(
        lambda s: s.live.roi_series, "ROI series", "Series of the image in which the regions were measured; 0: none."
    )

    @attribute(
        dtype=float,
        label="Free space",
        unit="GB",
        format="%.1f",
        min_alarm=1.0,
        min_warning=10.0,
        doc="What can still be written below Root; 1 GB is 1 000 000 000 bytes. Looked at every 5 s; invalid while the "
        "storage does not answer. A warning below 10, an alarm below 1 as it comes: set the limits to what a night "
        "takes.",
    )
    def FreeSpace(self) -> float | tuple[float, float, AttrQuality]:
        free = _free(self._now)
        return (0.0, time.time(), AttrQuality.ATTR_INVALID) if free is None else free

    @attribute(
        dtype=(str,),
        max_dim_x=rois.MOST,
        label="Regions of interest",
        doc="One line for each: name x y width height, in pixels of the whole image, x columns and y rows from 0; at "
        "most 8. Writing it begins a new RoiHistory; an empty list ends the measuring.",
    )
    def Rois(self) -> list[str]:
        return _rois(self._now)

    @Rois.write  # type: ignore[no-redef]
    def Rois(self, lines: Any) -> None:
        with tango_edge.as_dev_failed("StreamReceiver.Rois"):
            self._running_engine().set_rois(stripped([] if lines is None else list(lines)))

    @attribute(
        dtype=((float,),),
        max_dim_x=len(rois.COLUMNS) + len(rois.Values._fields) * rois.MOST,
        max_dim_y=rois.HISTORY,
        label="ROI history",
        doc="The last 1000 images in which regions were measured, one per row, oldest first. Columns: series, frame "
        "number, time (Unix) of decoding, then sum, mean, maximum, centre x, centre y and pixels of each region.",
    )
    def RoiHistory(self) -> np.ndarray:
        with tango_edge.as_dev_failed("StreamReceiver.RoiHistory"):
            return self._running_engine().roi_history()

    @attribute(
        dtype=int,
        label="Live downsampling",
        memorized=True,
        hw_memorized=True,
        min_value=0,
        max_value=1024,
        doc="Blocks of so many pixels by as many become one, their largest, in LastImage and video_last_image; 1: all "
        "pixels; 0: as many as it takes to fit into 1024 x 1024. For all clients of this device.",
    )
    def LiveDownsample(self) -> int:
        return self._downsample

    @LiveDownsample.write  # type: ignore[no-redef]
    def LiveDownsample(self, factor: int) -> None:
        self._downsample = factor

    @attribute(
        dtype=((np.float32,),),
        max_dim_x=MAX_SIDE,
        max_dim_y=MAX_SIDE,
        label="Last image",
        doc="Newest image received, rows x columns, decoded when it is read; modules of one image below each other. "
        "Empty before the first. As float32 (exact up to 16 777 216), whatever the detector's type; the exact values "
        "are in video_last_image and at HttpAddress/last_frame. For a live view: read it some times a second, no "
        "events; LiveDownsample makes it smaller.",
    )
    def LastImage(self) -> np.ndarray:
        with tango_edge.as_dev_failed("StreamReceiver.LastImage"):
            last = self._picture()
        if last is None:
            return np.zeros((0, 0), np.float32)
        return np.ascontiguousarray(last.array[:MAX_SIDE, :MAX_SIDE], np.float32)

    @attribute(
        dtype="DevEncoded",
        label="Last image, encoded",
        doc="Newest image as LImA's VIDEO_IMAGE, for its viewers: a header of 32 bytes and pixels of the detector's "
        "type. Before the first: an image of no pixels with the number -1. LiveDownsample makes it smaller.",
    )
    def video_last_image(self) -> tuple[str, bytes]:
        with tango_edge.as_dev_failed("StreamReceiver.video_last_image"):
            last = self._picture()
        if last is None:
            return imaging.VIDEO_FORMAT, imaging.NO_VIDEO_IMAGE
        return imaging.VIDEO_FORMAT, imaging.video_image(last.array, last.number)

    @attribute(
        dtype=int,
        format="%d",
        label="Last image counter",
        doc="Number of the newest image in its series, as LastImageNumber; by this name LImA's viewers know it.",
    )
    def video_last_image_counter(self) -> int:
        return self._now.last_number

    def _picture(self) -> LastFrame | None:
        """The newest image as rows x columns, made smaller as LiveDownsample says."""
        last = self._engine.last_frame() if self._engine else None
        if last is None:
            return None
        array = last.array.reshape(-1, last.array.shape[-1])
        factor = self._downsample or imaging.factor_for(array.shape, PREVIEW)
        return last._replace(array=imaging.downsample(array, factor, "max"))

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
    _downsample: int

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
        tango_edge.set_points(self, {"Rois": _rois(self._now)})
        if "_downsample" not in vars(self):  # not after Init: Tango then sets what is memorised to what it was set to
            self._downsample = 1
            tango_edge.set_points(self, {"LiveDownsample": 1})
        self._events.start()

    def delete_device(self) -> None:
        """The open file is closed before anything else ends: Init, DevRestart, Kill and SIGTERM come here."""
        tango_edge.ending()
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
            engine = self._remote() if self.Address.strip() else Engine(self._config())
            engine.__enter__()
        except (DaqError, ValueError) as exc:  # ValueError: a property that is not the number it should be
            reason = in_property_names(str(exc))
            log.error("not started: %s", reason)
            self._now = stats.Snapshot(
                state="error", error=f"{reason}. Correct the properties, then give the command Reset"
            )
            self.show()
            engine = None
        else:
            self._engine = engine
            self._now = stats.Snapshot(state="unreachable", error=f"asking {self.Address}")
            self.always_executed_hook()
        self._watcher = threading.Thread(
            target=self._watch, args=(engine, self._stop), name=f"watch {self.get_name()}", daemon=True
        )
        self._watcher.start()

    def _remote(self) -> RemoteEngine:
        return RemoteEngine(self.Address.strip(), self.TokenFile.strip())

    def _config(self) -> config.ReceiverConfig:
        values = {key: stripped(getattr(self, name)) for name, key in PROPERTIES.items()}
        values["name"] = values["name"] or self.get_name()
        values["http"] = "" if values["http"].lower() == "none" else values["http"]
        present = {key: value for key, value in values.items() if key not in ("root", "endpoints", "images") or value}
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
        super().always_executed_hook()
        if isinstance(self._engine, Engine):
            self._look(self._engine)

    def read_attr_hardware(self, attributes: Any) -> None:
        """Regions are those of the newest image, and of one."""
        super().read_attr_hardware(attributes)
        if isinstance(self._engine, Engine):
            known = self.get_device_attr()
            if any(known.get_attr_by_ind(index).get_name().startswith("Roi") for index in attributes):
                self._engine.measure_rois()
                self._look(self._engine)

    def _look(self, engine: Engine | RemoteEngine) -> None:
        try:
            self._now = engine.snapshot()
        except DaqError as exc:
            self._now = replace(self._now, state="unreachable", error=str(exc))
        self.show()

    def show(self) -> None:
        """State and Status are those of the engine."""
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
            if self._pushed.get(name) != (value := get(now)) and value is not None:
                self._pushed[name] = value
                events.push(name, value)
        self._handed_over = now


def _rois(now: stats.Snapshot) -> list[str]:
    return [str(rois.Roi(roi.name, roi.x, roi.y, roi.width, roi.height)) for roi in now.live.rois]


def _free(now: stats.Snapshot) -> float | None:
    return None if now.free is None else round(now.free / 1e9, 1)


SHOWN["Rois"] = _rois
SHOWN["FreeSpace"] = _free


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
    """Without the blanks that people leave in properties; empty lines of a list, or of Tango's vector, are dropped."""
    if isinstance(value, str):
        return value.strip()
    return [line.strip() for line in value if line.strip()] if isinstance(value, Iterable) else value


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
    except (ValueError, AttributeError, TypeError, RecursionError) as exc:  # no JSON, or no object
        raise ConfigError(f"BeginSeries takes a JSON object, not {what[:80]!r} ({exc})") from exc
    fits = type(filename) is str and type(metadata) is dict and not told
    if not fits or not (nframes is None or (type(nframes) is int and 0 <= nframes <= MAX_FRAMES)):
        raise ConfigError(f'BeginSeries takes {{"filename", "nframes", "metadata"}}, not {what[:200]!r}')
    return filename, nframes, metadata


def main() -> None:
    """Server `StreamReceiver INSTANCE`."""
    tango_edge.serve(StreamReceiver)
