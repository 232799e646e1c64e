"""A million malformed messages against the decoders, the workers and the files: python -m tests.fuzz

With atheris (coverage-guided: pip install atheris) the inputs are streams of messages, changed by our own changes and
by those of libFuzzer; without it, by ours alone. It ends with 0 when every message was survived; else the message that
was not is kept in --keep."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

ROOM = 1 << 30  # bytes of address space beyond what the program has after its imports


def little_room() -> None:
    """From here on a request for much memory fails, which counts as a failure."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many, of each protocol")
    parser.add_argument("--engine", choices=["auto", "atheris", "random"], default="auto", help="who makes them")
    parser.add_argument("--protocol", action="append", help="only these")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="repeats a run of ours exactly")
    parser.add_argument("--plain-json", action="store_true", help="as if orjson were not installed")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-failure.bin")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.plain_json:
        sys.modules["orjson"] = None  # type: ignore[assignment]
    guided = options.engine == "atheris" or (options.engine == "auto" and importlib.util.find_spec("atheris"))
    if options.engine == "auto" and not guided:
        print("atheris is not installed: random changes without coverage (pip install atheris)")
    if guided:
        import atheris

        with atheris.instrument_imports(include=["tangods_receiver"]):
            import tests.fuzz.runs as runs
    else:
        import tests.fuzz.runs as runs
    names = options.protocol or list(runs.PROTOCOLS)
    room = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=room) as folder:
            run = runs.Run(runs.PROTOCOLS[name], Path(folder), options.messages, options.keep)
            if not guided:
                little_room()
                run.random(Random(options.seed), options.seed)
            elif (status := _in_a_child(run, options.seed)) != 0:
                return status
    return 0


def _in_a_child(run: object, seed: int) -> int:
    """libFuzzer ends the process that it runs in."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(KeyboardInterrupt):
            run.guided(seed)  # type: ignore[attr-defined]
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # after a failure there are sockets and threads that nobody ends
