"""camserver itself: settings, one series at a time, a thread that exposes and writes. Connections are elsewhere."""

from __future__ import annotations

import errno
import heapq
import logging
import os
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from tangods_detector.simulators.camserver import imagefile, models
from tangods_detector.simulators.camserver.course import MODES, Course, Exposure, Plan
from tangods_detector.simulators.camserver.failures import Failures
from tangods_detector.simulators.camserver.imagefile import CUTOFF, NIL, Header
from tangods_detector.simulators.camserver.options import CamserverOptions
from tangods_detector.simulators.camserver.pictures import Picture, Pictures

log = logging.getLogger(__name__)

# s, times the speed; threshold and energy: of 60 modules, and what each energy takes besides
DELAYS = {"threshold": 96.0, "energy": 17.0, "energies": 3.0, "arm": 0.1, "kill": 0.5, "resetcam": 1.0}
LOOK = 0.1  # s
OLD = 3600.0  # s
RAMDISK = "/dev/shm"
RATECORR = "ContinuousStandard_v1.1"
FILE_FAILURES = ("missing", "truncated", "wrong_md5", "late", "reorder", "wide")


class Refused(Exception):
    """The command is answered with ERR and this."""


class Gone(Exception):
    """The client has left, or camserver ends."""


class Client(Protocol):
    @property
    def control(self) -> bool: ...
    @property
    def left(self) -> bool: ...
    def send(self, text: str) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def drop(self) -> None: ...


@dataclass
class Settings:
    """What clients set; camserver keeps it when they go."""

    imgpath: str  # ends with /
    nimages: int = 1
    exptime: float = 1.0
    expperiod: float = 1.05
    nexpframe: int = 1
    delay: float = 0.0
    gapfill: int = 0
    setackint: int = 0
    setroi: str = "0"
    setretriggermode: int = 1
    debtime: float = 0.0
    discardmultim: int = 0
    dbglvl: int = 1
    tau: float = 0.0
    ratecorrlutdir: str = ""
    ldbadpixmap: str = "badpixel_mask.tif"
    ldflatfield: str = ""
    headerstring: str = ""
    mx: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    energy: int = 0  # eV; 0: not set
    threshold: int = 0
    gain: str = ""
    cleared: bool = True  # `setthreshold 0` was the last one


@dataclass
class Series:
    """One exposure command."""

    typed: str
    course: Course
    header: Header
    pictures: tuple[Picture, ...]
    wide: tuple[str, int, bool]
    date: datetime  # of `clock`
    clock: float
    ackint: int
    last: str = ""  # path of the last image
    held: str = ""  # renamed after the next image
    killed: float | None = None

    @property
    def images(self) -> int:
        return self.course.plan.nimages

    def picture(self, k: int) -> Picture:
        return self.pictures[k % len(self.pictures)]

    def path(self, k: int) -> str:
        return os.path.join(self.header.folder, imagefile.name(self.typed, self.images, k))


