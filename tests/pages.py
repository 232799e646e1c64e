"""What the pages tell a reader to type: the fenced blocks of a page, and a shell in which they are run one by one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from tests.waiting import wait_for

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """`language` as the fence names it; `line` of the page on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page's text that name a language."""
    return [Block(m[1], m[2], page.count("\n", 0, m.start()) + 2) for m in _FENCED.finditer(page)]


class Shell:
    """One bash in `folder`: what a block leaves behind, variables and jobs, is there for the next. Everything that was
    started in it ends with it."""

    def __init__(self, folder: Path, limit: float = 150.0) -> None:
        self._folder, self._limit = folder, limit
        self._number = 0

    def __enter__(self) -> Shell:
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        left = self.processes()
        for process in left:
            process.send_signal(signal.SIGTERM)
        assert self._bash.stdin
        self._bash.stdin.close()
        end = time.monotonic() + 10
        while self.processes() and time.monotonic() < end:
            self._bash.poll()
            time.sleep(0.02)
        for process in self.processes():
            process.kill()
        self._bash.wait()

    def processes(self) -> list[psutil.Process]:
        """All that runs in it but itself."""
        session = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._bash.pid and process.pid != self._bash.pid:
                    if process.status() != psutil.STATUS_ZOMBIE:
                        session.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return session

    def run(self, block: Block) -> str:
        """What it prints; AssertionError when it fails, or is not over in time."""
        self._number += 1
        said, code = self._folder / f".said{self._number}", self._folder / f".code{self._number}"
        text = block.text
        if block.language == "python":
            script = self._folder / f".block{self._number}.py"
            script.write_text(text)
            text = f"{sys.executable} {script.name}\n"
        assert self._bash.stdin
        # braces, not brackets: variables and jobs stay
        self._bash.stdin.write(
            f"{{\n{text}}} > {said.name} 2>&1\necho $? > {code.name}.new; mv {code.name}.new {code.name}\n"
        )
        self._bash.stdin.flush()
        wait_for(lambda: code.exists() or self._bash.poll() is not None, self._limit, f"line {block.line} to end")
        printed = said.read_text()
        assert code.exists() and code.read_text() == "0\n", f"line {block.line}:\n{block.text}\nprinted:\n{printed}"
        return printed
