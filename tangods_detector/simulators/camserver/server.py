"""The simulator as a whole: camserver, a thread for each connection, and the test-only port."""

from __future__ import annotations

import json
import logging
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from tangods_detector.simulators.camserver import commands
from tangods_detector.simulators.camserver.failures import Failures
from tangods_detector.simulators.camserver.options import CamserverOptions
from tangods_detector.simulators.camserver.unit import Camserver, Gone
from tangods_receiver.errors import ConfigError

log = logging.getLogger(__name__)

END = b"\x18"  # of a reply; \n, \0 and this end a command
TERMINATORS = re.compile(rb"[\n\0\x18]")
LINE = 65536  # bytes of a command
LOOK = 0.05  # s
SEND_LIMIT = 5.0  # s that a client may take nothing
STOP_LIMIT = 10.0  # s


class CamserverSimulator:
    """A camserver at loopback (or `options.host`) from `__enter__` to `__exit__`.

    `edge` and `fail` are what a test does to it; see `Failures`."""

    def __init__(self, options: CamserverOptions | None = None) -> None:
        self.options = options or CamserverOptions()
        self.unit = Camserver(self.options)
        self.port = 0
        self.test_port = 0
        self._listeners: list[Listener] = []

    def __enter__(self) -> CamserverSimulator:
        try:
            self.unit.start()
        except OSError as exc:
            raise ConfigError(f"folder: {self.options.folder}: {exc.strerror or exc}") from exc
        try:
            for port, kind in ((self.options.port, Connection), (self.options.test_port, Tester)):
                self._listeners.append(Listener(self, self.options.host, port, kind))
        except ConfigError:
            self.close()
            raise
        self.port, self.test_port = (listener.port for listener in self._listeners)
        return self

    def close(self) -> None:
        """Safe twice."""
        for listener in self._listeners:
            listener.halt()
        for listener in self._listeners:
            listener.join()
        self._listeners.clear()
        self.unit.close()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # --- what tests use ----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """Where relative image paths begin."""
        return self.unit.folder

    @property
    def written(self) -> list[tuple[str, str]]:
        """(file name, MD5 of its pixels as int32, little-endian) of the last series; without files that were damaged
        or left out on purpose."""
        return list(self.unit.written)

    def image(self, number: int) -> Any:
        """What the last series shows as image `number`: int32, rows x columns."""
        series = self.unit.shown
        if series is None:
            raise ConfigError("image: there was no series")
        return series.picture(number).stamped(number if self.options.stamp else None)

    @property
    def happened(self) -> list[str]:
        """Failures that took place, oldest first."""
        return self.unit.happened

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        """`n` external edges, or gates of `width` s (0: the exposure time), `period` s apart (None: as soon as the
        detector is free)."""
        self.unit.edge(n, width, period)

    def fail(self, failures: Failures) -> None:
        """What goes wrong next, instead of what was wished before."""
        self.unit.fail(failures)


class Listener:
    """Accepts connections, each with a thread of its own. ConfigError: the port is in use."""

    def __init__(self, simulator: CamserverSimulator, host: str, port: int, kind: Callable[..., Peer]) -> None:
        self._simulator = simulator
        self._kind = kind
        self._peers: list[Peer] = []
        self._stop = threading.Event()
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=f"camserver port {self.port}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._socket:
            while not self._stop.is_set():
                readable, _, _ = select.select([self._socket], [], [], LOOK)
                if readable:
                    sock, _ = self._socket.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._peers = [peer for peer in self._peers if peer.thread.is_alive()]
                    self._peers.append(self._kind(self._simulator, sock, self._stop))

    def halt(self) -> None:
        self._stop.set()

    def join(self) -> None:
        self._thread.join(STOP_LIMIT)
        for peer in self._peers:
            peer.drop()
            peer.thread.join(STOP_LIMIT)


