"""A bound PUSH or PUB socket to clients that come and go: who comes is told at once what series is open."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from tangods_receiver import compiled
from tangods_receiver.gate import DOMAIN, WATCHED, Gate, secure_server
from tangods_receiver.protocol import Buffer
from tangods_receiver.security import Guard

HWM = {"push": 8, "pub": 64}  # messages that ZeroMQ holds for each client
HANDSHAKE = 5.0  # s that a client has to say what it is
COMING = 0.1  # s that frames wait for a client that is just shaking hands
PATIENCE = 0.1  # of the time may be waited so: strangers who knock again and again hold nobody up
GRACE = 0.05  # s that a message waits for subscribers who are behind
AGAIN = (0.1, 0.3, 1.0)  # s after which a start or end is said again where not everybody may have had room
BEHIND = 60.0  # s for which somebody who was behind is thought to be so still
LINGER = 0.5  # s for what is on its way when the socket is closed
FROM_CLIENTS = 4096  # bytes: they only subscribe
EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
RETRY = 1  # ms; PUB does not tell when there is room
POLLIN = int(zmq.POLLIN)  # the enum's own & takes longer than to ask
_numbers = count()


class PythonSender:
    """Sends messages on one socket, in the thread that owns it."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._send = socket.send

    def send(self, head: bytes, payload: Sequence[Buffer]) -> bool:
        """False: no room, or nobody there. What zmq received is passed on as it is, everything else copied.

        Only the first part can find no room: where its client goes away, the rest of the message goes with it."""
        try:
            self._send(head, zmq.NOBLOCK | zmq.SNDMORE if payload else zmq.NOBLOCK)
        except zmq.Again:
            return False
        last = len(payload) - 1
        for k, part in enumerate(payload):
            self._send(part, zmq.SNDMORE if k < last else 0, copy=not isinstance(part, zmq.Frame))
        return True


_hotpath = compiled.module("_hotpath")
Sender: type[PythonSender] = getattr(_hotpath, "Sender", PythonSender)


