"""A FUSE file system over a directory, in a process of its own, that stalls or fails as it is told:

python -m tests.system.fuse_server DIRECTORY MOUNT_POINT RULES

RULES is a JSON file that is read again at every call: {"call": "write", "after": 100000, "error": "EIO"} fails each
write once so many bytes were written; {"call": "fsync", "sleep": 3} answers late."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy


class Disk(mfusepy.Operations):
    use_ns = True

    def __init__(self, directory: Path, rules: Path) -> None:
        self._directory, self._rules = directory, rules
        self._lock = threading.Lock()
        self._written = 0

    def _real(self, path: str) -> str:
        return f"{self._directory}{path}"

    def _obey(self, call: str) -> None:
        rule: dict[str, Any] = json.loads(self._rules.read_text())
        if rule.get("call") != call or self._written < rule.get("after", 0):
            return
        time.sleep(rule.get("sleep", 0))
        if "error" in rule:
            raise OSError(getattr(errno, rule["error"]), "as told")

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._obey("write")
        done = os.pwrite(fh, data, offset)
        with self._lock:
            self._written += done
        return done

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._obey("fsync")
        os.fdatasync(fh)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._obey("truncate")
        os.truncate(self._real(path), length)
        return 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._real(path))
        times = {f"st_{t}time": getattr(found, f"st_{t}time_ns") for t in "amc"}
        return times | {f"st_{n}": getattr(found, f"st_{n}") for n in ("gid", "mode", "nlink", "size", "uid", "blocks")}

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._real(path))
        return {n: getattr(found, n) for n in ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize", "f_namemax")}

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags & ~os.O_TRUNC)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real(path))]

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real(old), self._real(new))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        return 0


if __name__ == "__main__":
    directory, mount_point, rules = sys.argv[1:]
    mfusepy.FUSE(Disk(Path(directory), Path(rules)), mount_point, foreground=True, fsname="failing disk")
