"""The HTTP side of a simulated unit: uvicorn in a thread of its own, bound before it starts."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import uvicorn
from starlette.types import Scope

from tangods_receiver.errors import ConfigError

START_LIMIT = 10.0  # s
STOP_LIMIT = 0.2  # s that open requests have
KEEP_ALIVE = 75  # s


class Web:
    """Serves an ASGI `app` from `start` to `close`; `address` is host:port from the beginning on."""

    def __init__(self, host: str, port: int, name: str) -> None:
        """ConfigError: the port is taken."""
        self._sock = _bound(host, port)
        self._name = name
        self.address = f"{host}:{self._sock.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, app: Any) -> None:
        config = uvicorn.Config(
            app,
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
        self._thread = threading.Thread(target=self._serve, args=(server, self._sock), name=self._name, daemon=True)
        self._thread.start()
        end = time.monotonic() + START_LIMIT
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.close()
                raise ConfigError(f"the HTTP side did not start at {self.address}")
            time.sleep(0.002)

    @staticmethod
    def _serve(server: uvicorn.Server, sock: socket.socket) -> None:
        with sock:
            server.run(sockets=[sock])

    def close(self) -> None:
        """Safe twice."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(START_LIMIT)
        self._server = self._thread = None
        self._sock.close()

    def drop(self, scope: Scope) -> None:
        """The connection of a request; in the loop's thread."""
        for connection in list(self._server.server_state.connections if self._server else ()):
            if getattr(connection, "client", None) == scope["client"]:
                connection.transport.abort()

    def drop_all(self) -> None:
        """Every open connection; from any thread."""
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
