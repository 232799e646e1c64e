"""What must hold whatever comes: nothing but a StreamError, no memory for nothing, books that balance, no write outside
the root."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from tangods_receiver import config
from tangods_receiver.engine import Engine
from tangods_receiver.errors import DaqError, StreamError
from tangods_receiver.live import Live
from tangods_receiver.protocol import Frame, Message, SeriesEnd, SeriesStart
from tangods_receiver.recovery import check
from tests.fuzz.messages import PROTOCOLS, Protocol, size

SENTENCE = 1000  # characters of a refusal, at most
SLACK = 1 << 20  # bytes that any message may cost
FACTOR = 600  # bytes that one byte of a message may cost: LZ4 packs 255 into one, and there is a copy


LIMIT = 20.0  # s that anything may take
MARKER = (1 << 62) + 123_456_789  # series ids that no fuzz hits by chance


class Broken(AssertionError):
    """A rule does not hold."""


def decoded(protocol: Protocol, parts: Sequence[bytes]) -> list[Message] | None:
    """What the message holds; None: refused in words."""
    try:
        found = protocol.decode(parts)
    except StreamError as exc:
        if not 0 < len(str(exc)) < SENTENCE:
            raise Broken(f"a sentence of {len(str(exc))} characters") from exc
        return None
    messages = found if isinstance(found, list) else [found]
    if not all(isinstance(message, SeriesStart | Frame | SeriesEnd) for message in messages):
        raise Broken(f"decoded to {found!r}")
    return messages


def seen(messages: Sequence[Message] | None) -> None:
    """A viewer asks for the images."""
    for message in messages or ():
        if isinstance(message, Frame):
            live = Live()
            live.show(1, message)
            with contextlib.suppress(StreamError):
                live.last_frame()


def within_bounds(protocol: Protocol, parts: Sequence[bytes]) -> None:
    """Decoding and viewing cost memory in proportion to what came, not to what it claims."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    seen(decoded(protocol, parts))
    cost = tracemalloc.get_traced_memory()[1] - before
    if cost > SLACK + FACTOR * size(parts):
        raise Broken(f"{cost} bytes of memory for a message of {size(parts)}")


# --- files -----------------------------------------------------------------------------------------------------------


class Yard:
    """A root with traps in it, and what lies outside, which nobody may touch."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside = folder / "root", folder / "outside"
        self.outside.mkdir()
        (self.outside / "precious.h5").write_bytes(b"precious")
        (self.root / "sub").mkdir(parents=True)
        (self.root / "there.h5").write_bytes(b"there before")
        (self.root / "link").symlink_to(self.outside)
        (self.root / "linked.h5").symlink_to(self.outside / "precious.h5")
        (self.root / "dangling.h5").symlink_to(self.outside / "new.h5")
        (self.root / "loop").symlink_to(self.root / "loop")
        os.mkfifo(self.root / "fifo")
        with contextlib.suppress(PermissionError):
            os.mknod(self.root / "zero", 0o20666, os.makedev(1, 5))
        self._before = self._outside()

    def _outside(self) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in (self.outside.parent, *self.outside.parent.iterdir(), *self.outside.rglob("*")):
            if path != self.root:
                stat = path.lstat()
                found[str(path)] = stat.st_mode, stat.st_mtime_ns, path.read_bytes() if path.is_file() else b""
        return found

    def untouched(self) -> None:
        if self._outside() != self._before:
            raise Broken(f"outside the root: {self._before} became {self._outside()}")
        if (self.root / "there.h5").read_bytes() != b"there before":
            raise Broken("a finished file was touched")

    def written(self) -> list[Path]:
        """The files that were made."""
        traps = ("there.h5", "linked.h5", "dangling.h5")
        return [p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink() and p.name not in traps]

    def clear(self) -> None:
        for path in self.written():
            path.unlink()


_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_watched: list[tuple[Path, list[str]]] = []
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or event not in (
        "open",
        "os.rename",
        "os.mkdir",
        "os.remove",
        "os.link",
        "os.symlink",
        "os.truncate",
    ):
        return
    if event == "open":
        paths = [arguments[0]] if (arguments[2] or 0) & _WRITES else []
    else:
        paths = [a for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
    root, found = _watched[-1]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            real = Path(os.path.realpath(os.fsdecode(path)))
            if not real.is_relative_to(root):
                found.append(f"{event} {os.fsdecode(path)}")


@contextlib.contextmanager
def nothing_written_outside(root: Path) -> Iterator[None]:
    """Broken: Python was asked to make, write, rename or remove something that is not below `root`."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # stays for the life of the process, and does nothing outside this block
        _hooked = True
    _watched.append((root.resolve(), []))
    try:
        yield
    finally:
        _, found = _watched.pop()
    if found:
        raise Broken(f"outside {root}: {found[:5]}")


