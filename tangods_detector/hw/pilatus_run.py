"""One series of a Pilatus: its files are found, read, sent in order, and what never came is told. Python 3.6, see
pilatus_stream."""

import logging
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from tangods_detector.hw import pilatus_cbf as cbf
from tangods_detector.hw import pilatus_outlet as outlets
from tangods_detector.hw.pilatus_guard import NOBODY_IS_REFUSED, Guard
from tangods_detector.hw.pilatus_queue import DAMAGED, Queue
from tangods_detector.hw.pilatus_watcher import Pattern, Watcher

log = logging.getLogger(__name__)

LOOK = 0.05  # s between two looks at orders
LOOK_BUSY = 0.01  # s between two looks at the folder while there is something to send
END_LIMIT = 5.0  # s for the end message, and for what is still in the socket
QUICKLY = 1.0  # s for the same, when it shall end at once
DAMAGED_FOLDER = "damaged"  # in the images' folder: a rename costs nothing
DAMAGED_KEPT = 10  # files
OLD = 10.0  # s that the clocks of camserver and of the file system may differ
START_SHARE = 1.0  # s before the first image that count for the share, so that those are checked
TELL = 64  # images that bring the header's lines: whichever of them the receiver sees first


class Options(NamedTuple):
    """`folder` below which images are read; `host`, `port` of the stream (port 0: any free one); `queue` messages that
    wait in the socket; `keep` files behind them that stay after they were sent; `polling` True, False, None: by the
    file system; `md5_share` of the time may go into sums of pixels while no image waits (1: each is checked, 0: none);
    times in s: `gap_wait` for an image that later ones overtook, `file_wait` for one after the end of the series,
    `damaged_wait` for one that is not complete, `arm_limit` for a receiver; `guard` of the stream's port."""

    folder: str
    host: str = "127.0.0.1"
    port: int = 9999
    queue: int = 8
    keep: int = 10
    polling: Optional[bool] = None
    rescan: float = 2.0
    md5_share: float = 0.05
    gap_wait: float = 0.5
    file_wait: float = 3.0
    stop_wait: float = 0.3
    damaged_wait: float = 1.0
    arm_limit: float = 10.0
    stop_limit: float = 10.0
    room_for: int = 50
    guard: Guard = NOBODY_IS_REFUSED


class Series(NamedTuple):
    """One arm. `folder` absolute; `pattern` with the number `first` for image 0; `endless`: until it is stopped, which
    is when there are `nframes` at the latest; `present` what is done with such files
    that are there already: refuse, send, delete, or delete_all (every .cbf); `resume`: the start message was sent by a
    streamer that died; `expect` of the first header, by the names of its lines."""

    series: int
    filename: str
    folder: str
    pattern: Pattern
    first: int
    nframes: int
    shape: Optional[Tuple[int, int]] = None
    metadata: Dict[str, Any] = {}
    present: str = "refuse"
    resume: bool = False
    expect: Dict[str, Any] = {}
    endless: bool = False


class Hand(NamedTuple):
    """An image that was read and not sent yet."""

    number: int
    path: str
    data: bytes
    image: cbf.Image


