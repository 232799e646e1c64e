"""Trials -> tables on the terminal, report.md, results.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contenders import contender
from plans import BARS, Plan
from rich.console import Console
from rich.table import Table
from summary import Row, judged, summarise
from trial import Trial

from build import HERE

PUBLISHED = json.loads((HERE / "published.json").read_text())


@dataclass(frozen=True)
class Result:
    """One plan carried out; `left_out`: contenders that could not take part, and why."""

    plan: Plan
    trials: list[Trial]
    left_out: dict[str, str]

    @property
    def rows(self) -> list[Row]:
        done = {(t.size, t.contender) for t in self.trials}
        return [
            summarise(self.trials, size.name, size.bytes, key, self.plan.reference)
            for size in self.plan.sizes
            for key in self.plan.keys
            if (size.name, key) in done
        ]


def cells(row: Row) -> tuple[str, ...]:
    ratio = ("", "") if row.ratio is None else (f"{row.ratio[0]:.2f}", "{1:.2f}-{2:.2f}".format(*row.ratio))
    cpu_ratio = "" if row.cpu_ratio is None else f"{row.cpu_ratio:.2f}"
    rate = f"{row.rate:.0f}" if row.rate >= 100 else f"{row.rate:.1f}"
    return (
        rate,
        f"{row.throughput:.0f}",
        *ratio,
        f"{row.cpu:.0f}",
        cpu_ratio,
        f"{row.memory:.0f}" if row.memory else "",
    )


def headings(plan: Plan) -> tuple[str, ...]:
    of = f"of {plan.against}"
    return ("frames/s", "MB/s", of, "range", "CPU us/frame", of, "memory MB")


def show(result: Result, console: Console) -> None:
    for size in result.plan.sizes:
        table = Table(title=f"{size.name}: {size.frames} frames, {result.plan.rounds} rounds", title_justify="left")
        table.add_column("receiver")
        for name in headings(result.plan):
            table.add_column(name, justify="right")
        for row in result.rows:
            if row.size == size.name:
                style = "bold" if row.contender == "ours" else ""
                table.add_row(contender(row.contender).title, *cells(row), style=style)
        console.print(table)
    for why in result.left_out.values():
        console.print(f"left out: {why.splitlines()[-1]}", markup=False)


def save_json(path: Path, about: dict[str, Any], results: Sequence[Result]) -> None:
    """Of one result: machine, summary, trials; of several, these under the names of the plans."""
    plans = {
        r.plan.name: {
            "rounds": r.plan.rounds,
            "left_out": r.left_out,
            "summary": [asdict(row) for row in r.rows],
            "trials": [asdict(t) for t in r.trials],
        }
        for r in results
    }
    content = next(iter(plans.values())) if len(plans) == 1 else {"plans": plans}
    path.write_text(json.dumps({"machine": about, **content}, indent=1) + "\n")


# --- report.md -------------------------------------------------------------------------------------------------------


def save_report(folder: Path, about: dict[str, Any], results: Sequence[Result], pictures: dict[str, str]) -> None:
    """`pictures`: file name -> what it shows."""
    lines = ["# What was measured", "", *_about(about), "", *_bars(about["cores"], results)]
    for name, caption in pictures.items():
        lines += [f"![{caption}]({name})", ""]
    for result in results:
        lines += _section(result)
    lines += _published()
    (folder / "report.md").write_text("\n".join(lines).rstrip() + "\n")


def _about(about: dict[str, Any]) -> list[str]:
    kind = "a virtual machine" if about["virtual"] else "a machine"
    used, run = about["ticks"], about["run"]
    return [
        f"On {kind} with {about['cores']} cores ({about['cpu']}), {about['memory_gb']} GB, Linux {about['kernel']}, "
        f"Python {about['python']}; files in {about['files']}; ZeroMQ {about['zeromq']['ours']} "
        f"(C: {about['zeromq']['C']}), HDF5 {about['hdf5']['h5py']} (C: {about['hdf5']['C']}); revision "
        f"{about['revision']}, {run['date']}, {run['minutes']:.0f} minutes.",
        "",
        f"Load when it began: {about['load']:.2f}. Of the cores' time during the run {100 * used['busy']:.0f} % were "
        f"used, {100 * used['stolen']:.1f} % taken by other virtual machines. Generator and receiver share the cores "
        "and talk over the loopback interface: with few cores their sum decides, and rates are not those of two "
        "machines with a network between. Compare ratios, which are of trials a few seconds apart in one round, rather "
        "than rates. Every tag of every file was read back; no frame was missing.",
    ]


def _bars(cores: int, results: Sequence[Result]) -> list[str]:
    lines = ["| Bar | Frame | Wanted | Measured | |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        for bar in BARS.get(result.plan.name, []):
            wanted = f">= {bar.least}" if bar.least is not None else f"<= {bar.most}"
            if (found := judged(bar, result.trials)) is not None:
                word = f"needs {bar.cores} cores" if cores < bar.cores else "" if found[1] else "missed"
                lines.append(f"| {bar.title} | {bar.size} | {wanted} | {found[0]:.2f} | {word} |")
    return [*lines, ""] if len(lines) > 2 else []


def _section(result: Result) -> list[str]:
    names = headings(result.plan)
    lines = [f"## {result.plan.title}", "", f"Rounds: {result.plan.rounds}; medians.", ""]
    lines += [f"| Frame | Receiver | {' | '.join(names)} |", "| --- " * (2 + len(names)) + "|"]
    for row in result.rows:
        lines.append(f"| {row.size} | {contender(row.contender).title} | {' | '.join(cells(row))} |")
    for why in result.left_out.values():
        lines += ["", f"Left out: {why.splitlines()[-1]}"]
    return [*lines, ""]


def _published() -> list[str]:
    lines = ["## Other systems", "", PUBLISHED["about"], "", "| System | Files | bytes: frames/s | Source |"]
    lines.append("| --- | --- | --- | --- |")
    for system in PUBLISHED["systems"]:
        points = ", ".join(f"{nbytes}: {rate}" for nbytes, rate in system["points"])
        lines.append(f"| {system['system']} | {'yes' if system['writes'] else 'no'} | {points} | {system['source']} |")
    return lines
