"""Lets in who may connect to a port of ours: a thread that answers libzmq's questions (ZAP, RFC 27)."""

from __future__ import annotations

import logging
import os
import socket as sockets
import threading
from itertools import count
from types import TracebackType
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from tangods_receiver.errors import ConfigError
from tangods_receiver.refusals import Refusals
from tangods_receiver.security import Guard

log = logging.getLogger(__name__)

ZAP = "inproc://zeromq.zap.01"
DOMAIN = b"tangods"
WAKE = 100  # ms between looks at the stop event
START_LIMIT = 10.0  # s
MAX_HANDSHAKE = 65536  # bytes of one message from a peer, who is nobody yet
WATCHED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
MISMATCH = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
CRYPTOGRAPHIC = zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC
_numbers = count()


class Gate:
    """Of one socket that will be bound, and the only one in its context: `with secure_server(socket, guard): bind`.

    Without this thread nobody is let in: libzmq is told to insist on an answer. Leave it before the socket is closed;
    who is connected stays so.

    A socket has one monitor. Where its owner has it already (`watch` False), he gives the events in `WATCHED` to
    `note`, in his thread."""

    def __init__(self, socket: zmq.Socket[Any], guard: Guard, watch: bool = True) -> None:
        self.refusals = Refusals()
        self._socket, self._guard = socket, guard
        self._monitor = f"inproc://gate-{next(_numbers)}" if watch else ""
        self._peers: dict[int, str] = {}  # file descriptor -> address
        self._failed = ""  # why the next one that is disconnected was refused
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._main, name="gate", daemon=True)

    def __enter__(self) -> Gate:
        if self._monitor:
            self._socket.monitor(self._monitor, WATCHED)
        self._thread.start()
        if not self._ready.wait(START_LIMIT) or self._failure is not None:
            self.close()
            raise ConfigError(f"the thread that lets peers in did not start ({self._failure})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called again."""
        if self._monitor and not self._socket.closed:
            self._socket.monitor(None, 0)  # first: libzmq's thread would wait for somebody to take its events
        self._stop.set()
        self._thread.join()

    def _main(self) -> None:
        context = self._socket.context
        try:
            with context.socket(zmq.REP) as zap, context.socket(zmq.PAIR) as events:
                zap.linger = events.linger = 0
                events.rcvhwm = 0
                zap.bind(ZAP)
                poller = zmq.Poller()
                poller.register(zap, zmq.POLLIN)
                if self._monitor:
                    events.connect(self._monitor)
                    poller.register(events, zmq.POLLIN)
                self._ready.set()
                while not self._stop.is_set():
                    ready = dict(poller.poll(WAKE))
                    if events in ready:  # first: it says who comes
                        self.note(recv_monitor_message(events))
                    if zap in ready:
                        zap.send_multipart(self._answer(zap.recv_multipart()))
                    self.refusals.tell()
        except Exception as exc:  # before the loop: `__enter__` tells; out of the loop nobody is let in any more
            log.exception("nobody is let in any more")
            self._failure = exc
        finally:
            self._ready.set()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, _domain, peer, _identity, mechanism, *credentials = request
        address = peer.decode("ascii", "replace")
        name, why = self._judge(address, mechanism, credentials)
        if why:
            self.refusals.add(address, why)
            return [version, number, b"400", b"refused", b"", b""]
        log.debug("%s is let in%s", address, f", as {name}" if name else "")
        return [version, number, b"200", b"OK", name.encode(), b""]

    def _judge(self, address: str, mechanism: bytes, credentials: list[bytes]) -> tuple[str, str]:
        """Whose connection this is, and why it is refused ("": it is not)."""
        if not self._guard.admits(address):
            return "", "refused, this address is not in allow_peers"
        clients = self._guard.clients
        if clients is None:
            return "", ""
        if mechanism != b"CURVE" or len(credentials) != 1:
            return "", "refused, for it does not speak CURVE"  # libzmq does not ask about such
        key = z85.encode(credentials[0])
        name, problems = clients.name(key)
        for problem in problems:
            log.error("%s", problem)
        if name:
            return name, ""
        return "", f"refused, its public key {key.decode()} is not in {clients.directory}"

    def note(self, event: Any) -> None:
        """What went wrong before libzmq asked: an event without an address, followed by DISCONNECTED of the same."""
        kind, value = event["event"], event["value"]
        if kind == zmq.EVENT_ACCEPTED:
            self._peers[value] = _address(value)
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._failed = _reason(value, self._guard.own is not None)
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            other = "no CURVE" if self._guard.own is not None else "CURVE"
            self._failed = f"left in the handshake; it may speak {other}, or be no ZeroMQ program"
        elif kind == zmq.EVENT_DISCONNECTED:
            address, why = self._peers.pop(value, "an unknown address"), self._failed
            self._failed = ""
            if why:
                self.refusals.add(address, why)


def secure_server(socket: zmq.Socket[Any], guard: Guard, watch: bool = True) -> Gate:
    """Before it is bound: its options, and the gate to be entered."""
    socket.zap_domain = DOMAIN
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else everybody is let in when nobody answers
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_HANDSHAKE)
    if guard.own is not None:
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = guard.own.public, guard.own.secret
    return Gate(socket, guard, watch)


def _reason(error: int, curve: bool) -> str:
    if error == MISMATCH:
        return f"refused, for it speaks {'no CURVE' if curve else 'CURVE, and this port does not'}"
    if error == CRYPTOGRAPHIC:
        return "refused, for it expects another key here: give it this side's present .key file"
    return f"refused, for it broke the protocol of ZeroMQ ({error:#x})"


def _address(number: int) -> str:
    """Of the peer at the other end of a socket of libzmq's, which may be gone already."""
    try:
        with sockets.socket(fileno=os.dup(number)) as link:
            return str(link.getpeername()[0])
    except OSError:
        return "an unknown address"
