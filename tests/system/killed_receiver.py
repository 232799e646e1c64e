"""Runs `tangods-detector receive` again and again, each time in a fresh process that notes which frames were written.

python -m tests.system.killed_receiver reads lines "CONFIG NOTES"; for each it prints the process id, and after its end
how it ended. NOTES is a file with a byte for each frame: 1 when the call that wrote it has returned. It is mapped into
memory, so that a kill loses nothing of it. What takes long, the imports, is done once: the processes are forked."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence

from tangods_detector.cli import main
from tangods_receiver import config, engine, seriesfile  # noqa: F401  before the fork
from tangods_receiver.records import Record
from tangods_receiver.series import Series


def note_writes(path: str) -> None:
    with open(path, "r+b") as file:
        notes = mmap.mmap(file.fileno(), 0)
    real = Series.write

    def write(self: Series, records: Sequence[Record]) -> int:
        done = real(self, records)
        for record in records:
            notes[record[0]] = 1
        return done

    Series.write = write  # type: ignore[method-assign]


def receive(config_file: str, notes: str) -> int:
    """Returns in the parent only, when the child has ended."""
    pid = os.fork()
    if pid == 0:
        note_writes(notes)
        main(["receive", config_file])
        os._exit(1)
    print(pid, flush=True)
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    for line in sys.stdin:
        print(receive(*line.split()), flush=True)
