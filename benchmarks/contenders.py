"""Who receives: C programs, plain Python and ours, each with its options, and how its file is looked at afterwards.

A contender is named `program[:option...]`: w2 two workers, io4 four I/O threads in each ZeroMQ context, shared one
context for all workers, p2 two files, nofile receive only, commit3600 a commit each 3600 s, k2 two senders.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sizes import QUEUE_BYTES, Size

from build import HERE

DATASET = "entry/instrument/detector/data"
LIMIT = 60.0  # s, for each step of a trial
TITLES = {
    "null": "C: PULL, null",
    "pwrite": "C: PULL + pwrite",
    "chunk": "C: PULL + H5Dwrite_chunk",
    "h5py": "Python: plain h5py loop",
    "flat": "Python: PULL + pwritev",
    "ours": "tangods-detector",
}
_OPTION = re.compile(r"(w|io|p|k|commit)(\d+)|shared|nofile|dectris1")
_FIELDS = {"w": "workers", "io": "io_threads", "p": "parts", "k": "senders", "commit": "commit_interval"}


@dataclass(frozen=True)
class Contender:
    """`nofile`, `commit_interval` and `dectris1` are for ours; C pwrite has one file, or as many `parts` as workers."""

    key: str
    program: str
    workers: int = 1
    io_threads: int = 2
    shared: bool = False
    parts: int = 1
    nofile: bool = False
    senders: int = 1
    commit_interval: int = 1
    dectris1: bool = False

    @property
    def protocol(self) -> str:
        return "dectris1" if self.dectris1 else "stins"

    @property
    def title(self) -> str:
        words = [f"{self.workers} workers"] * (self.workers > 1)
        words += [f"io {self.io_threads}"] * (self.io_threads != 2)
        words += ["shared context"] * self.shared
        words += [f"{self.parts} files"] * (self.parts > 1)
        words += ["no file"] * self.nofile
        words += [f"{self.senders} senders"] * (self.senders > 1)
        words += ["Dectris stream V1"] * self.dectris1
        words += [f"commit each {self.commit_interval} s"] * (self.commit_interval != 1)
        return ", ".join([TITLES[self.program], *words])

    @property
    def writes(self) -> bool:
        return self.program != "null" and not self.nofile

    @property
    def dataset(self) -> str:
        """Path in the file; "" for a flat one."""
        return {"ours": DATASET, "chunk": "data", "h5py": "data"}.get(self.program, "")

    def command(self, endpoints: str, size: Size, path: Path) -> list[str]:
        """How to start it; ours from a configuration beside `path`."""
        if self.program == "ours":
            return self._ours(endpoints.split(","), path)
        queue, limit = str(size.queue), str(LIMIT)
        if self.program in ("h5py", "flat"):
            return [sys.executable, str(HERE / "python_sink.py"), self.program, endpoints, queue, limit]
        argv = [str(HERE / "build/sink"), "-m", self.program, "-e", endpoints, "-q", queue, "-t", limit]
        argv += ["-w", str(self.workers), "-o", str(self.io_threads)]
        return argv + ["-s"] * self.shared + ["-f"] * (self.parts > 1)

    def _ours(self, endpoints: list[str], path: Path) -> list[str]:
        values: dict[str, Any] = {
            "name": "bench",
            "protocol": self.protocol,
            "endpoints": endpoints,
            "workers": self.workers,
            "io_threads": self.io_threads,
            "root": str(path.parent),
            "dataset": DATASET,
            "http": "",
            "hwm_bytes": QUEUE_BYTES,
            "commit_interval": self.commit_interval,
        }
        if self.workers > 1:
            values["context_per_worker"] = not self.shared
        if self.parts > 1:
            values["parts"] = self.parts
        config = path.with_suffix(".yaml")
        config.write_text(json.dumps(values))
        return [str(Path(sys.executable).parent / "tangods-detector"), "receive", str(config)]


def contender(key: str) -> Contender:
    """From its name; ValueError says what is wrong with it."""
    program, *options = key.split(":")
    if program not in TITLES:
        raise ValueError(f"{program!r} is not of {', '.join(TITLES)}")
    found = Contender(key, program)
    for option in options:
        match = _OPTION.fullmatch(option)
        if not match or match[2] == "0":
            raise ValueError(f"{key}: {option!r} is not like w2, io4, shared, p2, nofile, k2, dectris1 or commit3600")
        found = replace(found, **({_FIELDS[match[1]]: int(match[2])} if match[1] else {option: True}))
    return _checked(found)


def _checked(found: Contender) -> Contender:
    if found.program in ("h5py", "flat") and found != Contender(found.key, found.program):
        raise ValueError(f"{found.key}: {found.program} has no options")
    if found.program != "ours" and (found.nofile or found.dectris1 or found.commit_interval != 1):
        raise ValueError(f"{found.key}: nofile, dectris1 and commit are for ours (C: null)")
    if found.program == "pwrite" and found.parts not in (1, found.workers):
        raise ValueError(f"{found.key}: one file, or one for each worker")
    if found.program in ("null", "chunk") and found.parts > 1:
        raise ValueError(f"{found.key}: {found.program} has no parts")
    return found
