"""A PUSH socket that a control unit binds: what nobody takes waits up to a high-water mark, then images are dropped."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import zmq

from tangods_receiver.errors import HardwareError

REBIND_LIMIT = 5.0  # s that the port may still be taken by ourselves


class Outlet:
    """Made, used and closed in one thread. `hwm` messages wait here, `peer_hwm` more in the socket of each peer."""

    def __init__(self, context: zmq.Context[Any], host: str, port: int, hwm: int, peer_hwm: int) -> None:
        self._context = context
        self._peer_hwm = peer_hwm
        self._host = host
        self.hwm = hwm
        self.waiting: deque[tuple[list[Any], bool, bool]] = deque()
        self._open(port, 0.0)
        self.endpoint = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")

    def _open(self, port: int, limit: float) -> None:
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.linger = 0
        self._socket.sndhwm = max(1, min(self.hwm, self._peer_hwm))
        end = time.monotonic() + limit
        while True:
            try:
                self._socket.bind(f"tcp://{self._host}:{port or '*'}")
                return
            except zmq.ZMQError as exc:
                if not port or exc.errno != zmq.EADDRINUSE or time.monotonic() > end:
                    self._socket.close()
                    raise HardwareError(f"cannot bind the stream to tcp://{self._host}:{port}: {exc}") from exc
            time.sleep(0.02)

    def reopen(self) -> None:
        """As a restart of the control unit does: what waits is lost, peers connect again."""
        self.close()
        self._open(int(self.endpoint.rpartition(":")[2]), REBIND_LIMIT)

    def close(self) -> None:
        self.waiting.clear()
        self._socket.close()

    def put(self, parts: list[Any], joined: bool, image: bool = False) -> bool:
        """Sends, or keeps for later; False: an image that was dropped. `joined`: the parts are pieces of one."""
        if not self.waiting and self._send(parts, joined):
            return True
        if image and len(self.waiting) >= self.hwm:
            self.flush()
            if len(self.waiting) >= self.hwm:
                return False
        self.waiting.append((parts, joined, image))
        return True

    def flush(self) -> None:
        """Sends what waits, as far as somebody takes it."""
        while self.waiting:
            parts, joined, _ = self.waiting[0]
            if not self._send(parts, joined):
                return
            self.waiting.popleft()

    def discard_images(self) -> None:
        """Forget the images that still wait."""
        self.waiting = deque(message for message in self.waiting if not message[2])

    def _send(self, parts: list[Any], joined: bool) -> bool:
        try:
            if not joined:
                self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)  # large ones are frames of ZeroMQ already
            elif len(parts) == 1:
                self._socket.send(parts[0], zmq.NOBLOCK)
            elif self._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT:
                self._socket.send(b"".join(parts), zmq.NOBLOCK)
            else:
                return False
        except zmq.Again:
            return False
        return True
