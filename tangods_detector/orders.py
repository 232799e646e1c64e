"""Orders to a streamer that runs on the detector's computer: JSON over REQ/REP, and who has control.

A request is an object with `command`, `client` (who asks) and what the command takes; the reply has `ok`, and `error`
where that is false. `caller.py` is the other side. Python 3.6, the standard library and pyzmq: a detector's computer
may be old."""

import json
import logging
import os
import platform
import threading
import time
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple, Type

import zmq

from tangods_detector import __version__

log = logging.getLogger(__name__)

LOOK = 0.1  # s
LARGEST = 1 << 24  # bytes of a request

Request = Dict[str, Any]
Act = Callable[[], Optional[Request]]


class Refused(Exception):
    """An order that cannot be carried out, and why."""


# --- the streamer's side ---------------------------------------------------------------------------------------------


class Orders(ABC):
    """Requests -> replies. Whoever gives an order has control until it releases it or says nothing for `lease` s; a
    series goes on without it. Everybody may ask. Calls come from one thread at a time."""

    program = ""
    questions: FrozenSet[str] = frozenset({"ping", "status"})  # commands that need no control
    refusals: Tuple[Type[Exception], ...] = (Refused,)  # told in their own words

    def __init__(self, lease: float = 10.0) -> None:
        self._lease = lease
        self.holder = ""  # who has control
        self._heard = 0.0

    @abstractmethod
    def commands(self) -> Dict[str, Callable[[Request], Act]]:
        """What is known besides ping and release: each is given the rest of its request, takes out of it what it knows,
        and tells what is to be done, which is done if nothing remains. Refused, or what `refusals` names: why not."""

    def about(self) -> Request:
        """What ping tells besides the program and its version."""
        return {}

    def answer(self, request: Any) -> Request:
        """Never raises."""
        try:
            if not isinstance(request, dict):
                raise Refused('a request is a JSON object, such as {"command": "status"}')
            rest = dict(request)
            name, client, force = rest.pop("command", None), text(rest, "client", ""), flag(rest, "force", False)
            known = dict(self.commands(), ping=lambda rest: self._ping, release=lambda rest: self._release)
            command = known.get(name) if isinstance(name, str) else None
            if command is None or name is None:
                raise Refused(f"command is {show(name)}, known are {', '.join(sorted(known))}")
            self._take_control(name, client, force)
            act = command(rest)
            if rest:
                raise Refused(f"{name}: unknown key {', '.join(sorted(map(str, rest)))}")
            return dict(act() or {}, ok=True)
        except self.refusals as exc:
            return {"ok": False, "error": str(exc)}
        except Exception as exc:  # the controller shall hear of it, and the next request be answered
            log.exception("request")
            return {"ok": False, "error": f"{type(exc).__name__}: {exc}"}

    def _take_control(self, command: str, client: str, force: bool) -> None:
        now = time.monotonic()
        if self.holder and now - self._heard > self._lease:
            log.warning("%s was not heard of for %g s: it has no control any more", self.holder, self._lease)
            self.holder = ""
        if client and client == self.holder:
            self._heard = now
        if command in self.questions:
            return
        if not client:
            raise Refused(f"{command}: who are you? say so by the key client")
        if self.holder not in ("", client) and not force:
            raise Refused(
                f"{command}: {self.holder} has control, heard of {now - self._heard:.1f} s ago; it ends "
                f"{self._lease:g} s after its last word, or give force: true"
            )
        self.holder, self._heard = client, now

    def _ping(self) -> Request:
        return dict(
            self.about(),
            program=self.program,
            version=__version__,
            python=platform.python_version(),
            zmq=zmq.zmq_version(),
            pid=os.getpid(),
            holder=self.holder,
        )

    def _release(self) -> None:
        self.holder = ""


def whole(rest: Request, key: str, least: int, default: Optional[int] = None) -> int:
    """Takes a number out of the request. Refused: it is none."""
    value = rest.pop(key, default)
    if type(value) is not int or not least <= value < 1 << 63:
        raise Refused(f"{key} is {show(value)}, not a whole number from {least}")
    return value


def text(rest: Request, key: str, default: Optional[str] = None) -> str:
    """Likewise."""
    return str(_typed(rest, key, str, "a text", default))


def flag(rest: Request, key: str, default: bool) -> bool:
    """Likewise."""
    return bool(_typed(rest, key, bool, "true or false", default))


def table(rest: Request, key: str) -> Dict[str, Any]:
    """Likewise; empty where it is not there."""
    return dict(_typed(rest, key, dict, "a JSON object", {}))


def number(rest: Request, key: str, default: float) -> float:
    """Likewise."""
    value = rest.pop(key, default)
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise Refused(f"{key} is {show(value)}, not a number from 0")
    return float(value)


def _typed(rest: Request, key: str, kind: Type[Any], what: str, default: Any) -> Any:
    value = rest.pop(key, default)
    if not isinstance(value, kind):
        raise Refused(f"{key} is {'missing' if value is None else show(value)}, not {what}")
    return value


def show(value: Any) -> str:
    """Short enough for a sentence."""
    words = repr(value)
    return words if len(words) <= 80 else words[:77] + "..."


Protect = Callable[[Any, Any], Callable[[], None]]


def nobody_is_refused(context: Any, socket: Any) -> Callable[[], None]:
    """Where no keys and no addresses are asked for."""
    return lambda: None


class Control:
    """A thread with a REP socket. A controller that goes in the middle of a request harms nobody."""

    def __init__(self, orders: Orders, host: str, port: int, protect: Protect = nobody_is_refused) -> None:
        """`protect`, given context and socket, says who may connect, and returns what ends that again. Refused: the
        port is not to be had."""
        self._orders = orders
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 500
        self._unprotect = protect(self._context, self._socket)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)
        try:
            self._socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as exc:
            self._close()
            raise Refused(f"cannot listen at tcp://{host}:{port}: {exc}; is the port in use?") from exc
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._thread = threading.Thread(target=self._work, name="orders")

    def __enter__(self) -> "Control":
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                if self._socket.poll(int(LOOK * 1000)):
                    self._socket.send(self._answer(self._socket.recv_multipart()))
        finally:
            self._close()

    def _close(self) -> None:
        self._unprotect()
        self._socket.close()
        self._context.term()

    def _answer(self, parts: List[bytes]) -> bytes:
        try:
            request = json.loads(b"".join(parts).decode("utf-8"))
        except (ValueError, RecursionError) as exc:
            reply: Request = {"ok": False, "error": f"the request is not JSON ({exc})"}
        else:
            reply = self._orders.answer(request)
        return json.dumps(reply).encode("ascii")
