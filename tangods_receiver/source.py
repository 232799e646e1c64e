"""A worker: one thread, one PULL socket; what it receives it decodes and brings to the reception, which writes it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import zmq

from tangods_receiver.config import ReceiverConfig
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.protocol import Frame, Message, SeriesStart, stins
from tangods_receiver.reception import Reception
from tangods_receiver.series import frame_bytes
from tangods_receiver.transforms import NEEDED, apply

log = logging.getLogger(__name__)

BATCH = 64  # messages taken together (20 kB: 0.78 of C pwrite, with 16: 0.65)
BATCH_BYTES = 4_000_000
WAKE = 100  # ms between looks at the stop event
TYPICAL_FRAME = 256 << 10  # bytes; a new socket has room for these (4 MiB: 0.81 instead of 0.98 of C at 200 kB)
OVERHEAD = 1024  # bytes that libzmq and we need per message besides its payload
DRAIN = 0.5  # s at most for what is already here when the engine stops
START_LIMIT = 10.0  # s
PARTS = 2048  # of one message; the rest is not kept
DECODERS: dict[str, Callable[[list[zmq.Frame]], Message]] = {"stins": stins.decode}


class Worker:
    """`start` returns when the socket is there (ConfigError: it could not be made); `stop` and `join` end it."""

    def __init__(self, index: int, config: ReceiverConfig, reception: Reception) -> None:
        self._index = index
        self._config = config
        self._reception = reception
        self._decode = DECODERS[config.protocol]
        self._halt = threading.Event()
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._frame_bytes = 0  # that the high-water mark was last set for
        self._thread = threading.Thread(target=self._main, name=f"{config.name} worker {index}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._ready.wait(START_LIMIT):
            raise ConfigError(f"worker {self._index}: no socket within {START_LIMIT:g} s")
        if self._failure is not None:
            raise ConfigError(f"{', '.join(self._config.endpoints)}: {self._failure}") from self._failure

    def stop(self) -> None:
        self._halt.set()

    def join(self, limit: float) -> bool:
        """False: it still hangs, in a call to the storage."""
        self._thread.join(limit)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            with zmq.Context(self._config.io_threads) as context, context.socket(zmq.PULL) as socket:
                self._connect(socket)
                self._ready.set()
                self._loop(socket)
        except Exception as exc:  # before the loop: `start` tells; out of the loop nothing comes
            self._failure = exc
        finally:
            self._ready.set()

    def _connect(self, socket: zmq.Socket[bytes]) -> None:
        socket.linger = 0
        socket.rcvhwm = self._fitting(TYPICAL_FRAME)
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * stins.MAX_IMAGE)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # a silent network must not look like a detector that waits
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        for endpoint in self._config.endpoints:
            socket.connect(endpoint)

    def _loop(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        drained_by = 0.0
        while True:
            try:
                messages = self._receive(socket)
                if messages:
                    self._reception.reading(self._index, True)
                    self._handle(socket, messages)
                if self._halt.is_set():
                    drained_by = drained_by or time.monotonic() + DRAIN
                    if not poller.poll(0) or time.monotonic() > drained_by:
                        return
                elif not messages:
                    self._reception.reading(self._index, False)
                    poller.poll(WAKE)
            except Exception as exc:  # the outermost loop: it becomes the state, and the socket is emptied on
                log.exception("worker %d", self._index)
                self._reception.fail(exc)
                self._halt.wait(0.01)

    def _receive(self, socket: zmq.Socket[bytes]) -> list[list[zmq.Frame]]:
        """What is there, up to a batch, without waiting. Header parts are small, pixels stay where zmq put them."""
        messages: list[list[zmq.Frame]] = []
        recv, size = socket.recv, 0
        try:
            while len(messages) < BATCH and size < BATCH_BYTES:
                part = recv(zmq.NOBLOCK, False)
                parts = [part]
                while part.more:
                    part = recv(0, False)
                    if len(parts) < PARTS:
                        parts.append(part)
                    size += len(part)
                messages.append(parts)
        except zmq.Again:
            pass
        return messages

    def _handle(self, socket: zmq.Socket[bytes], messages: list[list[zmq.Frame]]) -> None:
        """In the order in which they came; frames that follow each other are taken together."""
        reception, index = self._reception, self._index
        frames: list[Frame] = []
        refused: list[StreamError] = []
        for parts in messages:
            try:
                message = self._decode(parts)
                if type(message) is Frame:
                    frames.append(apply(message) if message.codec in NEEDED else message)
                    continue
            except StreamError as exc:
                refused.append(exc)
                continue
            reception.frames(index, frames)
            frames = []
            if isinstance(message, SeriesStart):
                self._lower_hwm(socket, frame_bytes(message))
                reception.start(index, message)
            elif not isinstance(message, Frame):
                reception.end(index, message)
        reception.frames(index, frames)
        self._lower_hwm(socket, reception.frame_bytes)
        if refused:
            reception.malformed(index, len(refused), refused[0])

    def _fitting(self, size: int) -> int:
        """Messages of `size` bytes that fit into `hwm_bytes`."""
        return max(2, self._config.hwm_bytes // (size + OVERHEAD))

    def _lower_hwm(self, socket: zmq.Socket[bytes], size: int) -> None:
        """The high-water mark counts messages per connection: hold it to what fits of frames of `size` bytes.

        It is never raised again: libzmq does not wake a connection that was stopped at the old mark. (Nor may it be
        changed at all on a socket that binds: libzmq 4.3.5 crashes when a peer goes away in that moment.)"""
        if size > self._frame_bytes:
            self._frame_bytes = size
            if (fitting := self._fitting(size)) < socket.rcvhwm:
                socket.rcvhwm = fitting
