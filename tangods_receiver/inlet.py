"""A PULL socket connected to one sender: its high-water mark follows the size of the frames; it never stays deaf."""

from __future__ import annotations

import logging
import time
from itertools import count
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from tangods_receiver.refusals import Refusals
from tangods_receiver.security import Credentials, secure_client

log = logging.getLogger(__name__)

LOOK = 1.0  # s between looks at what libzmq did with the connection
QUIET = 60.0  # s without another warning
WATCHED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_numbers = count()  # FDs would do as names of monitors, were they not used again too soon


class Inlet:
    """libzmq counts the mark in messages; what it may hold is meant in bytes, so the mark must be changed while
    messages flow. Whoever fills the queue learns only now and then how much was read: when the number of messages read
    is a multiple of half the mark. A mark that is lowered at another moment can lie below what he believes to be in a
    queue that is empty: then nothing comes any more, for ever; and one that is raised does not wake him. So it is
    changed only just before a message is read of which he will learn, and one that is there to be read.

    (It may not be changed at all on a socket that binds: libzmq 4.3.5 crashes when a peer goes away in that moment.)

    libzmq connects again when a connection is lost, but not when the peer broke the protocol: after a greeting that is
    wrong, or a message above MAXMSGSIZE, it closes and does no more. Its events tell: DISCONNECTED is followed at once
    by CONNECT_RETRIED, or by nothing. `mend` then connects anew: a new queue, in which counting begins at 0.
    So it does after the sender has refused our key or our address, which may be allowed the next time."""

    def __init__(self, socket: zmq.Socket[Any], mark: int, refusals: Refusals | None = None) -> None:
        """A socket without any connection yet, which is the inlet's from now on."""
        self.socket = socket
        self.refusals = refusals or Refusals()
        self._mark = self._wanted = socket.rcvhwm = mark
        self._taken = 0  # messages, of this connection
        self._endpoint = ""
        self._events: zmq.Socket[bytes] | None = None
        self._look_at = 0.0
        self._curve = False
        self._lost = False  # and libzmq did not try again
        self._refused = False  # by the handshake, which is told by `refusals`
        self._told = False  # the log, since the last message
        self._quiet_until = 0.0

    def connect(self, endpoint: str, credentials: Credentials | None = None) -> None:
        """Only once. `credentials` None: without CURVE."""
        self._endpoint = endpoint
        if credentials is not None:
            self._curve = True
            secure_client(self.socket, credentials)
        monitor = f"inproc://inlet-{next(_numbers)}"
        self.socket.monitor(monitor, WATCHED)
        self._events = self.socket.context.socket(zmq.PAIR)
        self._events.rcvhwm = 0  # libzmq's thread would wait for room
        self._events.connect(monitor)
        self.socket.connect(endpoint)

    def close(self) -> None:
        """What has not been taken is lost. May be called again."""
        if not self.socket.closed:
            self.socket.monitor(None, 0)  # first: libzmq's thread would wait for somebody to take its events
            self.socket.close(0)
        if self._events is not None:
            self._events.close(0)

    def mend(self) -> None:
        """To be called often, while there is nothing to take: a connection that libzmq gave up is made anew.

        Not at once: so its last messages have been taken, and a peer that stays wrong is tried each second only."""
        now = time.monotonic()
        if now < self._look_at or self._events is None:
            return
        self._look_at = now + LOOK
        news = False
        while self._events.poll(0):
            news = True
            self._note(recv_monitor_message(self._events))
        self.refusals.tell()
        if self._lost and not news:
            if not self._refused:
                self._tell(now)
            self._connect_anew()

    def _note(self, event: Any) -> None:
        kind = event["event"]
        if kind == zmq.EVENT_DISCONNECTED:
            self._lost = True
        elif kind == zmq.EVENT_CONNECT_RETRIED:
            self._lost = self._refused = False
        elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.refusals.clear(self._endpoint)
        elif why := why_refused(kind, event["value"], self._curve):
            self._refused = True
            self.refusals.add(self._endpoint, why)

    def _tell(self, now: float) -> None:
        if not self._told and now >= self._quiet_until:
            self._told = True
            self._quiet_until = now + QUIET
            log.warning(
                "%s: the connection was closed, for what came is not ZeroMQ, no PUSH socket, or a message of more than "
                "%d bytes; it is tried again each second: see which program sends there, and what",
                self._endpoint,
                self.socket.maxmsgsize,
            )

    def _connect_anew(self) -> None:
        self._lost = self._refused = False
        self.socket.disconnect(self._endpoint)
        self._taken = 0
        self.socket.connect(self._endpoint)

    def hold(self, messages: int) -> None:
        """Have no more than so many messages wait here, 2 at least; as soon as that can be."""
        self._wanted = max(2, messages)

    def ready(self, most: int) -> int:
        """How many messages may be taken now, up to `most`; tell `took` how many they were."""
        if self._mark == self._wanted or not self.socket.poll(0):
            return most
        following = self._taken + 1
        told = (self._wanted + 1) // 2
        if following % told == 0:
            self._set(self._wanted)
            return 1
        if self._wanted < self._mark:  # at once as low as can be, then exactly
            lower = 2 * next(n for n in range(told, 0, -1) if following % n == 0)
            if lower < self._mark:
                self._set(lower)
                return 1
        return min(most, -following % told)

    def took(self, messages: int) -> None:
        self._taken += messages
        self._told = False

    def _set(self, mark: int) -> None:
        self._mark = self.socket.rcvhwm = mark


def why_refused(event: int, value: int, curve: bool) -> str:
    """What a failed handshake tells, and what to do about it; "": nothing, or another thing is wrong than keys."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        lacks = "curve_clients lacks this receiver's public key, or " if curve else ""
        return f"the sender refuses this receiver: its {lacks}allow_peers lacks this machine's address"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        if curve:
            return "the sender speaks no CURVE: set it up there, or leave curve_server_keys empty here"
        return "the sender wants CURVE (or another mechanism than none): set curve_key and curve_server_keys here"
    if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and curve:  # without CURVE: somebody who only comes and goes
        return (
            "the sender closes the connection in the handshake: curve_server_keys holds another key than its own, or "
            "it speaks no CURVE"
        )
    return ""
