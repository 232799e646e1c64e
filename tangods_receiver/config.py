"""The receiver's configuration: a YAML file or Tango properties -> one checked, frozen model."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tangods_receiver.errors import ConfigError
from tangods_receiver.protocol import Images
from tangods_receiver.protocol.stins import ITEMSIZE
from tangods_receiver.protocols import PROTOCOLS
from tangods_receiver.rois import Roi
from tangods_receiver.rois import parse as parse_rois

COMPRESSIONS = ("none", "zlib")  # of what `images` tells
MAX_IMAGE = 1 << 30  # bytes of one image
MAX_PORTS = 16
_ENDPOINT = re.compile(r"tcp://(\[[0-9a-fA-F:.%\w]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_BOUND = re.compile(r"tcp://(\*|\[[0-9a-fA-F:.%\w]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%\w]+\]|[A-Za-z0-9._-]+):(\d{1,5})")

#: Names in a file that mean something else than images; a test compares them with `nexus`.
_TAKEN = frozenset(
    "timestamp arrival_time sequence_number message_number frame_status stop_time real_time frames_expected "
    "frames_received frames_repeated frames_rejected frames_foreign frames_missing end_reason end_time "
    "start_time title program_name entry_identifier header count_time frame_time distance sensor_thickness "
    "threshold_energy x_pixel_size y_pixel_size beam_center_x beam_center_y bit_depth_readout saturation_value "
    "description detector_number sensor_material trigger_mode flatfield_applied pixel_mask_applied "
    "countrate_correction_applied virtual_pixel_interpolation_applied flatfield pixel_mask "
    "countrate_correction_lookup_table countrate_correction_table".split()
)


class ImagesConfig(BaseModel):
    """See `protocol.Images`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, int]
    type: str = ""
    compression: str = "none"
    counters: int = Field(1, ge=1, le=8, strict=True)

    @field_validator("shape", mode="before")
    @classmethod
    def _rows_and_columns(cls, value: Any) -> Any:
        fits = isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
        if not fits or value[0] * value[1] > MAX_IMAGE // 8:
            raise ValueError(f"{value!r} is not [rows, columns]")
        return value

    @field_validator("type")
    @classmethod
    def _known_type(cls, value: str) -> str:
        if value and value not in ITEMSIZE:
            raise ValueError(f"{value!r} is not known, known are: {', '.join(ITEMSIZE)}")
        return value

    @field_validator("compression")
    @classmethod
    def _known_compression(cls, value: str) -> str:
        if value not in COMPRESSIONS:
            raise ValueError(
                f"{value!r} cannot be unpacked here: set the detector's compressor to {' or '.join(COMPRESSIONS)}, and "
                "say so here"
            )
        return value