class Peer:
    """One connection."""

    def __init__(self, simulator: CamserverSimulator, sock: socket.socket, stop: threading.Event) -> None:
        self.simulator = simulator
        self.unit = simulator.unit
        self._sock = sock
        self._stop = stop
        self._sending = threading.Lock()
        sock.settimeout(SEND_LIMIT)
        self.thread = threading.Thread(target=self._run, name="camserver connection", daemon=True)
        self._begin()
        self.thread.start()

    def _begin(self) -> None:
        """Before the first line."""

    def _leave(self) -> None:
        """Behind the last one."""

    def line(self, text: str) -> None:
        raise NotImplementedError

    def flush(self) -> bool:
        """Is there something that waits to be sent? Sends it."""
        return False

    def _run(self) -> None:
        rest = b""
        try:
            while not self._stop.is_set():
                readable, _, _ = select.select([self._sock], [], [], LOOK)
                if not readable:
                    self.flush()
                    continue
                data = self._sock.recv(LINE)
                if not data:
                    break
                *lines, rest = TERMINATORS.split(rest + data)
                for raw in lines:
                    text = raw.decode("latin-1").strip()
                    if text:
                        self.line(text)
                if len(rest) > LINE:
                    break
        except (OSError, ValueError, Gone):
            pass  # closed by the client, by a failure or at the end
        finally:
            self._leave()
            self._sock.close()

    def put(self, data: bytes) -> None:
        """Lost when the client has left."""
        with self._sending, suppress(OSError):
            self._sock.sendall(data)

    def drop(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    @property
    def left(self) -> bool:
        """The client has closed the connection and nothing of it waits to be read."""
        try:
            readable, _, _ = select.select([self._sock], [], [], 0)
            return bool(readable) and not self._sock.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def wait(self, seconds: float) -> None:
        """Gone: the client has left, or all ends."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if self._stop.is_set() or self.left:
                raise Gone
            if left <= 0:
                return
            time.sleep(min(0.01, left))


class Connection(Peer):
    """A client of camserver. The first has control, the next one to connect after it has left."""

    def _begin(self) -> None:
        self._held = b""
        with self.unit.lock:
            if self.unit.controller is None or self.unit.controller.left:
                self.unit.controller = self

    @property
    def control(self) -> bool:
        return self.unit.controller is self

    def _leave(self) -> None:
        with self.unit.lock:
            if self.control:
                self.unit.controller = None

    def drop(self) -> None:
        super().drop()
        self._leave()

    def line(self, text: str) -> None:
        unit = self.unit
        with unit.lock:
            gone = unit.failures.take_text("disconnect", text)
            slow = unit.failures.hang_seconds if unit.failures.take_text("hang", text) else 0.0
            if gone or slow:
                unit.note(f"{'disconnect' if gone else 'hang'} {text}")
        if gone:
            raise Gone
        if slow:
            self.wait(slow)
        answer = commands.answer(unit, text, self)
        if answer is not None:
            self.send(answer)

    def send(self, text: str) -> None:
        """One reply, as it should come or as a failure wants it."""
        unit = self.unit
        data = text.encode("latin-1", "replace") + END
        with unit.lock:
            failures = unit.failures
            noise = failures.take("noise")
            if noise:
                unit.note("noise")
                data = noise.encode("latin-1", "replace") + END + data
            if failures.take_text("mute", text):
                unit.note(f"mute {text}")
                return
            data = self._held + data
            self._held = b""
            if failures.take_one("merge"):
                unit.note("merge")
                self._held = data
                return
            split = failures.take_one("split")
            if split:
                unit.note("split")
            # with the lock held: replies leave in their order
            for piece in [data[k : k + 1] for k in range(len(data))] if split else [data]:
                self.put(piece)
                if split:
                    time.sleep(0.0005)

    def flush(self) -> bool:
        with self.unit.lock:
            data, self._held = self._held, b""
            if data:
                self.put(data)
        return bool(data)


class Tester(Peer):
    """What no real detector has: one JSON object a line, answered by one.

    {"edge": 3, "width": 0.01, "period": 0.1} or {"fail": {...}}; `written`: true asks for what was written."""

    def line(self, text: str) -> None:
        try:
            answer = self._answer(json.loads(text))
        except (ValueError, TypeError, AttributeError, ConfigError) as exc:
            answer = {"error": str(exc)}
        self.put(json.dumps(answer).encode() + b"\n")

    def _answer(self, told: dict[str, Any]) -> dict[str, Any]:
        if "fail" in told:
            self.simulator.fail(Failures.from_json(told["fail"]))
        if "edge" in told:
            self.simulator.edge(int(told["edge"]), float(told.get("width", 0.0)), told.get("period"))
        with self.unit.lock:
            answer = {
                "exposing": self.unit.exposing,
                "folder": self.simulator.folder,
                "happened": list(self.unit.happened),
                "pending": self.unit.failures.pending(),
            }
        return answer | ({"written": self.simulator.written} if told.get("written") else {})


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except OSError as exc:
        sock.close()
        raise ConfigError(f"cannot listen at {host}:{port}: {exc.strerror or exc}; is the port in use?") from exc
    return sock
