"""Receive and write side by side: C programs, a plain h5py loop and ours, one after the other in shuffled rounds.

Every contender is a process of its own that takes one series from benchmarks/generator.c. The same clock for all: from
the first frame sent to the line that says "closed", read here; CPU time from /proc. Every frame's tag is read back.

Without --sizes or --contenders: all plans, and a report with pictures in benchmarks/results. With one of them: that
table alone, on the terminal.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from contenders import TITLES, contender
from machine import machine, shares, ticks
from plans import PLANS, Plan
from report import Result, save_json, save_report, show
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sizes import MAX_BYTES, SIZES
from trial import Trial, TrialError, able, measure, touch_memory

from build import HERE, build

CONTENDERS = ["null", "pwrite", "chunk", "h5py", "ours"]  # of a table that is asked for by its sizes


def run(plans: list[Plan], folder: Path, console: Console) -> list[Result]:
    """All plans, one after the other; contenders with options that they do not have here are left out."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("touching memory", total=sum(plan.trials for plan in plans))
        touch_memory(folder, max(size.bytes * size.frames for plan in plans for size in plan.sizes) * 3 // 2)
        left_out: dict[str, str] = {}
        for key in sorted({key for plan in plans for key in plan.keys}):
            progress.update(task, description=f"trying {key}")
            if why := able(contender(key), folder):
                if ":" not in key:
                    raise TrialError(why)
                left_out[key] = why

        def step(words: str) -> None:
            progress.update(task, description=words)
            progress.advance(task)

        return [carry_out(plan, left_out, folder, step) for plan in plans]


def carry_out(plan: Plan, left_out: dict[str, str], folder: Path, step: Callable[[str], None]) -> Result:
    keys = [key for key in plan.keys if key not in left_out]
    trials: list[Trial] = []
    for number in range(plan.rounds):
        for size in plan.sizes:
            for key in random.sample(keys, len(keys)):
                trials.append(measure(contender(key), size, number, folder))
                step(f"{plan.name}, round {number + 1}, {size.name}, {key}")
    return Result(plan, trials, {key: why for key, why in left_out.items() if key in plan.keys})


# --- command line ----------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("plans", nargs="*", metavar="PLAN", help=f"of {', '.join(PLANS)}; default: all")
    parser.add_argument("--sizes", type=_sizes, help=f"of {','.join(SIZES)}; default: the plan's")
    parser.add_argument("--contenders", type=_contenders, help=f"{', '.join(TITLES)}, with options as ours:w2:io1:p2")
    parser.add_argument("--rounds", type=int, help="default: the plan's; of a single table 9")
    parser.add_argument("--frames", type=int, help="per trial; default: about 1 GB")
    parser.add_argument("--folder", default="/dev/shm", help="where the files go; default: memory (/dev/shm)")
    parser.add_argument("--quick", action="store_true", help="few sizes, few rounds: to see that all works")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="of the report; default: benchmarks/results")
    parser.add_argument("--json", type=Path, metavar="OUT", help="save every trial and the summary there, too")
    args = parser.parse_args()
    if unknown := set(args.plans) - set(PLANS):
        parser.error(f"{', '.join(unknown)}: not of {', '.join(PLANS)}")
    return args


def _sizes(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(SIZES):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(SIZES)}")
    return text.split(",")


def _contenders(text: str) -> list[str]:
    try:
        return [contender(key).key for key in text.split(",")]
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def chosen(args: argparse.Namespace) -> list[Plan]:
    """The plans, with sizes, contenders, rounds and frames as wanted."""
    alone = bool(args.sizes or args.contenders) and not args.plans
    plans = [PLANS[name](args.quick) for name in (["table"] if alone else args.plans or PLANS)]
    rounds = args.rounds or ((3 if args.quick else 9) if alone else None)
    return [_adapted(plan, args, rounds, CONTENDERS if alone else None) for plan in plans]


def _adapted(plan: Plan, args: argparse.Namespace, rounds: int | None, keys: list[str] | None) -> Plan:
    sizes = [SIZES[name] for name in args.sizes] if args.sizes else plan.sizes
    frames = [min(args.frames or size.frames, max(1, MAX_BYTES // size.bytes)) for size in sizes]
    return replace(
        plan,
        sizes=tuple(replace(size, frames=n) for size, n in zip(sizes, frames, strict=True)),
        keys=tuple(args.contenders or keys or plan.keys),
        rounds=rounds or plan.rounds,
    )


def save(args: argparse.Namespace, about: dict[str, Any], results: list[Result]) -> None:
    if args.json:
        save_json(args.json, about, results)
    folder = args.results or (None if args.sizes or args.contenders or args.json else HERE / "results")
    if folder:
        from plots import draw

        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / "results.json", about, results)
        save_report(folder, about, results, draw(folder, about, results))
        print(folder / "report.md")


def main() -> None:
    args = arguments()
    plans = chosen(args)
    largest = max(size.bytes * size.frames for plan in plans for size in plan.sizes)
    if shutil.disk_usage(args.folder).free < 2 * largest:
        sys.exit(f"{args.folder}: less than {2 * largest / 1e9:.1f} GB free; use --frames or --folder")
    build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children and files go then, too
    console = Console() if sys.stdout.isatty() else Console(width=110)
    about, began, before = machine(args.folder), time.monotonic(), ticks()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=args.folder) as folder:
            results = run(plans, Path(folder), console)
    except TrialError as exc:
        sys.exit(str(exc))
    about["ticks"] = shares(before, ticks())
    about["run"] = {"date": time.strftime("%Y-%m-%d"), "minutes": (time.monotonic() - began) / 60}
    for result in results:
        show(result, console)
    save(args, about, results)


if __name__ == "__main__":
    main()