class Run:
    """One series, in the thread of the stream. `step` does one bit of work and never waits longer than LOOK."""

    def __init__(self, series: Series, options: Options, outlet: outlets.Outlet, serial: int) -> None:
        """OSError: the folder cannot be watched."""
        self.series = series
        self.serial = serial
        self.phase = "armed" if series.resume else "arming"
        self.queue = Queue(series.nframes, options.gap_wait)
        self.error = ""
        self.blocked = False
        self.header: Dict[str, str] = {}
        self.differences: Dict[str, str] = {}
        self.damage: List[str] = []
        self.vanished = 0
        self.again = 0
        self.last_bytes = 0
        self.checked = 0  # images, by their sums
        self._summing = 0.0  # s that this took
        self._first_at = 0.0
        self._metadata: Dict[str, Any] = {}
        self.watcher = Watcher(series.folder, options.polling, options.rescan)
        self._options = options
        self._outlet = outlet
        self._hand: Optional[Hand] = None
        self._unripe: Dict[int, Tuple[float, float]] = {}  # number: found at, look again at
        self._old: Dict[int, float] = {}  # number: time of a file of an earlier series
        self._since = 0.0 if series.present == "send" else clock_of(series.folder) - OLD
        self._deadline = time.monotonic() + options.arm_limit
        self._active = time.monotonic()  # when something came or went
        self._finish: Optional[float] = None  # s to wait for missing files, once told that no more are written
        self._stopping = False
        self._over_at = 0.0
        self._limit = END_LIMIT
        self._looked = 0.0

    # --- orders ------------------------------------------------------------------------------------------------------

    def finish(self, frames: Optional[int]) -> None:
        """No more images are written; `frames` that there are."""
        if frames is not None:
            self.queue.shorten(frames)
        self._finish, self._active = self._options.file_wait, time.monotonic()

    def stop(self, keep: bool) -> None:
        """No more are wanted: send what is there (`keep`), or end at once and leave it there."""
        self._stopping = True
        if self.phase == "arming":
            self._fail("stopped before a receiver had taken the start message")
        elif self.phase == "ending":
            self._deadline = min(self._deadline, time.monotonic() + QUICKLY)
        elif not keep:
            self.queue.shorten(0)
            self._begin_end(QUICKLY)
        elif self._finish is None or self._finish > self._options.stop_wait:
            self._finish, self._active = self._options.stop_wait, time.monotonic()
            self.watcher.scan_soon()

    # --- work --------------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Nothing is left to be done."""
        return self.phase in ("done", "error")

    def step(self) -> None:
        """OSError: the folder is gone."""
        if self.phase == "arming":
            self._begin()
        elif self.phase == "ending":
            self._end()
        else:
            self._stream()

    def close(self) -> None:
        """Safe twice."""
        self.watcher.close()

    def gone(self, sentence: str) -> None:
        """The folder is; the receiver shall hear that the series ends."""
        self.error = sentence
        self._begin_end(QUICKLY)

    def lost(self) -> int:
        """Images that never came; only after the end are they called so."""
        return self.queue.missing() if self.phase in ("ending", "done", "error") else 0

    def _begin(self) -> None:
        one = self.series
        nframes = None if one.endless else one.nframes
        metadata = dict(one.metadata, metadata_follows=True)
        parts = outlets.encode_start(one.filename, self.serial, one.series, nframes, one.shape, metadata)
        if self._outlet.offer(parts):
            self.serial += 1
            self.phase = "armed"
        elif time.monotonic() > self._deadline:
            self._fail(
                f"no receiver connected to {self._outlet.endpoint} within {self._options.arm_limit:g} s; check that "
                "the StreamReceiver runs and that this is one of its endpoints"
            )
        else:
            self._outlet.wait(LOOK)

    def _stream(self) -> None:
        busy = self._hand is not None or self.queue.waiting > 0
        if not busy or time.monotonic() - self._looked > LOOK_BUSY:
            self._find(0.0 if busy else LOOK)
            self._looked = time.monotonic()
        if self._hand is None:
            self._take()
        if self._hand is not None:
            self._send(self._hand)
        if self._outlet.broke():
            self._send_again()
        self._outlet.delete()
        if self._hand is None and not self.queue.waiting:
            self._look_for_end()

    def _find(self, timeout: float) -> None:
        names = self.watcher.look(timeout)
        number, first = self.series.pattern.number, self.series.first
        for name in names:
            found = number(name)
            if found is None or found - first in self._unripe or self._is_old(found - first, name):
                continue
            if self.queue.found(found - first):
                self._active = time.monotonic()
                self.phase = "running" if self.phase == "armed" else self.phase
        now = time.monotonic()
        for image, (_, again) in list(self._unripe.items()):
            if now >= again:
                self.queue.found(image)

    def _is_old(self, number: int, name: str) -> bool:
        """Left over from an earlier series, and not replaced since? It stays, for camserver writes over it."""
        if number not in self._old:
            return False
        try:
            return os.stat(os.path.join(self.series.folder, name)).st_mtime == self._old[number]
        except OSError:
            return True

    def _take(self) -> None:
        """Read the next file. One that is not complete is looked at again, for `damaged_wait` s."""
        now = time.monotonic()
        number = self.queue.next(now, hurry=self._stopping)
        if number is None:
            if self.queue.waiting:
                time.sleep(0.005)  # an earlier one is waited for
            return
        path = os.path.join(self.series.folder, self.series.pattern.name(number + self.series.first))
        try:
            with open(path, "rb", buffering=0) as file:
                written = os.fstat(file.fileno()).st_mtime
                data = file.read() if written >= self._since else b""
        except FileNotFoundError:
            self.vanished += 1
            self._unripe.pop(number, None)
            self.queue.is_absent(number)
            return
        except OSError as exc:
            self._spoilt(number, path, f"cannot be read ({exc.strerror})")
            return
        if written < self._since:
            self._old[number] = written
            self.queue.is_absent(number)
            return
        try:
            self._hand = Hand(number, path, data, self._examined(number, data))
            self._unripe.pop(number, None)
        except cbf.Incomplete as exc:
            since = self._unripe.get(number, (now, now))[0]
            if now - since < self._options.damaged_wait:
                self._unripe[number] = since, now + 0.05
                self.queue.is_absent(number)
            else:
                self._spoilt(number, path, str(exc))
        except cbf.Damaged as exc:
            self._spoilt(number, path, str(exc))

    def _examined(self, number: int, data: bytes) -> cbf.Image:
        image = cbf.examine(data)
        expected = self.series.shape
        if expected is not None and image.shape != expected:
            raise cbf.Damaged(f"image of {image.shape}, not {expected}")
        now, share = time.monotonic(), self._options.md5_share
        self._first_at = self._first_at or now
        idle = not self.queue.waiting or share >= 1
        if idle and self._summing < share * (now - self._first_at + START_SHARE):
            cbf.check_md5(data, image)
            self.checked += 1
            self._summing += time.monotonic() - now
        return image

    def _send(self, hand: Hand) -> None:
        serial = None if self.series.resume else self.serial
        stamp = cbf.taken_at(hand.image.header)
        if not self.header:
            self._look_at_header(hand.image.header)
        told = self._metadata if self.queue.sent < TELL else None
        header = outlets.encode_frame_header(hand.number, hand.image.shape, serial, self.series.series, stamp, told)
        if not self._outlet.offer([header, hand.data], hand.number, hand.path):
            self.blocked = True
            self._outlet.wait(LOOK)
            if self._stopping and time.monotonic() - self._active > self._options.stop_limit:
                self.error = f"the receiver takes nothing; {1 + self.queue.waiting} files stay in the folder"
                self._begin_end(QUICKLY)
            return
        self.serial += 1
        self.blocked = False
        self.queue.was_sent(hand.number)
        self.last_bytes = len(hand.data)
        self._hand, self._active = None, time.monotonic()

    def _look_at_header(self, text: bytes) -> None:
        """Of the first image: what it says goes into the file, and is compared with what was expected."""
        self.header = cbf.fields(text)
        self._metadata = cbf.metadata(self.header)
        self.differences = cbf.differences(self.header, self.series.expect)
        for name, found in self.differences.items():
            log.warning("series %d: header says %s %s", self.series.series, name, found)

    def _send_again(self) -> None:
        """A connection broke: what it had been given may be lost."""
        numbers = [sent.number for sent in self._outlet.again()]
        self.queue.again(numbers)
        self.again += len(numbers)
        log.warning("series %d: a connection broke; %d images go once more", self.series.series, len(numbers))

    def _spoilt(self, number: int, path: str, why: str) -> None:
        """Put a file aside that no receiver would take."""
        self._unripe.pop(number, None)
        self.queue.was_damaged(number)
        name = os.path.basename(path)
        if len(self.damage) < 20:
            self.damage.append(f"{name}: {why}")
        log.warning("series %d: %s is damaged: %s", self.series.series, name, why)
        self._active = time.monotonic()
        aside = os.path.join(self.series.folder, DAMAGED_FOLDER)
        try:
            os.makedirs(aside, exist_ok=True)
            os.rename(path, os.path.join(aside, name))
            kept = sorted((os.stat(os.path.join(aside, one)).st_mtime, one) for one in os.listdir(aside))
            for _, one in kept[:-DAMAGED_KEPT]:
                outlets.unlink(os.path.join(aside, one))
        except OSError as exc:
            log.warning("%s stays where it is (%s)", path, exc)

    # --- the end -----------------------------------------------------------------------------------------------------

    def _look_for_end(self) -> None:
        quiet = time.monotonic() - self._active
        if self.queue.over:
            self._begin_end(END_LIMIT)
        elif self._finish is not None and not self._unripe and quiet >= self._finish:
            if self._stopping:
                self.queue.shorten(0)
            self._begin_end(END_LIMIT)

    def _begin_end(self, limit: float) -> None:
        if self._hand is not None:
            self.queue.back(self._hand.number)
            self._hand = None
        self.phase, self._over_at = "ending", 0.0
        self._limit, self._deadline = limit, time.monotonic() + limit

    def _end(self) -> None:
        now = time.monotonic()
        if not self._over_at and self._outlet.broke() and not self.error and not self._stopping:
            self._send_again()
            self.phase = "running"
        elif not self._over_at:
            serial = None if self.series.resume else self.serial
            if self._outlet.offer(outlets.encode_end(serial, self.series.series, self.queue.total)):
                self.serial += 1
                self._over_at = now
                self._deadline = now + self._limit
            elif now > self._deadline:
                self._fail(self.error or "the receiver took no end message")
            else:
                self._outlet.wait(LOOK)
        elif self._outlet.left():
            self.phase = "error" if self.error else "done"
        elif now > self._deadline:
            self._fail(f"the end message was sent, but the last images have not left after {self._limit:g} s")
        else:
            time.sleep(0.005)

    def _fail(self, sentence: str) -> None:
        self.error, self.phase = sentence, "error"

    # --- what is told ------------------------------------------------------------------------------------------------

    def told(self) -> Dict[str, Any]:
        """For the status; JSON."""
        lost = self.lost()
        return {
            "phase": self.phase,
            "series": self.series.series,
            "nframes": self.queue.total,
            "sent": self.queue.sent,
            "waiting": self.queue.waiting + (self._hand is not None),
            "lost": lost,
            "lost_numbers": self.queue.ranges() if lost else [],
            "damaged": self.queue.damaged,
            "damaged_numbers": self.queue.ranges(DAMAGED) if self.queue.damaged else [],
            "damage": list(self.damage),
            "late": self.queue.late,
            "foreign": self.queue.foreign,
            "vanished": self.vanished,
            "sent_again": self.again,
            "overflows": self.watcher.overflows,
            "polling": self.watcher.polling,
            "blocked": self.blocked,
            "checked": self.checked,
            "old": len(self._old),
            "header": self.header,
            "differences": self.differences,
            "message": self._sentence(lost),
        }

    def _sentence(self, lost: int) -> str:
        said = [self.error] if self.error else []
        if lost and not self.series.resume:  # which were sent by a streamer that died, only the receiver knows
            said.append(f"{lost} of {self.queue.total} images never came: {_listed(self.queue.ranges())}")
        if self.queue.damaged:
            said.append(f"{self.queue.damaged} damaged: {'; '.join(self.damage[:3])}")
        if self.differences:
            said.append("header: " + "; ".join("{} {}".format(*pair) for pair in sorted(self.differences.items())))
        return "; ".join(said)


def clock_of(folder: str) -> float:
    """What the clock of its file system says, s since the epoch. OSError: nothing can be written there."""
    path = os.path.join(folder, f".clock-{os.getpid()}")
    with open(path, "wb"):
        pass
    try:
        return os.stat(path).st_mtime
    finally:
        os.unlink(path)


def _listed(ranges: List[Tuple[int, int]], most: int = 10) -> str:
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:most]]
    return ", ".join(texts) + (" ..." if len(ranges) > most else "")