class ForwardPort(BaseModel):
    """A port where what is received is sent on, as STINS. `endpoint` that is bound (port 0: any free one); `socket`
    push (clients share the frames) or pub (each gets all); `policy` drop (what does not fit into `queue_bytes`) or
    lossless (a slow client slows recording); `every` n: each n-th frame only; `filename` in the start message: keep,
    none, or a pattern with {directory}, {name}, {series}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str
    socket: Literal["push", "pub"] = "push"
    policy: Literal["drop", "lossless"] = "drop"
    every: int = Field(1, ge=1, le=2**31, strict=True)
    queue_bytes: int = Field(256 * 2**20, ge=2**20, le=2**40, strict=True)
    filename: str = "keep"

    @field_validator("endpoint")
    @classmethod
    def _can_be_bound(cls, value: str) -> str:
        match = _BOUND.fullmatch(value)
        if not match or int(match[2]) > 65535:
            raise ValueError(f"{value!r} is not like tcp://127.0.0.1:9998 (tcp://*:9998: all interfaces)")
        return value

    @field_validator("filename")
    @classmethod
    def _name_or_pattern(cls, value: str) -> str:
        if value in ("keep", "none"):
            return value
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
            value.format(directory="/d", name="n", series=1)
        except (ValueError, KeyError, IndexError, AttributeError):
            fields = set()
        if not fields & {"name", "series"} or not fields <= {"directory", "name", "series"}:
            raise ValueError(f"{value!r} is neither keep, none, nor a pattern like {{directory}}/{{name}}_processed.h5")
        return value

    @property
    def address(self) -> str:
        """As ZeroMQ wants it."""
        return self.endpoint[:-1] + "*" if self.endpoint.endswith(":0") else self.endpoint


class ReceiverConfig(BaseModel):
    """Times in seconds, sizes in bytes.

    `protocol` one of `protocols.PROTOCOLS`; `images` how images are, for a protocol whose messages do not tell:
    `shape` [rows, columns], `type` ("": by their size), `compression` none or zlib, `counters`;
    `socket` pull or sub ("": what is usual for the protocol);
    `endpoints` the senders to pull from (several send one series together, and wait for its close before the next);
    `workers` threads, each with a socket to all endpoints; `root` the directory
    below which files may be written; `dataset` path of the images in the file; `http` "host:port" ("" none, port 0
    any free one), `http_hosts` more names by which it may be asked, `http_token_file` holds the token that a POST needs
    (made when it is not there; "": HTTP is read-only); `forward` ports where frames are sent on (`ForwardPort`, or an
    address alone); `hwm_bytes` what may wait in memory per worker and endpoint;
    `end_timeout` how long missing frames are waited for after the end message and each one that still comes;
    `stall_timeout` closes a series in which
    nothing comes (0: never);
    `allow_overwrite` lets a start message that asks for it replace an existing file; `transforms` the pixel work, in
    this order; `parts` spreads the frames over so many files and `frames_per_file` begins a new one each so many
    frames (0: never), joined by a master file; `fsync_interval` how often written data are put on the disk while the
    series runs (0: after its end); `payload_crc` keeps a checksum of each payload; `channels` of a detector that has
    several, such as thresholds, are an axis of the image dataset, or datasets of their own; `context_per_worker` False:
    one ZeroMQ context with `io_threads` threads for all workers instead of one for each; `live_rate` how many images a
    second are decoded while somebody looks, `live_average` how many a moving average is of, `rois` regions of interest
    that are measured in them: "name x y width height" or mappings with these keys, in pixels.

    CURVE (`security`): `curve_key` the receiver's own .key_secret file; `curve_server_keys` the .key file of the
    senders, one for all or one for each endpoint; `curve_clients` a directory with the .key files of those who may
    connect to the forwarding port, `allow_peers` addresses or networks from which they may (empty: from all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("receiver", min_length=1, max_length=100)
    protocol: str = "stins"
    images: ImagesConfig | None = None
    socket: Literal["", "pull", "sub"] = ""
    endpoints: tuple[str, ...] = Field(min_length=1)
    workers: int = Field(1, ge=1, le=64, strict=True)
    io_threads: int = Field(2, ge=1, le=16, strict=True)
    root: Path
    dataset: str = "entry/instrument/detector/data"
    http: str = "127.0.0.1:8000"
    http_hosts: tuple[str, ...] = ()
    http_token_file: str = ""
    forward: tuple[ForwardPort, ...] = ()
    hwm_bytes: int = Field(256 * 2**20, ge=2**20, le=2**40, strict=True)
    end_timeout: float = Field(2.0, ge=0, le=3600, allow_inf_nan=False)
    stall_timeout: float = Field(0.0, ge=0, le=30 * 86400, allow_inf_nan=False)
    commit_interval: float = Field(1.0, ge=0.01, le=3600, allow_inf_nan=False)
    allow_overwrite: bool = Field(False, strict=True)
    transforms: tuple[Any, ...] = ()
    parts: int = Field(1, ge=1, le=64, strict=True)
    frames_per_file: int = Field(0, ge=0, le=2**40, strict=True)
    fsync_interval: float = Field(0.0, ge=0, le=86400, allow_inf_nan=False)
    payload_crc: bool = Field(False, strict=True)
    channels: Literal["axis", "datasets"] = "axis"
    context_per_worker: bool = Field(True, strict=True)
    live_rate: float = Field(10.0, ge=0.1, le=100, allow_inf_nan=False)
    live_average: int = Field(10, ge=1, le=10**6, strict=True)
    rois: tuple[Roi, ...] = ()
    curve_key: str = ""
    curve_server_keys: tuple[str, ...] = ()
    curve_clients: str = ""
    allow_peers: tuple[str, ...] = ()

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, value: str) -> str:
        if value not in PROTOCOLS:
            raise ValueError(f"{value!r} is not known, known are: {', '.join(PROTOCOLS)}")
        return value

    @field_validator("images", mode="before")
    @classmethod
    def _may_be_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError as exc:
            raise ValueError(f"{value!r} is not like {{shape: [516, 1556]}} ({' '.join(str(exc).split())})") from exc

    @field_validator("rois", mode="before")
    @classmethod
    def _rectangles(cls, value: Any) -> tuple[Roi, ...]:
        try:
            return parse_rois(value)
        except ConfigError as exc:
            raise ValueError(str(exc).removeprefix("rois: ")) from exc

    @field_validator("endpoints", "curve_server_keys", "allow_peers", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("endpoints")
    @classmethod
    def _tcp_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in value:
            match = _ENDPOINT.fullmatch(endpoint)
            if not match or not 0 < int(match[2]) < 65536:
                raise ValueError(f"{endpoint!r} is not like tcp://host:9999")
        if len(set(value)) != len(value):
            raise ValueError("the same endpoint twice")
        return value

    @field_validator("root")
    @classmethod
    def _existing_directory(cls, value: Path) -> Path:
        try:
            root = value.expanduser().resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as exc:
            raise ValueError(f"{value} does not exist: create it or name another directory ({exc})") from exc
        if not root.is_dir():
            raise ValueError(f"{value} is not a directory")
        return root

    @field_validator("dataset")
    @classmethod
    def _path_in_the_file(cls, value: str) -> str:
        path = value.strip("/")
        names = path.split("/")
        if len(names) < 2 or not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) for name in names):
            raise ValueError(f"{value!r} is not like entry/instrument/detector/data")
        if names[-1] in _TAKEN or names[-1].endswith("_channel") or names[1:] == ["instrument"]:
            raise ValueError(f"{value!r}: the file has something else of this name, for instance call it data")
        return path

    @field_validator("http")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        match = _ADDRESS.fullmatch(value)
        if value and (not match or int(match[2]) > 65535):
            raise ValueError(f"{value!r} is not like 127.0.0.1:8000 (port 0: any free one; '' for none)")
        return value

    @field_validator("http_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"\[?[A-Za-z0-9_.:%-]+\]?", name) or "//" in name:
                raise ValueError(f"{name!r} is no name of a computer, like beamline7.example.org")
        return value

    @field_validator("http_token_file")
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError(f"{value!r} does not begin with /: say where the file is")
        return value

    @field_validator("forward", mode="before")
    @classmethod
    def _ports_in_words(cls, value: Any) -> Any:
        ports = [] if value is None or value == "" else value if isinstance(value, list | tuple) else [value]
        return [port_in_words(port) for port in ports]

    @field_validator("forward")
    @classmethod
    def _ports_differ(cls, value: tuple[ForwardPort, ...]) -> tuple[ForwardPort, ...]:
        fixed = [port.endpoint for port in value if not port.endpoint.endswith(":0")]
        if len(set(fixed)) != len(fixed):
            raise ValueError("the same endpoint twice")
        if len(value) > MAX_PORTS:
            raise ValueError(f"{len(value)} ports, more than {MAX_PORTS}")
        return value

    @model_validator(mode="after")
    def _subscribers_share_no_stream(self) -> ReceiverConfig:
        if self.subscribes and self.workers > len(self.endpoints):
            raise ValueError(
                f"workers: {self.workers} cannot share {len(self.endpoints)} endpoint(s): every SUB socket gets all "
                "that is published; at most one worker for each endpoint"
            )
        return self

    @model_validator(mode="after")
    def _read_in_order(self) -> ReceiverConfig:
        if self.workers > 1 and not self.subscribes and PROTOCOLS[self.protocol].in_order:
            raise ValueError(
                f"workers: {self.workers} cannot share a stream of protocol {self.protocol}, whose messages must be "
                "read in the order in which they were sent; use one"
            )
        return self

    @model_validator(mode="after")
    def _images_where_they_are_needed(self) -> ReceiverConfig:
        needed = PROTOCOLS[self.protocol].images
        if needed and self.images is None:
            raise ValueError(
                f"images: missing; messages of protocol {self.protocol} do not tell how images are. Set for example "
                "images: {shape: [516, 1556]}"
            )
        if self.images is not None and not needed:
            raise ValueError(f"images: messages of protocol {self.protocol} tell how images are; leave it out")
        return self

    @property
    def image_kind(self) -> Images | None:
        """`images` as decoders take them."""
        said = self.images
        return None if said is None else Images(said.shape, said.type, said.compression, said.counters)

    @property
    def subscribes(self) -> bool:
        """Its sockets are SUB: each endpoint belongs to one worker, and what comes too fast is dropped."""
        return self.socket == "sub" or (not self.socket and PROTOCOLS[self.protocol].subscribes)


def port_in_words(given: Any) -> Any:
    """A forwarding port as one may write it: its address, or its settings in YAML, with braces or without."""
    if not isinstance(given, str):
        return given
    text = given.strip()
    try:
        read = yaml.safe_load(text if text.startswith("{") or ": " not in text else f"{{{text}}}")
    except yaml.YAMLError as exc:
        raise ValueError(f"{given!r}: not YAML ({' '.join(str(exc).split())})") from exc
    return read if isinstance(read, dict) else {"endpoint": text}


def make(values: Mapping[str, Any], source: str = "configuration") -> ReceiverConfig:
    """Check the values; ConfigError lists all mistakes in one message, after the name of the `source`."""
    try:
        return ReceiverConfig.model_validate(dict(values))
    except ValidationError as exc:
        raise ConfigError(f"{source}: " + "; ".join(_mistake(error) for error in exc.errors())) from exc


def load(path: str | Path) -> ReceiverConfig:
    """Read a YAML file; ConfigError lists all mistakes."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(exc).split())})") from exc
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not 'key: value' lines")
    return make({str(key): value for key, value in values.items()}, str(path))


def _mistake(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "configuration"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    text = error["msg"].removeprefix("Value error, ")
    return f"{key}: {text}" if error["type"] == "value_error" else f"{key}: {text} (found {error['input']!r})"
