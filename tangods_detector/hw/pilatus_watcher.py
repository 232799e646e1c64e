"""Image files: what their names say, and a folder that is watched for them. Python 3.6, see pilatus_stream."""

import errno
import logging
import os
import re
import time
from typing import List, NamedTuple, Optional, Set

import inotify_simple
from inotify_simple import flags

log = logging.getLogger(__name__)

EVENTS = flags.MOVED_TO | flags.CLOSE_WRITE | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "gpfs", "beegfs", "afs")  # others' writes raise no event here
RESCAN = 2.0  # s; a scan for safety's sake, cheap because files are few
POLL = 0.05  # s between two scans where there are no events


class Pattern(NamedTuple):
    """Names of a series: `test_%05d.cbf`, as camserver numbers them (more digits where the number is larger), or the
    one name of a series of one image, which then has `first` as its number."""

    before: str
    digits: int
    after: str
    first: int = 0

    @classmethod
    def parse(cls, text: str, first: int = 0) -> "Pattern":
        """ValueError: a sentence."""
        if not text or "/" in text or "\0" in text or text.startswith("."):
            raise ValueError(f"pattern is {text!r}, not the name of a file")
        found = re.match(r"^([^%]*)(?:%(0[1-9]|0?)d)?([^%]*)$", text)
        if not found:
            raise ValueError(f"pattern is {text!r}, not like test_%05d.cbf")
        if "%" not in text:
            return cls(text, 0, "", first)
        return cls(found.group(1), int(found.group(2) or 1), found.group(3), first)

    def number(self, name: str) -> Optional[int]:
        """The number that the name says; None: a name of something else."""
        if not self.digits:
            return self.first if name == self.before else None
        if not (name.startswith(self.before) and name.endswith(self.after)):
            return None
        text = name[len(self.before) : len(name) - len(self.after)]
        if not re.match(r"^[0-9]{1,18}$", text):
            return None
        return int(text) if text == f"{int(text):0{self.digits}d}" else None

    def name(self, number: int) -> str:
        """The file of that number."""
        return f"{self.before}{number:0{self.digits}d}{self.after}" if self.digits else self.before


class Watcher:
    """Names of files that came into a folder, complete: camserver writes each under another name and renames it.

    The watch is set before the folder is read, so nothing falls between. After a queue overflow the folder is read
    again, and now and then without a reason. A name may come several times. Made, used and closed in one thread.

    `polling` True: the folder is only read, every POLL s; None: where its file system is one of the network's."""

    def __init__(self, folder: str, polling: Optional[bool] = None, rescan: float = RESCAN) -> None:
        self.folder = folder
        self.overflows = 0
        self.scans = 0
        self._every = rescan
        self._inotify: Optional[inotify_simple.INotify] = None
        if polling is None:
            polling = file_system(folder).startswith(NETWORK)
        if not polling:
            try:
                self._watch()
            except OSError as exc:  # no more watches or instances to be had, or a kernel without
                if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                    raise
                log.warning("%s is read every %g s: it cannot be watched (%s)", folder, POLL, exc)
        self._next_scan = 0.0

    @property
    def polling(self) -> bool:
        """Is it without events?"""
        return self._inotify is None

    def look(self, timeout: float) -> Set[str]:
        """What came, after `timeout` s at the latest. OSError: the folder is not there any more."""
        names: Set[str] = set()
        if self._inotify is None:
            time.sleep(max(0.0, min(timeout, POLL, self._next_scan - time.monotonic())))
        else:
            wait = min(timeout, max(0.0, self._next_scan - time.monotonic()))
            for event in self._inotify.read(int(1000 * wait)):
                if event.mask & flags.Q_OVERFLOW:
                    self.overflows += 1
                    self.scan_soon()
                elif event.mask & GONE:
                    raise OSError(errno.ENOENT, "the watched folder is gone", self.folder)
                elif event.name:
                    names.add(event.name)
        if time.monotonic() >= self._next_scan:
            names.update(self.scan())
        return names

    def scan(self) -> List[str]:
        """All names that are there."""
        names = os.listdir(self.folder)
        self.scans += 1
        self._next_scan = time.monotonic() + (POLL if self.polling else self._every)
        return names

    def scan_soon(self) -> None:
        """Read the folder at the next look."""
        self._next_scan = 0.0

    def close(self) -> None:
        """Safe twice."""
        if self._inotify is not None:
            self._inotify.close()

    def _watch(self) -> None:
        self._inotify = inotify_simple.INotify()
        try:
            self._inotify.add_watch(self.folder, EVENTS)
        except OSError:
            self._inotify.close()
            self._inotify = None
            raise


def file_system(folder: str, table: str = "/proc/self/mounts") -> str:
    """Kind of the file system that a folder is on, such as `tmpfs`; "" where that cannot be told."""
    path, found, longest = os.path.realpath(folder), "", 0
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                words = line.split()
                point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), words[1])
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= longest:
                    found, longest = words[2], len(point)
    except (OSError, IndexError):
        return ""
    return found
