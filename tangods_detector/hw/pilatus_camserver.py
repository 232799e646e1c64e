"""A connection to camserver: commands out, replies in, which a thread reads and tells apart by their code.

camserver answers most commands with code 15 and sends some replies without being asked, so a reply counts as an answer
only when its code and its words fit; after one that did not come all that is under way is let go by."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable

from tangods_detector.hw.pilatus_replies import NO_CODE, Replies, Reply
from tangods_receiver.errors import HardwareError

log = logging.getLogger(__name__)

LOOK = 0.2  # s; how often the reading thread wakes
KILL_AGAIN = 0.7  # s without an answer after which a kill is sent once more
FENCE = 2.0  # s for the answer to showpid
PARSER, SHOWPID, END_OF_EXPOSURE, KILLED, OTHER = 1, 16, 7, 13, 15


class Refused(HardwareError):
    """camserver has said ERR."""


class NoControl(HardwareError):
    """Another client commands this camserver."""


class Question:
    """A command that waits for its answer."""

    def __init__(self, code: int | None, words: str) -> None:
        """`code` None: any."""
        self._code, self._words = code, re.compile(words)
        self.reply: Reply | None = None

    def takes(self, reply: Reply) -> bool:
        """Is this the answer? An ERR may also be the parser's; that before a fence is of the kill."""
        if self.reply is not None:
            return False
        if self._code is None:
            return reply.code != NO_CODE
        if not reply.ok:
            return reply.code == self._code or (reply.code == PARSER and self._code != SHOWPID)
        return reply.code == self._code and self._words.search(reply.text) is not None


