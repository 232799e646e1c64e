"""A Lambda by xspd, X-Spectrum's daemon on the control unit: REST for orders, PUB sockets for frames."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tangods_detector.hw.lambda_system import (
    DTYPES,
    READINGS,
    RESIZING,
    SETTINGS,
    Description,
    Feature,
    LambdaSystem,
    Module,
    ModuleStatus,
    Value,
)
from tangods_detector.hw.lambda_xspd_frames import Acquisition, Frames
from tangods_detector.hw.rest import Connection
from tangods_receiver.errors import ConfigError, HardwareError

PORT = 8008
WORDS = ("connected", "ready", "busy")  # of a status
ANYWHERE = ("", "0.0.0.0", "*", "::")  # addresses of a port that say nothing
VOLTAGE_EVERY = 0.3  # s between two looks at the high voltage
STEADY, STEADY_FOR = 0.01, 0.5  # of its value, s: what changes less has settled
NEAR = 0.02  # of the expected voltage
FEATURES = {
    "FEAT_HV": Feature.HV,
    "FEAT_1_6_BIT": Feature.BITS_1_6,
    "FEAT_MEDIPIX_DAC_IO": Feature.MEDIPIX_DAC_IO,
    "FEAT_EXTENDED_GATING": Feature.EXTENDED_GATING,
}


@dataclass(frozen=True)
class XspdOptions:
    """`url` host, host:port or http://host:port; `device` "": the first; `timeout` s of a request; `high_voltage` V
    that modules must have (0: what they have must not change any more); `memory` bytes of frames that may wait."""

    url: str
    device: str = ""
    timeout: float = 5.0
    high_voltage: float = 0.0
    memory: int = 2_000_000_000


@dataclass(frozen=True)
class Source:
    """A data port: of one module (`modules` of one name), or of the whole image."""

    name: str  # port-1
    endpoint: str
    ref: str  # lambda/1, or lambda
    modules: tuple[str, ...]


@dataclass
class Voltage:
    """What the high voltage of one module does."""

    value: float = 0.0
    steady_since: float | None = None
    looked: float = 0.0


class LambdaXspd(LambdaSystem):
    """A combined data port is one module here, of the size of the image."""

    settle = 0.5  # s that a frame may need from xspd to us

    def __init__(self, options: XspdOptions) -> None:
        """ConfigError: its address is none."""
        self._options = options
        self._host, self._port = host_and_port(options.url)
        self._connection: Connection | None = None
        self._frames: Frames | None = None
        self._device = self._detector = self._library = ""
        self._known: frozenset[str] = frozenset()
        self._modules: tuple[str, ...] = ()  # all that the detector has
        self._sources: tuple[Source, ...] = ()
        self._voltages: dict[str, Voltage] = {}
        self._with_voltage: frozenset[str] = frozenset()
        self._allocating = True
        self._last: dict[str, Any] = {}  # what was read or set last, by path

    # --- the link ----------------------------------------------------------------------------------------------------

    def connect(self) -> Description:
        self.close()
        self._last.clear()
        self._connection = Connection(self._host, self._port, self._options.timeout, what="xspd")
        try:
            self._library = f"xspd {self._ask('/api').get('xspd version', '')}".strip()
            self._find_device()
            self._known = frozenset(row["path"] for row in self._ask(self._path("variables")))
            self._find_ports()
            self._frames = Frames([source.endpoint for source in self._sources], self._options.memory)
            return self.describe()
        except (KeyError, TypeError, AttributeError, IndexError) as exc:
            self.close()
            raise HardwareError(
                f"http://{self._host}:{self._port} answers otherwise than xspd does ({exc!r}); is this xspd?"
            ) from exc
        except BaseException:
            self.close()
            raise

    def _find_device(self) -> None:
        there = [row["id"] for row in self._ask("/api/v1/devices")["devices"]]
        wanted = self._options.device or (there[0] if there else "")
        if wanted not in there:
            raise HardwareError(f"xspd has no device {wanted!r}; there are {', '.join(there) or 'none'}")
        self._device = wanted

    def _find_ports(self) -> None:
        """A port for each module where there is one, else the first that gives the whole image."""
        system = self._ask(self._path())["system"]
        detector = system["detectors"][0]
        self._detector = detector["id"]
        self._modules = tuple(f"{self._detector}/{k}" for k in range(1, int(detector["modules"]) + 1))
        ports = {row["ref"]: row for row in reversed(system["data-ports"])}
        single = [self._source(ports[name], (name,)) for name in self._modules if name in ports]
        if len(single) == len(self._modules):
            self._sources = tuple(single)
        elif self._detector in ports:
            self._sources = (self._source(ports[self._detector], self._modules),)
        else:
            missing = [name for name in self._modules if name not in ports]
            raise HardwareError(f"xspd has no data port for {', '.join(missing)}; add them to its system.yml")

    def _source(self, row: dict[str, Any], modules: tuple[str, ...]) -> Source:
        ip = str(row.get("ip", ""))
        host = self._host if ip in ANYWHERE else ip
        return Source(row["id"], f"tcp://{host}:{row['port']}", row["ref"], modules)

    def close(self) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def describe(self) -> Description:
        modules = tuple(self._described(source) for source in self._sources)
        return Description(self._detector, self._library, modules, self._whole("bit_depth"))

    def _described(self, source: Source) -> Module:
        single = len(source.modules) == 1
        if f"{source.ref}/compressor" in self._known:
            self._read(f"{source.ref}/compressor")
        first = source.modules[0]
        chips = [chip for name in source.modules for chip in self._known_value(f"{name}/chip_ids")]
        features = [self._features(name) for name in source.modules]
        x, y, *_ = self._known_value(f"{first}/position") if single else (0.0, 0.0)
        return Module(
            name=source.ref,
            shape=self._shape(source),
            x=float(x),
            y=float(y),
            rotation=_in_plane(self._known_value(f"{first}/rotation")) if single else 0.0,
            serial_number=chips[0] if chips else "",
            firmware=str(self._known_value(f"{first}/firmware_version")),
            features=Feature(int(np.bitwise_and.reduce([int(f) for f in features]))),
            chip_ids=tuple(chips),
        )

    def _features(self, name: str) -> Feature:
        told = Feature(0)
        for word in self._known_value(f"{name}/features"):
            told |= FEATURES.get(word, Feature(0))
        if told & Feature.HV:
            self._with_voltage |= {name}
        return told

    # --- values ------------------------------------------------------------------------------------------------------

    def get(self, name: str, module: int | None = None) -> Value:
        if module is None:
            return self._of(name)
        source = self._source_at(module)
        if name == "frames_queued":
            return self._queued(module)
        told = [self._read(f"{of}/{name}") for of in source.modules]
        if len(told) == 1:
            return _typed(name, told[0])
        if name == "temperature":
            return [float(value) for values in told for value in values]
        return _typed(name, min(told) if name in ("voltage", "max_frames", "saturation_threshold") else max(told))

    def set(self, name: str, value: Value, module: int | None = None) -> None:
        text = ",".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
        if module is not None:
            paths = [f"{of}/{name}" for of in self._source_at(module).modules]
        elif name == "frames_per_trigger" and f"{self._detector}/{name}" not in self._known:
            if value != 1:
                raise HardwareError(f"frames_per_trigger: this xspd takes one frame a trigger, not {value}")
            return
        else:
            paths = self._paths(name)
        self._allocating |= name in RESIZING
        for path in paths:
            self._last[path] = _value_in(self._there.put_query(self._path("variables"), path=path, value=text), path)

    def _of(self, name: str) -> Value:
        if name == "frames_per_trigger" and f"{self._detector}/{name}" not in self._known:
            return 1
        return _typed(name, self._read(self._paths(name)[0]))

    def _paths(self, name: str) -> list[str]:
        """Of the detector, or (interpolation, in some versions) of each module."""
        if f"{self._detector}/{name}" in self._known:
            return [f"{self._detector}/{name}"]
        found = [f"{of}/{name}" for of in self._modules if f"{of}/{name}" in self._known]
        if not found:
            raise HardwareError(f"{name}: {self._library} has no such variable")
        return found

    def pixel_mask(self, module: int) -> NDArray[np.uint32] | None:
        source = self._source_at(module)
        try:
            raw = base64.b64decode(str(self._read(f"{source.name}/pixel_mask")), validate=True)
        except ValueError:
            return None
        shape = self._shape(source)
        kinds = {shape[0] * shape[1] * size: dtype for size, dtype in ((1, "u1"), (2, "<u2"), (4, "<u4"))}
        if len(raw) not in kinds:
            return None
        return np.frombuffer(raw, kinds[len(raw)]).reshape(shape).astype(np.uint32)

    # --- a series ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        frames = self._there_frames
        frames.forget()
        frames.begin(self._planned())
        self._there.command(self._path("commands"), path="start")

    def _planned(self) -> Acquisition:
        """What xspd is set to, as was read or set last."""
        names = ("bit_depth", "counter_mode", "trigger_mode", "gating_mode", "n_frames", "shutter_time")
        now = {name: self._known_value(f"{self._detector}/{name}") for name in names}
        itemsize = np.dtype(DTYPES[now["bit_depth"]]).itemsize
        counters = 2 if now["counter_mode"] == "DUAL" else 1
        paced = now["trigger_mode"] != "EXT_FRAMES" and now["gating_mode"] != "ON"
        return Acquisition(
            frames=now["n_frames"] * counters,
            period=now["shutter_time"] / 1000 if paced else None,
            counters=counters,
            compressor=[str(self._last.get(f"{source.ref}/compressor", "none")) for source in self._sources],
            nbytes=[rows * columns * itemsize for rows, columns in map(self._last_shape, self._sources)],
        )

    def _last_shape(self, source: Source) -> tuple[int, int]:
        return int(self._known_value(f"{source.name}/frame_height")), int(
            self._known_value(f"{source.name}/frame_width")
        )

    def _shape(self, source: Source) -> tuple[int, int]:
        return int(self._read(f"{source.name}/frame_height")), int(self._read(f"{source.name}/frame_width"))

    def _whole(self, name: str) -> int:
        value = self._of(name)
        if not isinstance(value, int):
            raise HardwareError(f"{name}: xspd tells {value!r}, which is not int")
        return value

    def stop(self) -> None:
        self._there.command(self._path("commands"), path="stop")

    def reset(self) -> None:
        self._there.command(self._path("commands"), path="reset")
        self._allocating = True
        self._last.clear()
        self._voltages.clear()

    def status(self) -> tuple[ModuleStatus, ...]:
        """One request where nothing is going on; where something does, one for each module, or two."""
        overall = self._word(self._detector)
        words = {name: overall if overall == "ready" else self._word(name) for name in self._modules}
        ready = overall == "ready"
        allocated = dict.fromkeys(self._modules, True)
        if self._allocating and overall != "busy":
            allocated = {name: bool(self._read(f"{name}/ram_allocated")) for name in self._modules}
            self._allocating = not all(allocated.values())
        settled = {name: overall == "busy" or self._settled(name) for name in self._modules}
        queued = [self._queued(k) if not ready else self._waiting(k) for k in range(len(self._sources))]
        return tuple(
            ModuleStatus(
                connected=all(words[name] in WORDS for name in source.modules),
                ready=all(words[name] == "ready" for name in source.modules),
                busy=all(words[name] == "busy" for name in source.modules),
                ram_allocated=all(allocated[name] for name in source.modules),
                voltage_settled=all(settled[name] for name in source.modules),
                frames_queued=queued[k],
            )
            for k, source in enumerate(self._sources)
        )

    def _word(self, of: str) -> str:
        return str(self._read(f"{of}/status")).lower()

    def _queued(self, position: int) -> int:
        """In xspd and here."""
        return int(self._read(f"{self._sources[position].name}/frames_queued")) + self._waiting(position)

    def _waiting(self, position: int) -> int:
        return self._frames.waiting(position) if self._frames is not None else 0

    def _settled(self, name: str) -> bool:
        """As wished, or the same for a while. True where there is no high voltage."""
        if name not in self._with_voltage:
            return True
        known, now = self._voltages.setdefault(name, Voltage()), time.monotonic()
        if now - known.looked >= VOLTAGE_EVERY:
            value = float(self._read(f"{name}/voltage"))
            if abs(value - known.value) > max(1.0, STEADY * abs(value)) or known.steady_since is None:
                known.steady_since, known.value = now, value
            known.looked = now
        expected = self._options.high_voltage
        if expected:
            return abs(known.value - expected) <= NEAR * expected
        return known.steady_since is not None and now - known.steady_since >= STEADY_FOR

    # --- frames ------------------------------------------------------------------------------------------------------

    def next_frame(self, module: int, timeout: float) -> Any:
        frames = self._frames
        if frames is None:
            raise HardwareError("not connected to xspd")
        return frames.next(module, timeout)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    @property
    def _there(self) -> Connection:
        if self._connection is None:
            raise HardwareError("not connected to xspd")
        return self._connection

    @property
    def _there_frames(self) -> Frames:
        if self._frames is None:
            raise HardwareError("not connected to xspd")
        return self._frames

    def _source_at(self, position: int) -> Source:
        if not 0 <= position < len(self._sources):
            raise HardwareError(f"there is no module {position}, there are {len(self._sources)}")
        return self._sources[position]

    def _path(self, kind: str = "") -> str:
        return f"/api/v1/devices/{self._device}" + (f"/{kind}" if kind else "")

    def _ask(self, path: str) -> Any:
        return self._there.read(path)

    def _read(self, path: str) -> Any:
        value = self._last[path] = _value_in(self._there.read(self._path("variables"), path=path), path)
        return value

    def _known_value(self, path: str) -> Any:
        """Of what does not change by itself."""
        return self._last[path] if path in self._last else self._read(path)


def _value_in(answer: Any, path: str) -> Any:
    if not isinstance(answer, dict) or "value" not in answer:
        raise HardwareError(f"{path}: xspd answers {answer!r}, which has no value")
    return answer["value"]


def host_and_port(address: str) -> tuple[str, int]:
    """Of `lambda1`, `lambda1:8008` or `http://lambda1:8008`. ConfigError: it is none of them."""
    try:
        parts = urlsplit(address if "//" in address else f"http://{address}")
        if parts.scheme == "http" and parts.hostname and parts.port != 0 and parts.path in ("", "/"):
            return parts.hostname, parts.port or PORT
    except ValueError:
        pass
    raise ConfigError(f"xspd: {address!r} is not an address such as lambda1 or http://lambda1:{PORT}")


def _typed(name: str, value: Any) -> Value:
    """As the tables of the interface have it."""
    kind = {**SETTINGS, **READINGS}.get(name, str)
    try:
        if kind is list:
            return [float(one) for one in value]
        return kind(value)
    except (TypeError, ValueError) as exc:
        raise HardwareError(f"{name}: xspd tells {value!r}, which is not {kind.__name__}") from exc


def _in_plane(angles: Any) -> float:
    """Of three angles the one in the plane of the sensor, the only one of a flat detector that is not 0."""
    turned = [float(angle) for angle in angles if angle]
    return turned[0] if turned else 0.0
