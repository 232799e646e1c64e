"""Gives orders to a streamer: over a socket, or in this process. `orders.py` is the other side."""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable
from typing import Any

import zmq

from tangods_receiver import security
from tangods_receiver.errors import HardwareError
from tangods_receiver.security import Credentials

REPLY = 15.0  # s; for orders that change something

Request = dict[str, Any]


class Caller:
    """Asks the streamer that `ask` leads to, one order at a time; any thread may. `name` of it, for sentences."""

    def __init__(self, name: str, ask: Callable[[Request], Request]) -> None:
        self._name = name
        self._ask = ask
        self._lock = threading.Lock()
        self._client = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:6]}"

    def __call__(self, command: str, **more: Any) -> Request:
        """The reply. HardwareError: refused, with the streamer's words, or not heard."""
        with self._lock:
            reply = self._ask({"command": command, "client": self._client, **more})
        if not reply.get("ok"):
            raise HardwareError(f"{self._name}: {reply.get('error', 'no reason given')}")
        return reply


class Line:
    """A REQ socket; after a reply that did not come it is made anew, because it would wait for that for ever."""

    def __init__(
        self,
        address: str,
        timeout: float,
        program: str,
        questions: frozenset[str],
        credentials: Credentials | None = None,
    ) -> None:
        """`questions` are answered within `timeout` s, other orders within REPLY; `credentials` where the streamer asks
        for keys."""
        self._address, self._timeout = address, timeout
        self._program, self._questions = program, questions | {"release"}
        self._credentials = credentials
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self.closed = False

    def ask(self, request: Request) -> Request:
        """The reply. HardwareError: there is none."""
        if self.closed:
            raise HardwareError(f"{self._address}: closed")
        limit = self._timeout if request["command"] in self._questions else max(self._timeout, REPLY)
        try:
            if self._socket is None:
                self._socket = self._context.socket(zmq.REQ)
                self._socket.linger = 0
                if self._credentials is not None:
                    security.secure_client(self._socket, self._credentials)
                self._socket.connect(self._address)
            self._socket.send(json.dumps(request).encode())
            if not self._socket.poll(int(limit * 1000)):
                self._drop()
                raise HardwareError(f"{self._address} does not answer within {limit:g} s; does {self._program} run?")
            reply = json.loads(self._socket.recv())
        except (zmq.ZMQError, ValueError) as exc:
            self._drop()
            raise HardwareError(f"{self._address}: {exc}") from exc
        if type(reply) is not dict:
            raise HardwareError(f"{self._address}: the answer is {reply!r:.80}")
        return reply

    def close(self) -> None:
        """Safe twice."""
        if not self.closed:
            self.closed = True
            self._drop()
            self._context.term()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