class Camserver:
    """From its making to `close`. Any thread may call; commands wait for each other."""

    def __init__(self, host: str, port: int, timeout: float = 10.0) -> None:
        """HardwareError: nobody is there."""
        self._name, self._timeout = f"camserver at {host}:{port}", timeout
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as exc:
            raise HardwareError(f"{self._name}: {exc.strerror or exc}; does camserver run there?") from exc
        self._socket.settimeout(LOOK)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._asking = threading.RLock()
        self._changed = threading.Condition()
        self._question: Question | None = None
        self._given_up = self._closing = False
        self._killed = False
        self._belongs: Callable[[str], bool] = lambda name: True
        self.lost = ""  # why there is no connection any more
        self.exposing = False
        self.end: Reply | None = None  # of the last exposure: the 7
        self.failure = ""  # why it broke off, in camserver's words
        self._thread = threading.Thread(target=self._read, name="camserver replies", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Safe twice, from any thread."""
        with self._changed:
            self._closing = True
            self.lost = self.lost or "closed"
            self._changed.notify_all()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended by itself
        self._thread.join()
        self._socket.close()

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: str, code: int = OTHER, words: str = "", limit: float = 0.0, again: bool = True) -> str:
        """The text of the answer, which has to fit `words` (an expression) where it is OK. Asked `again` where it did
        not come but camserver is there.

        Refused: its ERR. NoControl. HardwareError: no answer within `limit` s, or the connection is gone."""
        limit = limit or self._timeout
        with self._asking:
            for left in (1, 0) if again else (0,):
                reply = self._exchange(command, code, words, limit)
                if reply is not None:
                    return self._checked(command, reply)
                there = self._fence()
                if not left or not there:
                    break
                log.warning("%s: no answer to %r, but to the next command: it is sent once more", self._name, command)
        raise HardwareError(f"{self._name}: no answer to {command!r} within {limit:g} s")

    def say(self, command: str, limit: float = 0.0) -> str:
        """Whatever it is, and the whole answer. Errors as of `ask`."""
        limit = limit or self._timeout
        with self._asking:
            reply = self._exchange(command, None, "", limit)
            if reply is None:
                self._fence()
                raise HardwareError(f"{self._name}: no answer to {command!r} within {limit:g} s")
            self._checked(command, reply)
            return str(reply)

    def _checked(self, command: str, reply: Reply) -> str:
        if reply.ok:
            return reply.text
        if "access denied" in reply.text.lower():
            raise NoControl(
                f"{self._name}: {command!r}: {reply}; another client has control: end its connection, the next one to "
                "connect gets it"
            )
        raise Refused(f"{self._name}: {command!r}: {reply}")

    def expose(self, command: str, belongs: Callable[[str], bool]) -> None:
        """An exposure command; returns when camserver has said that it begins. `belongs`: is this the name of one of
        its images? Errors as of `ask`."""
        with self._asking:
            with self._changed:
                self.end, self.failure, self.exposing, self._belongs = None, "", True, belongs
            try:
                reply = self._exchange(command, OTHER, "Starting", self._timeout)
                if reply is None and self.end is None:
                    raise HardwareError(f"{self._name}: no answer to {command!r} within {self._timeout:g} s")
                if reply is not None:
                    self._checked(command, reply)
            except Refused:
                self.exposing = False
                raise

    def kill(self, limit: float) -> None:
        """End the exposure, whatever else waits for an answer; nothing of it comes any more when this returns.
        HardwareError: camserver does not obey."""
        self.give_up()
        with self._asking:
            deadline = time.monotonic() + limit
            while self.exposing and not self.lost:
                if time.monotonic() > deadline:
                    raise HardwareError(f"{self._name} goes on exposing, although it was told to stop {limit:g} s ago")
                self._killed = False
                self._send("camcmd k")
                self._wait(lambda: not self.exposing or self._killed, KILL_AGAIN)
                if self._killed:
                    self._wait(lambda: not self.exposing, deadline - time.monotonic())
            self.settle()

    def settle(self, kill: bool = False) -> None:
        """Let all go by that is under way; with `kill` whatever somebody has left exposing is ended before."""
        with self._asking:
            if kill:
                self._killed, self.exposing, self.end = False, True, None
                self._send("camcmd k")
            there = self._fence()
            if kill and self._killed and self.exposing:
                self._wait(lambda: not self.exposing, FENCE)
                there = self._fence()
            self.exposing = False
            if not there:
                self._raise_lost()
                raise HardwareError(
                    f"{self._name} does not answer within {FENCE:g} s; it is exposing, or has to be started again"
                )

    def give_up(self) -> None:
        """Whoever waits for an answer waits no more."""
        with self._changed:
            if self._question is not None:
                self._given_up = True
            self._changed.notify_all()

    # --- their pieces ------------------------------------------------------------------------------------------------

    def _fence(self) -> bool:
        """All replies before that of showpid are let go by. False: it did not come."""
        return self._exchange("showpid", SHOWPID, "", FENCE, heed=False) is not None

    def _exchange(self, command: str, code: int | None, words: str, limit: float, heed: bool = True) -> Reply | None:
        """None: no answer in time."""
        question = Question(code, words)
        with self._changed:
            self._question, self._given_up = question, False
        try:
            self._send(command)
            over = self._wait(lambda: question.reply is not None or (heed and self._given_up), limit)
        finally:
            with self._changed:
                self._question = None
        if question.reply is not None:
            return question.reply
        self._raise_lost()
        if over:
            raise HardwareError(f"{self._name}: {command!r} was broken off")
        return None

    def _wait(self, look: Callable[[], bool], limit: float) -> bool:
        """Until that is so, or the connection is gone. False: neither."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(look() or self.lost), max(0.0, limit))

    def _raise_lost(self) -> None:
        if self.lost:
            raise HardwareError(f"{self._name}: {self.lost}")

    def _send(self, command: str) -> None:
        self._raise_lost()
        log.debug("-> %s", command)
        try:
            self._socket.sendall(command.encode("latin-1", "replace") + b"\n")
        except OSError as exc:
            self._lose(str(exc.strerror or exc))
            self._raise_lost()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        replies = Replies()
        while not self._closing:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as exc:
                self._lose(str(exc.strerror or exc))
                return
            if not data:
                self._lose("it has closed the connection")
                return
            for reply in replies.feed(data):
                self.take(reply)

    def _lose(self, why: str) -> None:
        with self._changed:
            self.lost = self.lost or why
            self.exposing = False
            self._changed.notify_all()

    def take(self, reply: Reply) -> None:
        """One that came."""
        log.debug("<- %s", reply)
        with self._changed:
            question = self._question
            if reply.code == END_OF_EXPOSURE:
                self._ended(reply)
            elif reply.code == KILLED:
                self._killed = True
            elif question is not None and question.takes(reply):
                question.reply = reply
            elif reply.code == OTHER and not reply.ok and self.exposing:
                self.failure, self.exposing = self.failure or str(reply), False
            else:
                log.debug("nobody waits for %s", reply)
            self._changed.notify_all()

    def _ended(self, reply: Reply) -> None:
        """There may be two, and one of an exposure before."""
        name = reply.text.replace("\\", "/").rpartition("/")[2].strip()
        if self.exposing and (not reply.ok or not name or self._belongs(name)):
            self.end, self.exposing = reply, False
