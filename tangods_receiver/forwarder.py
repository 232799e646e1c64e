"""Sends on what is received, as STINS: a thread for each port, which owns its socket. It never makes a frame wait, but
where that is asked for (`lossless`)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import zmq

from tangods_receiver.config import ForwardPort
from tangods_receiver.errors import ConfigError
from tangods_receiver.outbox import Ending, Item, Opening, Outbox
from tangods_receiver.outlet import Outlet
from tangods_receiver.priority import give_way
from tangods_receiver.protocol import Frame, SeriesEnd, SeriesStart, stins
from tangods_receiver.protocol.checks import dumps
from tangods_receiver.security import Guard
from tangods_receiver.series import Series
from tangods_receiver.stats import PortStats

log = logging.getLogger(__name__)

TURN = 100  # ms between looks at what has no wake-up of its own
ATTENTION = 2  # ms between looks at a client that is shaking hands
DRAIN = 1.0  # s for what still waits when the engine stops
START_LIMIT = 10.0  # s
DEPTH = 50  # of nested metadata, where some of it is not JSON; what is deeper is left out
SLOW = 10.0  # s that recording may wait for a client before the status tells


class Port:
    """`start` returns when the port is bound (ConfigError: it could not be); `stop` and `join` end it.

    `open`, `put` and `close` come from the reception, one at a time, and never wait."""

    def __init__(self, settings: ForwardPort, name: str, guard: Guard | None = None) -> None:
        self._settings = settings
        self._guard = guard
        self._lossless = settings.policy == "lossless"
        self._every = settings.every
        self._changed = threading.Condition(threading.Lock())  # guards the outbox and what `put` counts
        self._outbox = Outbox(settings.queue_bytes)
        self._audience = False  # without one, frames are not kept
        self._asleep = False
        self._dropped = self._unheard = self._left_out = 0
        self._before = (0, 0)  # dropped, unheard before the open series
        self._waiting: dict[int, float] = {}  # thread that waits for room -> since when
        self._waited = 0.0
        # what only the thread writes
        self._sent = self._sent_bytes = self._sent_here = self._peers = self._refused = 0
        self._passed_by = self._passed_by_before = 0
        self._serial = time.time_ns() // 1000  # no series is taken for one that was sent before a restart
        self._opening: list[bytes] | None = None  # the start message of the series that is going out
        self._series = 0
        self._endpoint = settings.endpoint
        self._wake = -1  # descriptor
        self._stop_by: float | None = None
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._main, name=f"{name} forward {settings.endpoint}", daemon=True)

    # --- what the engine calls ---------------------------------------------------------------------------------------

    def start(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread.start()
        if not self._ready.wait(START_LIMIT):
            raise ConfigError(f"forward: {self._settings.endpoint} not bound within {START_LIMIT:g} s")
        if self._failure is not None:
            raise ConfigError(f"forward: {self._settings.endpoint} cannot be bound: {self._failure}; is it in use?")

    def stop(self) -> None:
        """What waits has a moment to leave."""
        with self._changed:
            self._stop_by = time.monotonic() + DRAIN
            self._rouse()
            self._changed.notify_all()

    def join(self, limit: float) -> None:
        if self._thread.ident is not None:  # else it could not be started
            self._thread.join(limit)
        if not self._thread.is_alive() and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    @property
    def endpoint(self) -> str:
        """As bound, with the number of the TCP port that was free."""
        return self._endpoint

    def stats(self) -> PortStats:
        with self._changed:
            return PortStats(
                endpoint=self._endpoint,
                socket=self._settings.socket,
                peers=self._peers,
                frames=self._sent,
                bytes=self._sent_bytes,
                dropped=self._dropped,
                passed_by=self._passed_by,
                unheard=self._unheard,
                left_out=self._left_out,
                queued=self._outbox.nbytes,
                waited=self._waited,
                refused=self._refused,
            )

    def remark(self) -> str:
        """Recording waits for a client, and has done so for long; in words."""
        since = min(list(self._waiting.values()), default=None)
        seconds = 0.0 if since is None else time.monotonic() - since
        if seconds <= SLOW:
            return ""
        return (
            f"recording has waited {seconds:.0f} s for who is connected to {self._endpoint} (policy lossless); look at "
            "that program, or stop the series"
        )

    # --- what the reception calls ------------------------------------------------------------------------------------

    def open(self, start: SeriesStart) -> None:
        opening = self._opening_of(start)
        with self._changed:
            self._before = self._dropped, self._unheard
            self._outbox.open(opening)
            self._rouse()

    def put(self, frames: Sequence[Frame], patient: bool) -> None:
        """`patient` they may wait beyond the limit: who brings them waits for room afterwards."""
        every, put = self._every, self._outbox.put
        beyond = patient and self._lossless
        with self._changed:
            for frame in frames:
                if every > 1 and frame.number % every:
                    self._left_out += 1 + len(frame.more)
                elif not self._audience:
                    self._unheard += 1 + len(frame.more)
                elif not put(frame, beyond):
                    self._dropped += 1 + len(frame.more)
            if self._asleep and self._outbox:
                self._rouse()

    def close(self, end: SeriesEnd) -> None:
        if end.nframes is not None:
            end = replace(end, nframes=self._thinned(end.nframes))
        with self._changed:
            self._outbox.close(Ending(end, self._dropped - self._before[0], self._unheard - self._before[1]))
            self._rouse()

    def wait(self, enough: Callable[[], bool]) -> None:
        """For room, if this port is lossless, until there is some or it is `enough`."""
        if not self._lossless or not self._outbox.full:
            return
        begun, thread = time.monotonic(), threading.get_ident()
        with self._changed:
            self._waiting[thread] = begun
            while self._outbox.full and self._stop_by is None and self._audience and not enough():
                self._changed.wait(TURN / 1000)
            del self._waiting[thread]
            self._waited += time.monotonic() - begun

    def _opening_of(self, start: SeriesStart) -> Opening:
        """As this port tells it."""
        metadata = {key: value for key, value in start.metadata.items() if key != "overwrite"}
        if self._every > 1:
            before = metadata.get("every")
            metadata["every"] = self._every * (before if type(before) is int and before > 0 else 1)
        name = filename(self._settings.filename, start)
        nframes = None if start.nframes is None else self._thinned(start.nframes)
        return Opening(replace(start, filename=name, nframes=nframes), as_json(metadata))

    def _thinned(self, nframes: int) -> int:
        return -(-nframes // self._every)

    def _rouse(self) -> None:
        """With the lock held."""
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._wake, 1)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        if not self._lossless:
            give_way()  # and the threads that libzmq begins in it
        try:
            with zmq.Context(1) as context:
                outlet = self._outlet(context)
                try:
                    self._ready.set()
                    self._loop(outlet)
                finally:
                    outlet.close()
        except Exception as exc:  # before the loop: `start` tells; out of the loop nothing comes
            self._failure = exc
        finally:
            self._audience = False
            self._ready.set()

    def _outlet(self, context: zmq.Context[Any]) -> Outlet:
        settings = self._settings
        outlet = Outlet(context, settings.address, settings.socket, self._lossless, self._wake, self._guard)
        self._endpoint = outlet.endpoint
        return outlet

    def _loop(self, outlet: Outlet) -> None:
        while self._stop_by is None or (self._outbox and time.monotonic() < self._stop_by):
            try:
                self._turn(outlet)
            except Exception:  # the outermost loop: forwarding goes on with the next message, recording anyway
                log.exception("forwarding to %s", self._endpoint)
                self._skip(outlet)

    def _turn(self, outlet: Outlet) -> None:
        outlet.look(self._opening)
        self._refused, self._passed_by = outlet.refused, outlet.passed_by
        if self._audience != outlet.audience or self._peers != outlet.peers:
            with self._changed:
                self._audience, self._peers = outlet.audience, outlet.peers
                self._changed.notify_all()
        with self._changed:
            item = self._outbox.first()
            self._asleep = item is None and self._stop_by is None
        if item is None:
            outlet.wait(TURN)
            self._wide_awake()
        elif outlet.coming and type(item) is Frame and self._audience:
            outlet.wait_for_clients(ATTENTION)
        elif self._send(outlet, item):
            with self._changed:
                self._outbox.taken()
                if self._waiting and not self._outbox.full:
                    self._changed.notify_all()
        else:
            outlet.wait_for_room(TURN)

    def _wide_awake(self) -> None:
        with self._changed:
            self._asleep = False
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass

    def _skip(self, outlet: Outlet) -> None:
        """What could not even be tried."""
        outlet.give_up()
        with self._changed:
            item = self._outbox.first()
            if isinstance(item, Frame):
                self._dropped += 1 + len(item.more)
            else:
                self._opening = None
            if item is not None:
                self._outbox.taken()
        time.sleep(0.01)

    def _send(self, outlet: Outlet, item: Item) -> bool:
        """False: no room yet."""
        if isinstance(item, Opening):
            return self._send_start(outlet, item)
        if isinstance(item, Ending):
            return self._send_end(outlet, item)
        return self._send_frame(outlet, item)

    def _send_frame(self, outlet: Outlet, frame: Frame) -> bool:
        count = 1 + len(frame.more)
        if not self._audience or self._opening is None:
            with self._changed:
                self._unheard += count
            return True
        head = stins.encode_frame(frame, frame.number // self._every, self._serial, self._series)
        payload = (frame.data, *frame.more)
        if not outlet.send_frame(head, payload):
            return False
        self._serial += 1
        self._sent += count
        self._sent_here += count
        self._sent_bytes += sum(map(len, payload))
        return True

    def _send_start(self, outlet: Outlet, item: Opening) -> bool:
        if self._opening is None:
            start = item.start
            assert start.series is not None
            self._series, self._sent_here, self._passed_by_before = start.series, 0, outlet.passed_by
            head = stins.encode_start(
                start.filename,
                self._serial,
                series=start.series,
                nframes=start.nframes,
                shape=start.shape,
                dtype=start.dtype,
                codec=start.codec,
                modules=start.modules if start.modules > 1 else None,
                channels=start.channels,
                times=start.times,
            )[0]
            self._opening = [head, item.metadata]
            self._serial += 1
        if self._audience and not outlet.send_to_all(self._opening):
            return False
        outlet.give_up()
        return True

    def _send_end(self, outlet: Outlet, item: Ending) -> bool:
        end = item.end
        if self._opening is None:
            return True
        parts = stins.encode_end(self._serial, series=end.series, nframes=end.nframes)
        if self._audience and not outlet.send_to_all(parts):
            return False
        outlet.give_up()
        self._serial += 1
        self._opening = None
        passed_by = outlet.passed_by - self._passed_by_before
        log.log(
            logging.WARNING if item.dropped or passed_by else logging.INFO,
            "series %d forwarded to %s: %d frames, %d dropped, %d without a client, %d clients%s",
            *(self._series, self._endpoint, self._sent_here, item.dropped, item.unheard, self._peers),
            f"; a subscriber was too slow and lost frames, {passed_by} times" if passed_by else "",
        )
        return True


class Forwarder:
    """The ports of a configuration."""

    def __init__(self, ports: Sequence[ForwardPort], name: str, guard: Guard | None = None) -> None:
        """`guard` None: everybody may connect."""
        self._ports = [Port(port, name, guard) for port in ports]
        self._lossless = any(port.policy == "lossless" for port in ports)

    def start(self) -> None:
        """ConfigError: a port cannot be bound."""
        for port in self._ports:
            port.start()

    def stop(self) -> None:
        """What still waits has `DRAIN` s."""
        for port in self._ports:
            port.stop()
        end = time.monotonic() + DRAIN + START_LIMIT
        for port in self._ports:
            port.join(max(0.0, end - time.monotonic()))

    @property
    def endpoints(self) -> list[str]:
        return [port.endpoint for port in self._ports]

    def stats(self) -> tuple[PortStats, ...]:
        return tuple(port.stats() for port in self._ports)

    def remark(self) -> str:
        """What takes long and is waited for; in words."""
        return next(filter(None, (port.remark() for port in self._ports)), "") if self._lossless else ""

    def open(self, series: Series) -> None:
        """As its frames will come: after the pixel work."""
        start, layout = replace(series.start, series=series.id, relative=False), series.layout
        if layout is None:
            start = replace(start, shape=None, dtype=None, codec=None)
        else:
            start = replace(start, shape=layout.shape, dtype=layout.dtype, codec=layout.codec, modules=layout.modules)
        for port in self._ports:
            port.open(start)

    def put(self, series: Series) -> None:
        """What is new of its frames."""
        frames = series.accepted
        if frames:
            series.accepted = []
            for port in self._ports:
                port.put(frames, not series.stopped)

    def close(self, series: Series) -> None:
        expected = series.expected()
        nframes = series.ledger.highest + 1 if expected is None else expected
        for port in self._ports:
            port.close(SeriesEnd(series=series.id, nframes=nframes))

    def wait(self, enough: Callable[[], bool]) -> None:
        """For lossless ports, without any lock held, until it is `enough`."""
        if self._lossless:
            for port in self._ports:
                port.wait(enough)


def filename(wanted: str, start: SeriesStart) -> str:
    """What the start message says: the name as it was, none, or one made from a pattern."""
    if wanted == "none" or not start.filename:
        return ""
    if wanted == "keep":
        return start.filename
    path = PurePath(start.filename)
    return wanted.format(directory=path.parent, name=path.stem, series=start.series)


def as_json(metadata: Mapping[str, Any]) -> bytes:
    """Metadata of any protocol; values that JSON does not know become text, arrays stay out."""
    try:
        return dumps(dict(metadata))
    except (TypeError, ValueError, RecursionError):
        return dumps(_plain(metadata, 0))


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        inside = {_text(key): _plain(item, depth + 1) for key, item in value.items()} if depth < DEPTH else {}
        return {key: item for key, item in inside.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value] if depth < DEPTH else []
    if value is None or isinstance(value, bytes | bytearray | memoryview):
        return None
    try:
        dumps(value)
    except (TypeError, ValueError, RecursionError):
        return _text(value)
    return value


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode()