class Outlet:
    """All of it belongs to one thread, and the context to it. `patient` PUB waits for its slowest client, too.

    PUSH shares messages among its clients, in turns: as many copies as there are clients give one to each that has
    room, which libzmq does not tell; so they are sent again a little later. It tells that a client has come just after
    it may be served; frames wait while one is shaking hands, so that the start is the first that it gets.

    PUB: a subscription counts when we say so, and then the start goes to this client alone. Who has no room is waited
    for a moment, then passed by.

    The high-water mark is never changed after binding: libzmq 4.3.5 crashes when a client goes away in that moment."""

    def __init__(
        self, context: zmq.Context[Any], endpoint: str, socket: str, patient: bool, wake: int, guard: Guard | None
    ) -> None:
        """`wake` a descriptor that ends `wait`; `guard` None: everybody may connect. zmq.ZMQError: the endpoint cannot
        be bound."""
        self._publishes = socket == "pub"
        self._patient = patient
        self._guard = guard
        self._gate: Gate | None = None
        self._socket = self._bound(context, endpoint, patient)
        self.endpoint = str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self.send = Sender(self._socket).send
        self._shaking: dict[int, float] = {}  # descriptor of a connection -> since when
        self._joined: set[int] = set()
        self._held, self._held_at = 0.0, 0.0  # s that frames were held up lately, and when that was reckoned
        self.passed_by = 0  # times that a subscriber had no room, and lost frames
        self._subscriptions = 0
        self._copies = 0  # of a message for all that are still to be sent
        self._since = 0.0  # when a message could not be sent for the first time; 0.0: it could
        self._behind = float("-inf")  # when a subscriber was passed by
        self._again: list[tuple[float, Sequence[bytes]]] = []  # when and what is said again
        self._idle, self._blocked = zmq.Poller(), zmq.Poller()
        for poller in (self._idle, self._blocked):
            poller.register(self._events, zmq.POLLIN)
        self._idle.register(wake, zmq.POLLIN)
        if self._publishes:
            self._idle.register(self._socket, zmq.POLLIN)
        else:
            self._blocked.register(self._socket, zmq.POLLOUT)

    def _bound(self, context: zmq.Context[Any], endpoint: str, patient: bool) -> zmq.Socket[Any]:
        socket = context.socket(zmq.XPUB if self._publishes else zmq.PUSH)
        socket.linger = int(LINGER * 1000)
        socket.sndhwm = HWM["pub" if self._publishes else "push"]
        socket.zap_domain = DOMAIN  # else whoever sends a line of text is served, as ZeroMQ 2 would have been
        socket.setsockopt(zmq.MAXMSGSIZE, FROM_CLIENTS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE * 1000))
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)  # a client whose computer died must not count for ever
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        if self._publishes:
            socket.setsockopt(zmq.XPUB_MANUAL, 1)
            socket.setsockopt(zmq.XPUB_NODROP, 1)  # tells that somebody has no room
        if self._guard is not None:
            self._gate = secure_server(socket, self._guard, watch=False)
            self._gate.__enter__()
        monitor = f"inproc://outlet-{next(_numbers)}"
        socket.monitor(monitor, EVENTS | WATCHED)
        self._events = context.socket(zmq.PAIR)
        self._events.rcvhwm = 0  # libzmq's thread would wait for room
        self._events.connect(monitor)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError:
            self._close(socket)
            raise
        return socket

    def close(self) -> None:
        """What is on its way has `LINGER` s to leave, in which the end of the context waits."""
        self._close(self._socket)

    def _close(self, socket: zmq.Socket[Any]) -> None:
        if self._gate is not None:
            self._gate.close()
        socket.monitor(None, 0)
        socket.close()
        self._events.close(0)

    @property
    def peers(self) -> int:
        return len(self._joined)

    @property
    def refused(self) -> int:
        """Connections that were not let in."""
        return 0 if self._gate is None else self._gate.refusals.total

    @property
    def audience(self) -> bool:
        """Is there anybody to send to?"""
        return bool(self._subscriptions if self._publishes else self._joined)

    @property
    def coming(self) -> bool:
        """A client is just shaking hands: a frame sent now could be the first that it gets."""
        if self._publishes or not self._shaking:
            return False
        now = time.monotonic()
        self._held = max(0.0, self._held - PATIENCE * (now - self._held_at))
        self._held_at = now
        return self._held < COMING and now - max(self._shaking.values()) < COMING

    def look(self, opening: Sequence[bytes] | None) -> None:
        """See who came and who went; who came gets the `opening`."""
        came = False
        while _readable(self._events):
            event = recv_monitor_message(self._events)
            if self._gate is not None:
                self._gate.note(event)
            came |= self._happened(event["event"], event["value"])
        if self._shaking:
            came |= self._believe_the_silent(time.monotonic())
        if came and not opening:
            self._again = []  # an end, which is not for who has just come
        if self._again:
            self._say_again()
        if self._publishes:
            self._take_subscriptions(opening)
        elif came and opening:
            _readable(self._socket)  # libzmq learns who came, too
            for _ in range(self.peers):
                self.send(opening[0], opening[1:])

    def _happened(self, event: int, descriptor: int) -> bool:
        """True: somebody joined."""
        if event == zmq.EVENT_ACCEPTED:
            self._shaking[descriptor] = time.monotonic()
        elif event == zmq.EVENT_DISCONNECTED:
            self._shaking.pop(descriptor, None)
            self._joined.discard(descriptor)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED and self._shaking:  # it is not said who: whoever has waited longest
            self._join(next(iter(self._shaking)))
            return True
        return False

    def _believe_the_silent(self, now: float) -> bool:
        """Who is still here long after the limit was taken for another one."""
        late = [descriptor for descriptor, since in self._shaking.items() if now - since > HANDSHAKE + 1.0]
        for descriptor in late:
            self._join(descriptor)
        return bool(late)

    def _join(self, descriptor: int) -> None:
        del self._shaking[descriptor]
        self._joined.add(descriptor)

    def _take_subscriptions(self, opening: Sequence[bytes] | None) -> None:
        socket = self._socket
        while _readable(socket):
            wish: bytes = socket.recv()
            if socket.getsockopt(zmq.RCVMORE) or wish[:1] not in (b"\0", b"\1"):
                continue
            if wish[:1] == b"\0":
                socket.setsockopt(zmq.UNSUBSCRIBE, wish[1:])
                self._subscriptions = max(0, self._subscriptions - 1)
                continue
            socket.setsockopt(zmq.SUBSCRIBE, wish[1:])
            self._subscriptions += 1
            if opening:
                socket.setsockopt(zmq.XPUB_MANUAL_LAST_VALUE, 1)  # the next message is for who subscribed last
                self.send(opening[0], opening[1:])
                socket.setsockopt(zmq.XPUB_MANUAL_LAST_VALUE, 0)
                socket.setsockopt(zmq.XPUB_MANUAL, 1)

    def send_frame(self, head: bytes, payload: Sequence[Buffer]) -> bool:
        """False: no room yet, to be called again."""
        if self.send(head, payload):
            self._since = 0.0
            return True
        return self._publishes and not self._patient and self._pass_by(head, payload)

    def _pass_by(self, head: bytes, payload: Sequence[Buffer]) -> bool:
        """A subscriber without room for `GRACE` loses this message, and others until he has read half of his."""
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since < GRACE:
            return False
        self._since, self._behind = 0.0, now
        self.passed_by += 1
        self._socket.setsockopt(zmq.XPUB_NODROP, 0)
        sent = self.send(head, payload)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        return sent

    def send_to_all(self, parts: Sequence[bytes]) -> bool:
        """A start or end, which everybody should get. False: no room yet, to be called again."""
        if not self._copies:
            self._copies = self._audience_size
        while self._copies:
            if not self.send_frame(parts[0], parts[1:]):
                return False
            self._copies -= 1
        now = time.monotonic()
        some_full = now - self._behind < BEHIND if self._publishes else self.peers > 1
        self._again = [(now + seconds, parts) for seconds in AGAIN] if some_full else []
        return True

    def _say_again(self) -> None:
        """To those who had no room for it."""
        due, parts = self._again[0]
        if time.monotonic() >= due and self.send(parts[0], parts[1:]):
            for _ in range(self._audience_size - 1):
                self.send(parts[0], parts[1:])
            del self._again[0]

    @property
    def _audience_size(self) -> int:
        """Copies that give one to each."""
        return 1 if self._publishes else max(1, self.peers)

    def give_up(self) -> None:
        """`send_to_all` is not called again for this message."""
        self._copies, self._since = 0, 0.0

    def wait(self, milliseconds: int) -> None:
        """For clients, or until `wake` can be read."""
        self._idle.poll(milliseconds)

    def wait_for_clients(self, milliseconds: int) -> None:
        """While one is `coming`."""
        begun = time.monotonic()
        self._events.poll(milliseconds)
        self._held += time.monotonic() - begun

    def wait_for_room(self, milliseconds: int) -> None:
        """Or for clients."""
        self._blocked.poll(RETRY if self._publishes else milliseconds)


def _readable(socket: zmq.Socket[Any]) -> bool:
    """Also: libzmq looks what has happened."""
    return bool(int(socket.get(zmq.EVENTS)) & POLLIN)
