"""A worker: one thread, a socket to each endpoint; what comes is decoded and goes to the reception."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import zmq

from tangods_receiver import compiled
from tangods_receiver.config import ReceiverConfig
from tangods_receiver.drops import Gaps
from tangods_receiver.errors import ConfigError, StreamError
from tangods_receiver.inlet import Inlet
from tangods_receiver.protocol import Decode, Frame, Message, SeriesEnd, SeriesStart, stins
from tangods_receiver.protocols import PROTOCOLS
from tangods_receiver.reception import Reception
from tangods_receiver.refusals import Refusals
from tangods_receiver.security import Credentials
from tangods_receiver.series import frame_bytes

log = logging.getLogger(__name__)

BATCH = 64  # messages taken together (20 kB: 0.78 of C pwrite, with 16: 0.65)
BATCH_BYTES = 4_000_000
WAKE = 100  # ms between looks at the stop event
TYPICAL_FRAME = 256 << 10  # bytes; a new socket has room for these (4 MiB: 0.81 instead of 0.98 of C at 200 kB)
OVERHEAD = 1024  # bytes that libzmq and we need per message besides its payload
DRAIN = 0.5  # s at most for what is already here when the engine stops
START_LIMIT = 10.0  # s
PARTS = 2048  # of one message; the rest is not kept
PART_BYTES = 2 * stins.MAX_IMAGE  # of one part; libzmq closes the connection when there are more

Item = Frame | list[Any]  # a frame that is decoded already, or the parts of a message


class PythonReceiver:
    """Takes messages from one socket, in the thread that owns it. `decode` and `itemsize` are for its compiled twin."""

    def __init__(
        self, socket: zmq.Socket[bytes], decode: Decode | None = None, itemsize: Mapping[str, int] | None = None
    ) -> None:
        self._recv = socket.recv
        self.nbytes = 0  # of the messages last taken
        self.full = False  # they were as many as may be taken at a time: there may be more

    def take(self, messages: int, nbytes: int, parts: int) -> list[Item]:
        """What is there, without waiting: at most so many messages, stopping after so many bytes; no more than `parts`
        parts of one are kept. Pixels stay where zmq put them."""
        taken: list[Item] = []
        recv, size = self._recv, 0
        self.full = True
        try:
            while len(taken) < messages and size < nbytes:
                part = recv(zmq.NOBLOCK, False)
                kept = [part]
                while part.more:
                    part = recv(0, False)
                    if len(kept) < parts:
                        kept.append(part)
                    size += len(part)
                taken.append(kept)
        except zmq.Again:
            self.full = False
        self.nbytes = size
        return taken


_hotpath = compiled.module("_hotpath")
Receiver: type[PythonReceiver] = PythonReceiver if _hotpath is None else _hotpath.Receiver


class Worker:
    """`start` returns when the socket is there (ConfigError: it could not be made); `stop` and `join` end it.

    `decoder` makes what decodes a connection, by its number and how many there are; `context` one that all workers
    share; None: its own; `refusals` counts connections that are refused; `credentials` for each endpoint (none: no
    CURVE)."""

    def __init__(
        self,
        index: int,
        config: ReceiverConfig,
        reception: Reception,
        decoder: Callable[[int, int], Decode],
        context: zmq.Context[Any] | None = None,
        refusals: Refusals | None = None,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        self._index = index
        self._config = config
        self._reception = reception
        self._chain = reception.chain
        self._decoder = decoder
        self._context = context
        self._refusals = refusals or Refusals()
        self._credentials: Sequence[Credentials | None] = credentials or [None] * len(config.endpoints)
        self._itemsize = None if config.subscribes else PROTOCOLS[config.protocol].itemsize
        self._halt = threading.Event()
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._frame_bytes = 0  # that the high-water marks were last set for
        self._inlets: list[Inlet] = []
        self._decoders: list[Decode] = []  # of each
        self._mine = threading.Lock()  # held by who uses the inlets: the thread, but not in calls that may hang
        self._abandoned = False
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
        if self._thread.ident is not None:  # else it could not be started
            self._thread.join(limit)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """It hangs: let go of the senders, whose frames would go to it for ever instead of to who comes after it."""
        if self._mine.acquire(timeout=1.0):
            self._abandoned = True
            for inlet in self._inlets:
                inlet.close()
            self._mine.release()

    def _main(self) -> None:
        try:
            with self._own_context() as context, ExitStack() as stack:
                kind, endpoints = zmq.PULL, list(enumerate(self._config.endpoints))
                if self._config.subscribes:  # each would get all frames: every endpoint has one worker
                    kind, endpoints = zmq.SUB, endpoints[self._index :: self._config.workers]
                for number, endpoint in endpoints:
                    new = Inlet(context.socket(kind), self._fitting(TYPICAL_FRAME), self._refusals)
                    inlet = stack.enter_context(closing(new))
                    self._connect(inlet, endpoint, self._credentials[number])
                    self._inlets.append(inlet)
                    self._decoders.append(self._new_decoder(number))
                self._ready.set()
                with self._mine:
                    self._loop(self._inlets)
        except Exception as exc:  # before the loop: `start` tells; out of the loop nothing comes
            self._failure = exc
        finally:
            self._ready.set()

    def _new_decoder(self, number: int) -> Decode:
        """For the connection of this number."""
        decode = self._decoder(number, len(self._config.endpoints))
        if not self._config.subscribes:
            return decode
        return Gaps(decode, partial(self._reception.dropped, self._index), lambda: self._reception.begun)

    @contextmanager
    def _own_context(self) -> Iterator[zmq.Context[Any]]:
        if self._context is not None:
            yield self._context
        else:
            with zmq.Context(self._config.io_threads) as context:
                yield context

    def _connect(self, inlet: Inlet, endpoint: str, credentials: Credentials | None) -> None:
        socket = inlet.socket
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, PART_BYTES)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # a silent network must not look like a detector that waits
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        if socket.type == zmq.SUB:
            socket.subscribe(b"")
        inlet.connect(endpoint, credentials)

    def _loop(self, inlets: Sequence[Inlet]) -> None:
        poller = zmq.Poller()
        receivers = []
        for inlet, decode in zip(inlets, self._decoders, strict=True):
            poller.register(inlet.socket, zmq.POLLIN)
            plain = Receiver(inlet.socket, decode, self._itemsize) if self._itemsize else Receiver(inlet.socket)
            receivers.append((inlet, decode, plain))
        drained_by = 0.0
        while not self._abandoned:
            try:
                came = False
                for inlet, decode, receiver in receivers:
                    items = receiver.take(inlet.ready(BATCH), BATCH_BYTES, PARTS)
                    if items:
                        came = True
                        inlet.took(len(items))
                        self._reception.reading(self._index, len(items), receiver.nbytes, receiver.full)
                        if not self._hand_over(inlets, decode, items):
                            return
                    else:
                        inlet.mend()
                if self._halt.is_set():
                    drained_by = drained_by or time.monotonic() + DRAIN
                    if not poller.poll(0) or time.monotonic() > drained_by:
                        return
                elif not came:
                    begun = time.monotonic()
                    self._reception.idle(self._index)
                    poller.poll(WAKE)
                    self._reception.waited(self._index, time.monotonic() - begun)
            except Exception as exc:  # the outermost loop: it becomes the state, and the socket is emptied on
                log.exception("worker %d", self._index)
                self._reception.fail(exc)
                self._halt.wait(0.01)

    def _hand_over(self, inlets: Sequence[Inlet], decode: Decode, items: Sequence[Item]) -> bool:
        """May hang in the storage; False: it hung so long that the sockets are gone."""
        self._mine.release()
        try:
            self._handle(inlets, decode, items)
        finally:
            self._mine.acquire()
        return not self._abandoned

    def _handle(self, inlets: Sequence[Inlet], decode: Decode, items: Sequence[Item]) -> None:
        """In the order in which they came; frames that follow each other are taken together."""
        reception, index, untouched = self._reception, self._index, self._chain.untouched
        frames: list[Frame] = []
        refused: list[StreamError] = []
        size = 0  # of what was made of the frames
        for item in items:
            if type(item) is Frame and item.codec in untouched:
                frames.append(item)
                continue
            try:
                messages = self._worked_on(item if type(item) is Frame else decode(item))
            except StreamError as exc:
                refused.append(exc)
                continue
            except Exception as exc:  # the other messages of the batch are not to blame
                log.exception("worker %d", index)
                reception.fail(exc)
                refused.append(StreamError(f"{type(exc).__name__}: {exc}"))
                continue
            for message in messages:
                if type(message) is Frame:
                    frames.append(message)
                    size += 0 if message.codec in untouched else len(message.data) * (1 + len(message.more))
                    if size < BATCH_BYTES:
                        continue
                reception.frames(index, frames)
                frames, size = [], 0
                if not isinstance(message, Frame):
                    self._refuse(refused)  # they are of the series before it
                    self._take(inlets, message)
        reception.frames(index, frames)
        self._fit(inlets, reception.frame_bytes)
        self._refuse(refused)

    def _refuse(self, refused: list[StreamError]) -> None:
        if refused:
            self._reception.malformed(self._index, len(refused), refused[0])
            refused.clear()

    def _take(self, inlets: Sequence[Inlet], message: SeriesStart | SeriesEnd) -> None:
        if isinstance(message, SeriesStart):
            self._fit(inlets, frame_bytes(message))
            self._reception.start(self._index, message)
        else:
            self._reception.end(self._index, message)

    def _worked_on(self, decoded: Message | Sequence[Message]) -> Sequence[Message]:
        """What one message holds, the pixel work done."""
        messages: Sequence[Message] = decoded if isinstance(decoded, list) else (decoded,)
        untouched = self._chain.untouched
        return [self._worked(m) if isinstance(m, Frame) and m.codec not in untouched else m for m in messages]

    def _worked(self, frame: Frame) -> Frame:
        begun = time.monotonic()
        try:
            return self._chain.apply(frame)
        finally:
            self._reception.transformed(self._index, time.monotonic() - begun)

    def _fitting(self, size: int) -> int:
        """Messages of `size` bytes that fit into `hwm_bytes`."""
        return max(2, self._config.hwm_bytes // (size + OVERHEAD))

    def _fit(self, inlets: Sequence[Inlet], size: int) -> None:
        """Hold the high-water marks to what fits of frames of `size` bytes (0: not known)."""
        if size and size != self._frame_bytes:
            self._frame_bytes = size
            with self._mine:
                for inlet in inlets if not self._abandoned else ():
                    inlet.hold(self._fitting(max(size, TYPICAL_FRAME)))
