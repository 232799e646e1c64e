"""The simulator as a whole: a control unit, its HTTP side in a thread of its own, its streams in another."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType

import uvicorn
from starlette.types import Scope

from tangods_detector.simulators.eiger.failures import Failures
from tangods_detector.simulators.eiger.options import EigerOptions
from tangods_detector.simulators.eiger.rest import App
from tangods_detector.simulators.eiger.unit import ControlUnit
from tangods_receiver.errors import ConfigError, HardwareError

START_LIMIT = 10.0  # s
STOP_LIMIT = 0.2  # s that open requests have
KEEP_ALIVE = 75  # s


class EigerSimulator:
    """A DECTRIS control unit at loopback (or `options.host`) from `__enter__` to `__exit__`.

    `edge` and `fail` are what a test does to it; see `Failures`."""

    def __init__(self, options: EigerOptions | None = None) -> None:
        self.options = options or EigerOptions()
        self.unit = ControlUnit(self.options, on_restart=self._drop_all)
        self.address = ""
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EigerSimulator:
        sock = _bound(self.options.host, self.options.port)
        try:
            self.unit.start()
        except HardwareError:
            sock.close()
            raise
        self.address = f"{self.options.host}:{sock.getsockname()[1]}"
        config = uvicorn.Config(
            App(self.unit, self._drop),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=STOP_LIMIT,  # type: ignore[arg-type]  # asyncio takes fractions
        )
        server = self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, args=(server, sock), name="eiger http", daemon=True)
        self._thread.start()
        end = time.monotonic() + START_LIMIT
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.close()
                raise ConfigError(f"the HTTP side did not start at {self.address}")
            time.sleep(0.002)
        return self

    @staticmethod
    def _serve(server: uvicorn.Server, sock: socket.socket) -> None:
        with sock:
            server.run(sockets=[sock])

    def close(self) -> None:
        """Safe twice."""
        self.unit.close()
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(START_LIMIT)
        self._server = self._thread = None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # --- what tests use ----------------------------------------------------------------------------------------------

    @property
    def endpoint_v1(self) -> str:
        return self.unit.endpoint("v1")

    @property
    def endpoint_v2(self) -> str:
        return self.unit.endpoint("v2")

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        """(image number, blob) of the last series; only with `keep_sent`."""
        return self.unit.sent

    @property
    def happened(self) -> list[str]:
        """Failures that took place, oldest first."""
        return self.unit.luck.happened

    def edge(self, n: int = 1, width: float = 0.0, period: float | None = None) -> None:
        """`n` external edges, or gates of `width` s, `period` s apart (None: as soon as the detector is free)."""
        self.unit.edge(n, width, period)

    def fail(self, failures: Failures) -> None:
        """What goes wrong next, instead of what was wished before."""
        self.unit.fail(failures)

    # --- connections -------------------------------------------------------------------------------------------------

    def _drop(self, scope: Scope) -> None:
        """In the loop's thread."""
        for connection in list(self._server.server_state.connections if self._server else ()):
            if getattr(connection, "client", None) == scope["client"]:
                connection.transport.abort()

    def _drop_all(self) -> None:
        """From any thread: every open connection."""
        server = self._server
        for connection in list(server.server_state.connections if server else ()):
            connection.loop.call_soon_threadsafe(connection.transport.abort)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only of those
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise ConfigError(f"cannot listen at {host}:{port}: {exc.strerror or exc}; is the port in use?") from exc
    return sock