class Camserver:
    """`fail`, `edge` and the commands may come from any thread."""

    def __init__(self, options: CamserverOptions) -> None:
        self.options = options
        self.model = models.model(options.kind, options.model)
        self.version = options.version or ("7.9.0" if self.model.new else "tvx-7.3.13-121212")
        self.failures = Failures()
        self.happened: list[str] = []  # failures that took place, oldest first
        self.written: list[tuple[str, str]] = []
        self.controller: Client | None = None
        self.last = NIL  # image of all series
        self.shown: Series | None = None  # the last one
        self.lock = threading.Condition()
        self._pictures = Pictures(self.model, options.images)
        self._series: Series | None = None
        self._ended_at = datetime.now()
        self._pulses: deque[tuple[float | None, float]] = deque()  # when (None: as soon as possible), width
        self._late: list[tuple[float, int, str]] = []  # when, order, path
        self._renames = 0
        self._closing = False
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._thread = threading.Thread(target=self._run, name="camserver exposures", daemon=True)
        self.folder = options.folder
        self.settings = Settings("")

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """OSError: there can be no folder."""
        if not self.folder:
            where = RAMDISK if os.path.isdir(RAMDISK) else None
            self._temporary = tempfile.TemporaryDirectory(prefix="camserver-", dir=where, ignore_cleanup_errors=True)
            self.folder = self._temporary.name
        os.makedirs(self.folder, exist_ok=True)
        self.folder = os.path.abspath(self.folder)
        self.settings = self.usual()
        self._pictures.get()
        self._thread.start()

    def close(self) -> None:
        with self.lock:
            self._closing = True
            self.lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)
        for _, _, path in self._late:
            with suppress(OSError):
                os.unlink(imagefile.temporary(path))
        if self._temporary is not None:
            self._temporary.cleanup()

    def usual(self) -> Settings:
        """What camserver starts with."""
        return Settings(f"{self.folder}/", ratecorrlutdir=RATECORR if self.model.new else "")

    @property
    def readout(self) -> float:
        """s; none without limits."""
        return self.model.readout if self.options.limits else 0.0

    @property
    def exposing(self) -> bool:
        return self._series is not None

    @property
    def target(self) -> str:
        series = self._series
        return series.path(series.course.taken) if series and series.course.taken < series.images else NIL

    def ends_at(self) -> datetime:
        """Of the series, as far as it is known, or of the last one."""
        series = self._series
        if series is None:
            return self._ended_at
        return series.date + timedelta(seconds=series.course.busy_until - series.clock)

    def free(self) -> int:
        """Bytes of the image disk that are left. OSError: it is gone."""
        folder = self.settings.imgpath
        if self.options.capacity:
            return max(0, self.options.capacity - _used(folder))
        disk = os.statvfs(folder)
        return disk.f_bavail * disk.f_frsize

    # --- what tests use ----------------------------------------------------------------------------------------------

    def fail(self, failures: Failures) -> None:
        with self.lock:
            self.failures = failures

    def edge(self, n: int, width: float, period: float | None) -> None:
        """Edges that come before the detector is armed are lost."""
        now = time.monotonic()
        with self.lock:
            for k in range(n):
                if self.failures.take_one("skip_edges"):
                    self.note("skip_edges")
                elif self._series is not None:
                    self._pulses.append((None if period is None else now + k * period, width))
            self.lock.notify_all()

    def note(self, text: str) -> None:
        self.happened.append(text)

    # --- commands, with the lock held --------------------------------------------------------------------------------

    def header(self, settings: Settings) -> Header:
        dead = models.dead(self.model)[self.model.region(settings.setroi)]
        return Header(
            model=self.model,
            sensor=self.options.sensor,
            old=self.version.startswith("tvx"),
            folder=settings.imgpath,
            exptime=settings.exptime,
            period=settings.expperiod,
            tau=settings.tau,
            cutoff=CUTOFF,
            threshold=settings.threshold,
            gain=settings.gain,
            energy=settings.energy,
            bad_pixels=int(dead.sum()) if settings.ldbadpixmap else 0,
            bad_pixel_map=settings.ldbadpixmap,
            flat_field=settings.ldflatfield,
            trim_file=os.path.basename(self.trim_file(settings)) if settings.threshold else "",
            comment=settings.headerstring,
            ratecorr=settings.ratecorrlutdir,
            retrigger=settings.setretriggermode,
            mx=dict(settings.mx),
        )

    def trim_file(self, settings: Settings) -> str:
        name = f"p{self.model.serial}_E{settings.energy}_T{settings.threshold}.bin"
        return f"/home/det/p2_det/config/calibration/{name}"

    def check(self, settings: Settings) -> None:
        """Only at the exposure command. Refused: the times do not fit."""
        exptime, period, readout = settings.exptime, settings.expperiod, self.readout
        if period < exptime + readout - 1e-9:
            raise Refused(f"Exposure period {period:.7f} s is too short: exposure time {exptime:.7f} s + {readout:g} s")
        shortest = 1 / self.model.rate(settings.setroi)
        if self.options.limits and period < shortest - 1e-9:
            raise Refused(f"Exposure period {period:.7f} s is too short: {shortest:.7f} s at least")

    def expose(self, client: Client, mode: str, typed: str) -> None:
        """Answers by itself, so that nothing of the series comes before its answer. Refused: not now, not so."""
        with self.lock:
            settings = self.settings
            if self._series is not None:
                raise Refused("Exposure is in progress")
            self.check(settings)
            folder = os.path.dirname(os.path.join(settings.imgpath, typed))
            if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
                raise Refused(f"cannot write to {folder}/")
            looks = (settings.setroi, settings.gapfill, bool(settings.ldbadpixmap))
            plan = Plan(
                mode, settings.nimages, settings.exptime, settings.expperiod, self.readout, settings.delay,
                settings.nexpframe,
            )  # fmt: skip
            header = self.header(settings)
        pictures = self._pictures.get(*looks, plan.sums)
        client.wait(DELAYS["arm"] * self.options.speed)
        with self.lock:
            now, date = time.monotonic(), datetime.now()
            self.written = []
            self._pulses.clear()
            series = Series(
                typed, Course(plan, now), header, pictures, looks, date, now, settings.setackint
            )  # fmt: skip
            self._leave_old(series)
            self._series = self.shown = series
            text = MODES[mode].format(exptime=plan.exptime)
            client.send(f"15 OK  Starting {text}: {stamp(date)}")
            self.lock.notify_all()

    def _leave_old(self, series: Series) -> None:
        """Files of an earlier series, with names of this one."""
        old = self.failures.take("old")
        then = series.date - timedelta(seconds=OLD)
        for k in range(max(0, series.images - old), series.images if old else 0):
            path = series.path(k)
            content = imagefile.parts(path, series.header, series.pictures[0], k, None, then)
            imagefile.write(path, content)
            os.replace(imagefile.temporary(path), path)
            os.utime(path, (then.timestamp(), then.timestamp()))
            self.note(f"old {os.path.basename(path)}")

    def kill(self, client: Client, sure: bool) -> str | None:
        """`sure`: by camcmd k. The 7 come later."""
        with self.lock:
            series = self._series
            if series is None or series.killed is not None:
                word = "camcmd k" if sure else "k"
                idle = {"ERR": f"1 ERR *** Unrecognized command: {word}", "OK": "1 OK", "": None}
                return idle[self.options.idle_kill]
            ignored = "kill_ignored" if self.failures.take_one("kill_ignored") else ""
            if not ignored and not sure and series.images > 1 and self.failures.take_one("k_ignored"):
                ignored = "k_ignored"
            if ignored:
                self.note(ignored)
                return None
            series.killed = time.monotonic()
            series.course.stop()
            client.send("13 ERR kill")
            self.lock.notify_all()
        return None

    def reset(self) -> None:
        """resetcam: what is exposed is forgotten."""
        with self.lock:
            self._series = None
            self.settings = self.usual()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self.lock:
                if self._closing:
                    return
                now = time.monotonic()
                self._feed(now)
                series = self._series
                exposure = series.course.take(now) if series else None
                late = heapq.heappop(self._late)[2] if self._late and self._late[0][0] <= now else ""
                ended = not exposure and series is not None and self._is_over(series, now)
                if not (exposure or late or ended):
                    self.lock.wait(max(0.0, min(LOOK, self._next(now) - now)))
            if late:
                self._move(late)
            if series and exposure:
                self._image(series, exposure)
            elif series and ended:
                self._end(series)

    def _next(self, now: float) -> float:
        times = [self._late[0][0]] if self._late else []
        series = self._series
        if series:
            exposure = series.course.next()
            times += [exposure.ready] if exposure else []
            times += [series.killed + DELAYS["kill"] * self.options.speed] if series.killed is not None else []
            if self._pulses:
                at = self._pulses[0][0]
                times.append(series.course.busy_until if at is None else at)
        return min(times, default=now + LOOK)

    def _feed(self, now: float) -> None:
        """Edges whose time has come. Each counts at its own time, not when it is looked at."""
        series = self._series
        while self._pulses and series:
            at, width = self._pulses[0]
            when = max(now, series.course.busy_until) if at is None else at
            if when > now:
                return
            self._pulses.popleft()
            series.course.edge(when, width)

    def _is_over(self, series: Series, now: float) -> bool:
        if series.killed is not None:
            return now >= series.killed + DELAYS["kill"] * self.options.speed
        return series.course.over

    def _image(self, series: Series, exposure: Exposure) -> None:
        number, failures = exposure.number, self.failures
        with self.lock:
            kinds = {name for name in FILE_FAILURES if failures.take_image(name, number)}
            for kind in sorted(kinds):
                self.note(f"{kind} {number}")
            full = failures.take_image("full_at", number)
        path = series.path(number)
        picture = self._pictures.wide(*series.wide) if "wide" in kinds else series.picture(number)
        mark = number if self.options.stamp else None
        if "missing" not in kinds:
            date = series.date + timedelta(seconds=exposure.start - series.clock)
            content = imagefile.parts(path, series.header, picture, number, mark, date)
            content = imagefile.truncated(content) if "truncated" in kinds else content
            content = imagefile.damaged(content) if "wrong_md5" in kinds else content
            try:
                self._room(content, full)
                imagefile.write(path, content)
            except OSError as exc:
                self._fault(series, path, exc)
                return
            if not kinds & {"truncated", "wrong_md5"}:
                self.written.append((os.path.basename(path), picture.pixel_md5(mark)))
            ready = exposure.ready + self.options.delay
            self._rename(series, path, ready + (failures.late_seconds if "late" in kinds else 0.0), "reorder" in kinds)
        with self.lock:
            series.last = self.last = path
            done = number + 1
            if series.ackint and done % series.ackint == 0:
                self._tell(f"15 OK img {done}")
            if failures.take_image("disconnect_at", number) and self.controller:
                self.note(f"disconnect_at {number}")
                self.controller.drop()

    def _room(self, content: list[Any], full: bool) -> None:
        if full:
            self.note("full_at")
        if full or (self.options.capacity and self.free() < sum(map(len, content))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _rename(self, series: Series, path: str, at: float, hold: bool) -> None:
        held, series.held = series.held, path if hold else ""
        for one in ([] if hold else [path]) + ([held] if held else []):
            if at <= time.monotonic():
                self._move(one)
                continue
            with self.lock:
                self._renames += 1
                heapq.heappush(self._late, (at, self._renames, one))

    @staticmethod
    def _move(path: str) -> None:
        try:
            os.rename(imagefile.temporary(path), path)
        except OSError as exc:  # the folder is gone
            log.warning("%s: not renamed: %s", path, exc)

    def _fault(self, series: Series, path: str, exc: OSError) -> None:
        with self.lock:
            if self._series is series:
                self._close(series)
                self._tell(f"15 ERR cannot write {path}: {exc.strerror}")

    def _end(self, series: Series) -> None:
        if series.held:
            self._move(series.held)
            series.held = ""
        with self.lock:
            if self._series is not series:
                return
            failures = self.failures
            if series.killed is not None:
                words = self.options.kill_order.split() if series.last else ["ERR"]
            else:
                words = ["ERR" if failures.take("seven_error") else "OK"]
            if "ERR" in words and series.killed is None:
                self.note("seven_error")
            if failures.take("two_sevens"):
                self.note("two_sevens")
                words.append(words[-1])
            self._close(series)
            for word in words:
                self._tell(
                    f"7 OK {series.last}" if word == "OK" else "7 ERR kill" if series.killed else f"7 ERR {series.last}"
                )

    def _close(self, series: Series) -> None:
        self._series = None
        self._ended_at = datetime.now()
        self._pulses.clear()
        self.lock.notify_all()

    def _tell(self, text: str) -> None:
        """To whom has control; lost when nobody has."""
        if self.controller:
            self.controller.send(text)


def _used(folder: str) -> int:
    """Bytes. Readers delete meanwhile."""
    used = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                used += entry.stat().st_size
    return used


def stamp(date: datetime) -> str:
    """2011-Aug-04T15:27:22.593"""
    month = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()[date.month - 1]
    return f"{date:%Y}-{month}-{date:%dT%H:%M:%S}.{date.microsecond // 1000:03d}"
