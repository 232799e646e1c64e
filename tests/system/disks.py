"""File systems of a test's own, that fill up, fail and stall as real ones do; who may not mount skips, saying so."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for

_SHUTDOWN = 0x8004587D  # ioctl of ext4: nothing reaches the disk any more
_NO_LOG_FLUSH = struct.pack("I", 2)


def mount(*arguments: str | Path) -> None:
    """Mount, or skip the test with a sentence."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a file system of its own, which only root may mount: {done.stderr.strip()}")


def unmount(point: Path) -> None:
    subprocess.run(["umount", "-l", str(point)], check=True)


@contextmanager
def tmpfs(point: Path, size: str) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "series", point)
    try:
        yield point
    finally:
        unmount(point)


class Ext4:
    """`with Ext4(folder, megabytes) as disk:` a small real disk at `disk.point`."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.point, self._image = folder / "disk", folder / "disk.img"
        self.point.mkdir()
        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)

    def __enter__(self) -> Ext4:
        made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self._image)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"needs mkfs.ext4: {made.stderr.strip()}")
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        if self.point.is_mount():
            unmount(self.point)

    def mount(self) -> None:
        mount("-o", "loop,errors=remount-ro", self._image, self.point)

    def fail(self) -> None:
        """An error that makes the system take it as read-only."""
        source = subprocess.run(["findmnt", "-no", "SOURCE", str(self.point)], capture_output=True, text=True).stdout
        Path(f"/sys/fs/ext4/{Path(source.strip()).name}/trigger_fs_error").write_text("a test")

    def lose_power(self) -> None:
        """What was not synced is gone when it is mounted again."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)


class FailingDisk:
    """`with FailingDisk(folder) as disk:` a FUSE file system at `disk.point`; its files are in `disk.behind`, where
    they can be read whatever its server does."""

    def __init__(self, folder: Path) -> None:
        self.point, self.behind, self._rules = folder / "fuse", folder / "behind", folder / "rules.json"
        self.point.mkdir()
        self.behind.mkdir()
        self.rule()

    def __enter__(self) -> FailingDisk:
        pytest.importorskip("mfusepy", reason="needs libfuse (resources/apt.txt)", exc_type=OSError)
        command = [sys.executable, "-m", "tests.system.fuse_server", self.behind, self.point, self._rules]
        self._server = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        wait_for(lambda: self.point.is_mount() or self._server.poll() is not None, what="the FUSE server")
        if self._server.poll() is not None:
            pytest.skip(f"needs FUSE, which only root may mount: {self._complaint()}")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _complaint(self) -> str:
        return self._server.communicate()[1].strip()[-200:]

    def rule(self, **rule: Any) -> None:
        """How it fails from now on; see fuse_server.py. Nothing: it works."""
        fresh = self._rules.with_suffix(".new")
        fresh.write_text(json.dumps(rule))
        fresh.replace(self._rules)

    def stop(self) -> None:
        """Every call to it hangs from now on."""
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """The calls that hang return with an error."""
        if self._server.poll() is None:
            self._server.kill()
            self._server.communicate()
        if str(self.point) in Path("/proc/mounts").read_text():
            unmount(self.point)
