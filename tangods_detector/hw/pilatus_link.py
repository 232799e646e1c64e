"""What the device has of a Pilatus: a connection to camserver that has control, and the streamer of the images."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tangods_detector.hw import pilatus_replies as replies
from tangods_detector.hw.base import DetectorInfo
from tangods_detector.hw.pilatus_camserver import Camserver, NoControl, Refused
from tangods_detector.hw.pilatus_client import PilatusStreamer
from tangods_detector.hw.pilatus_guard import Guard
from tangods_detector.hw.pilatus_run import Options as StreamOptions
from tangods_detector.options import option
from tangods_receiver import security
from tangods_receiver.errors import ConfigError, HardwareError

log = logging.getLogger(__name__)

PIXEL = 172e-6  # m
CONTROL = 1.5  # s that a client that has just left may still have control
SLOW_READOUT = 3.0  # ms, where camserver does not tell
OLD = (7, 4, 3)  # up to this version a PILATUS3 takes a threshold only after `setthreshold 0`
CLIMATE = 10.0  # s between two looks at the temperature
REMEMBERED: dict[tuple[str, str], int] = {}  # stream ports that were taken where any was allowed: the same again
IMGPATH, SETTING, VERSION, CAMSETUP, TELEMETRY, THREAD = 10, 15, 24, 2, 18, 215


@dataclass(frozen=True)
class PilatusOptions:
    """Where camserver is, and who reads its images."""

    host: str = field(metadata={"doc": "name or address of the computer on which camserver runs; must be given"})
    port: int = option(41234, "TCP port of camserver")
    folder: str = option("", "RAM disk into which camserver writes; empty: the folder of stream-pilatus")
    streamer: str = option(
        "", "orders of stream-pilatus, such as tcp://10.1.1.5:9998; empty: images are read in this process"
    )
    endpoint: str = option("", "where receivers pull the stream from; empty: as the streamer says, by `host`")
    stream_host: str = option("127.0.0.1", "address that is listened at where images are read in this process")
    stream_port: int = option(9999, "port there; 0: any free one")
    keep: int = option(10, "files that stay behind those being sent, where images are read in this process")
    md5_share: float = option(0.05, "of its time that may go into sums of images there; 1: all are checked, 0: none")
    curve_key: str = option("", "this side's .key_secret file, where the streamer asks for keys, or is to ask for them")
    curve_server_key: str = option("", "the .key file of stream-pilatus")
    curve_clients: str = option("", "folder with a .key file of each who may pull, where this process reads the images")
    allow_peers: tuple[str, ...] = option((), "addresses, with commas, that may pull from this process; empty: all")
    timeout: float = option(10.0, "limit for an ordinary command, s")
    threshold_timeout: float = option(110.0, "limit for setthreshold and setenergy, s")
    patience: float = option(8.0, "how long stream-pilatus may be silent in a series, s")

    def __post_init__(self) -> None:
        problems = [
            f"{name}: {value} is not between {low} and {high}"
            for name, value, low, high in (
                ("port", self.port, 1, 65535),
                ("stream_port", self.stream_port, 0, 65535),
                ("keep", self.keep, 0, 1000),
                ("md5_share", self.md5_share, 0, 1),
                ("timeout", self.timeout, 0.1, 3600),
                ("threshold_timeout", self.threshold_timeout, 1, 3600),
                ("patience", self.patience, 1, 3600),
            )
            if not low <= value <= high
        ]
        if not self.host.strip() or "/" in self.host:
            problems.append(f"host: {self.host!r} is no name or address of a computer")
        if not self.streamer and not self.folder:
            problems.append("folder: missing; give the RAM disk, or streamer = tcp://HOST:9998")
        if self.folder and not os.path.isabs(self.folder):
            problems.append(f"folder: {self.folder!r} does not begin with /")
        if self.streamer and bool(self.curve_key) != bool(self.curve_server_key):
            problems.append("curve_key, curve_server_key: both or none, where there is a streamer")
        if self.streamer and not self.streamer.startswith("tcp://"):
            problems.append(f"streamer: {self.streamer!r} is not like tcp://10.1.1.5:9998")
        if problems:
            raise ConfigError("; ".join(problems))


class Link:
    """From its making to `close`. The thread that owns the detector asks; `stop`s come from any."""

    def __init__(self, options: PilatusOptions) -> None:
        """HardwareError: camserver or the streamer is not there; NoControl: somebody else commands camserver."""
        self.options = options
        self.there = self._in_control()
        self._streamer: PilatusStreamer | None = None
        self._known: dict[str, tuple[str, str]] = {}  # what camserver was told, and its answer
        self._climate: list[replies.Channel] = []
        self._felt = 0.0
        try:
            self._streamer = self._new_streamer()
            self.folder, self.endpoint = self._places()
            self.version = self._told("version", VERSION)
            self.model, self.serial = replies.name_and_serial(self._told("camsetup", CAMSETUP))
            self.full_shape = self._shape()
            self.readout = (replies.number(self._told("readouttime"), ":") or SLOW_READOUT) / 1000
            self.threshold = replies.threshold(self._told("setthreshold"))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Safe twice."""
        if self._streamer is not None:
            self._streamer.close()
        self.there.close()

    @property
    def streamer(self) -> PilatusStreamer:
        assert self._streamer is not None
        return self._streamer

    def _new_streamer(self) -> PilatusStreamer:
        o = self.options
        if o.streamer:
            credentials = None
            if o.curve_key:
                own, server = security.key_pair(o.curve_key), security.public_key(o.curve_server_key)
                credentials = security.Credentials(own, server)
            return PilatusStreamer(o.streamer, 1.0, credentials)
        where = o.stream_host, o.folder
        try:
            guard = Guard(o.allow_peers, o.curve_key, o.curve_clients)
        except ValueError as exc:
            raise ConfigError(f"curve_key, curve_clients: {exc}") from exc
        make = StreamOptions(o.folder, o.stream_host, o.stream_port, keep=o.keep, md5_share=o.md5_share, guard=guard)
        try:
            os.makedirs(o.folder, exist_ok=True)
            try:
                made = PilatusStreamer.here(make._replace(port=o.stream_port or REMEMBERED.get(where, 0)))
            except HardwareError:
                if o.stream_port or where not in REMEMBERED:
                    raise
                made = PilatusStreamer.here(make)  # somebody else has the port that we had, but nobody asked for it
        except OSError as exc:
            raise HardwareError(f"{o.folder}: {exc.strerror}; is it the RAM disk of this computer?") from exc
        REMEMBERED[where] = int(made.endpoint().rpartition(":")[2])
        return made

    def end_exposure(self) -> None:
        """By a new connection, where ours broke."""
        self._in_control().close()

    def _in_control(self) -> Camserver:
        """A connection to camserver that may command; whatever somebody has left exposing is ended."""
        o, deadline = self.options, time.monotonic() + CONTROL
        while True:
            camserver = Camserver(o.host, o.port, o.timeout)
            try:
                with suppress(Refused):  # an old one need not know this; who has no control is told so
                    camserver.ask("setackint 0")
                camserver.settle(kill=True)
                return camserver
            except NoControl:
                camserver.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            except BaseException:
                camserver.close()
                raise

    def _places(self) -> tuple[str, str]:
        """The images' folder, as camserver is told; where the stream is pulled from."""
        about = self.streamer.ping()
        folder = self.options.folder or str(about["folder"])
        if self.options.endpoint:
            return folder, self.options.endpoint
        address = urlsplit(str(about["endpoint"]))
        own = address.hostname in ("127.0.0.1", "0.0.0.0", "::", "::1", None)
        if self.options.streamer and own:
            return folder, f"tcp://{urlsplit(self.options.streamer).hostname}:{address.port}"
        return folder, str(about["endpoint"])

    def _shape(self) -> tuple[int, int]:
        """Rows, columns of the whole detector."""
        found = replies.image_format(self._told("telemetry", TELEMETRY))
        if found is None and replies.size(self.model):
            found = replies.shape(*replies.MODULES[replies.size(self.model)])
        if found is None:
            raise HardwareError(
                f"camserver at {self.options.host}: neither telemetry nor camsetup ({self.model!r}) says how large the "
                "images are; is this a PILATUS?"
            )
        return found

    def info(self) -> DetectorInfo:
        """What is known before there is an image; the sensor is in the header of each."""
        return DetectorInfo(
            model=self.model or "PILATUS",
            serial_number=self.serial,
            shape=self.full_shape,
            pixel_size=(PIXEL, PIXEL),
            sensor_material="",
            firmware=f"camserver {'.'.join(map(str, replies.version(self.version))) or self.version}",
        )

    @property
    def is_pilatus3(self) -> bool:
        return "PILATUS3" in self.model.upper().replace(" ", "")

    # --- camserver ---------------------------------------------------------------------------------------------------

    def _told(self, command: str, code: int = SETTING) -> str:
        """What camserver says of itself; "" where it does not know the question."""
        try:
            return self.ask(command, code)
        except Refused as exc:
            log.info("%s", exc)
            return ""

    def ask(self, command: str, code: int = SETTING, words: str = "", limit: float = 0.0, again: bool = True) -> str:
        """As Camserver's."""
        return self.there.ask(command, code, words, limit, again)

    def set(self, command: str, value: Any, code: int = SETTING, words: str = "") -> str:
        """Tell camserver, unless it knows that already; its answer. ConfigError: it does not take the value."""
        text = f"{value:.9g}" if isinstance(value, float) else str(value)
        if command not in self._known or self._known[command][0] != text:
            self._known.pop(command, None)
            try:
                answer = self.ask(f"{command} {text}", code, words)
            except Refused as exc:
                raise ConfigError(str(exc)) from exc
            self._known[command] = (text, answer)
        return self._known[command][1]

    def set_threshold(self, command: str) -> None:
        """setenergy or setthreshold, which take up to 96 s and change other settings. ConfigError: out of range, or not
        taken."""
        limit = self.options.threshold_timeout
        self._known.clear()
        refused: Refused | None = None
        try:
            if self.is_pilatus3 and replies.version(self.version) <= OLD:
                self.ask("setthreshold 0", limit=limit, again=False)
            self.ask(command, limit=limit, again=False)
        except Refused as exc:
            refused = exc
        self.threshold = replies.threshold(self._told("setthreshold"))
        if refused is not None:
            raise ConfigError(str(refused)) from refused

    def forget(self) -> None:
        """camserver may have changed its settings: all are told again."""
        self._known.clear()

    def climate(self, ask: bool) -> list[replies.Channel]:
        """Sensors of temperature and humidity, asked for now and then; as last known where it is not to be asked."""
        if ask and (not self._felt or time.monotonic() - self._felt > CLIMATE):
            self._felt = time.monotonic()
            try:
                self._climate = replies.climate(self.ask("thread", THREAD))
            except Refused as exc:  # there is no such thing in this one
                log.debug("%s", exc)
        return self._climate