class _Surprises(logging.Handler):
    """What was caught in an outermost loop and logged with its traceback: nobody foresaw it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(logging.Formatter().format(record))


class Stage:
    """An engine with one worker, a socket that it pulls from, and a root that is watched."""

    def __init__(self, yard: Yard, **values: Any) -> None:
        self.yard = yard
        self._values = values
        self._protocol = PROTOCOLS[values.get("protocol", "stins")]
        self._settled = self._sent = self._begun = 0
        self._surprises = _Surprises()

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as stack:
            logging.getLogger("tangods_receiver").addHandler(self._surprises)
            stack.callback(logging.getLogger("tangods_receiver").removeHandler, self._surprises)
            stack.enter_context(nothing_written_outside(self.yard.root))
            context = stack.enter_context(zmq.Context())
            self._socket = stack.enter_context(context.socket(zmq.PUSH))
            self._socket.linger = 0
            self._socket.sndtimeo = int(1000 * LIMIT)
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            settings = {"endpoints": [f"tcp://127.0.0.1:{port}"], "root": self.yard.root, "http": "", "end_timeout": 0}
            settings |= {"commit_interval": 0.01, "stall_timeout": 0.5, **self._protocol.settings, **self._values}
            self.engine = stack.enter_context(Engine(config.make(settings)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                self.settle()
        finally:
            self._stack.__exit__(*exc)
        if exc[0] is None:
            self.sound()
            self.good_files()

    def name(self, name: str) -> None:
        """A series goes into this file, if it may."""
        if self._protocol.named is not None:
            return self.send([self._protocol.named(name)])
        with contextlib.suppress(DaqError):
            self.engine.begin(name)

    def send(self, messages: Sequence[Sequence[bytes]]) -> None:
        if self._protocol.named is None and not self.engine.snapshot().file:
            self._begun += 1
            self.engine.begin(f"begun{self._begun}.h5")
        for parts in messages:
            if parts:
                try:
                    self._socket.send_multipart(parts)
                    self._sent += 1
                except zmq.Again as exc:
                    raise Broken(f"nothing was taken for {LIMIT:g} s: {self.engine.snapshot()}") from exc

    def settle(self) -> None:
        """Wait until everything sent was handled: the worker takes a header that comes last, or all that was sent."""
        self._settled += 1
        if self._protocol.marker is None:
            self._wait(lambda: sum(worker.received for worker in self.engine.snapshot().workers) == self._sent)
            marker = self.engine.begin("", 0)
        else:
            marker = MARKER + 1_000_000 * self._settled  # series without an id count on from it
            self.send([self._protocol.marker(marker)])
        self._wait(lambda: self.engine.snapshot().closed == marker)

    def _wait(self, look: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not look():
            self.sound()
            if time.monotonic() > end:
                faulthandler.dump_traceback(all_threads=True)
                raise Broken(f"not done within {LIMIT:g} s: {self.engine.snapshot()}")
            time.sleep(0.0005)
        self.sound()

    def sound(self) -> None:
        if self._surprises.found:
            raise Broken(f"an exception that nobody foresaw: {self._surprises.found[0]}")
        s = self.engine.snapshot()
        if s.received != s.written + s.repeated + s.foreign + s.rejected + s.discarded:
            raise Broken(f"the books do not balance: {s}")
        if "see the log" in s.error:
            raise Broken(s.error)

    def good_files(self) -> None:
        """Every file is sound, but for pixels that were damaged by their sender."""
        self.yard.untouched()
        for path in self.yard.written():
            report = check(path)
            harmless = ("decod", "bslz4")
            problems = [p for p in report.problems if not any(word in p for word in harmless)]
            if problems:
                raise Broken(f"{path}: {problems}")
