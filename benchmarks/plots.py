"""Pictures of a run: rates against frame size with and without files, throughput against workers and I/O threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from contenders import contender
from matplotlib.ticker import FuncFormatter, NullFormatter
from plans import Plan
from report import PUBLISHED, Result
from sizes import SIZES
from summary import Row

CURVES = {  # key -> label, colour, line
    True: {
        "ours": ("tangods-detector", "C0", "-o"),
        "pwrite": ("C: PULL + pwrite, flat file", "0.35", "--s"),
        "chunk": ("C: PULL + H5Dwrite_chunk", "0.6", "-.d"),
    },
    False: {
        "ours:nofile": ("tangods-detector", "C0", "-o"),
        "null": ("C: PULL", "0.35", "--s"),
    },
}
MARKS = (("D", "C1"), ("D", "C3"), ("^", "C2"), ("v", "C6"), ("P", "C4"), ("X", "C5"))  # of other systems


def draw(folder: Path, about: dict[str, Any], results: Sequence[Result]) -> dict[str, str]:
    """PNG files into the folder; their names and what they show."""
    drawn = {}
    sizes = [row for result in results if result.plan.name in ("table", "curves") for row in result.rows]
    if sizes:
        for name, unit in (("frames", "frames/s"), ("throughput", "MB/s")):
            against_size(folder / f"{name}.png", sizes, unit, _where(about))
            drawn[f"{name}.png"] = f"{unit} against frame size, with and without files"
    for result in results:
        if result.plan.name == "workers":
            against_threads(folder / "workers.png", result.plan, result.rows, _where(about))
            drawn["workers.png"] = "MB/s against workers and I/O threads"
    return drawn


def _where(about: dict[str, Any]) -> str:
    kind = "virtual machine" if about["virtual"] else "machine"
    return f"{about['cpu']}, {kind} with {about['cores']} cores, sender on the same machine, files in {about['files']}"


def against_size(path: Path, rows: Sequence[Row], unit: str, where: str) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(12, 5.6), sharey=True, layout="constrained")
    for axes, writes in zip(panels, (True, False), strict=True):
        for key, (label, colour, line) in CURVES[writes].items():
            points = sorted({SIZES[r.size].bytes: r.rate for r in rows if r.contender == key}.items())
            _curve(axes, points, unit, line, color=colour, label=label, markersize=5)
        _others(axes, writes, unit)
        axes.set(xscale="log", yscale="log", xlabel="frame size", title="with files" if writes else "receive only")
        axes.xaxis.set_major_formatter(FuncFormatter(_size))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", " ")))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="major", alpha=0.3)
        axes.legend(
            fontsize=8,
            loc="lower left" if unit == "frames/s" else "upper left" if writes else "lower right",
            framealpha=0.9,
        )
    panels[0].set_ylabel(unit)
    figure.suptitle(
        "One worker. Hollow marks: other systems on other machines, as published or measured elsewhere", fontsize=11
    )
    figure.supxlabel(where, fontsize=8, color="0.4")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _others(axes: Any, writes: bool, unit: str) -> None:
    names = list(dict.fromkeys(s["system"] for s in PUBLISHED["systems"]))
    for system in (s for s in PUBLISHED["systems"] if s["writes"] == writes):
        marker, colour = MARKS[names.index(system["system"]) % len(MARKS)]
        line = f":{marker}" if system["kind"] == "measured elsewhere" else marker
        look = {"color": colour, "markerfacecolor": "none", "markersize": 8, "linewidth": 1, "label": system["system"]}
        _curve(axes, system["points"], unit, line, **look)


def _curve(axes: Any, points: Sequence[Sequence[float]], unit: str, line: str, **look: Any) -> None:
    """`points` are bytes of a frame and frames/s."""
    values = [rate if unit == "frames/s" else rate * nbytes / 1e6 for nbytes, rate in points]
    axes.plot([nbytes for nbytes, _ in points], values, line, **look)


def _size(nbytes: float, _: int = 0) -> str:
    return f"{nbytes / 1e6:g} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:g} kB"


def against_threads(path: Path, plan: Plan, rows: Sequence[Row], where: str) -> None:
    """A row of panels for each size: bars by workers and I/O threads, receive only and with files, C beside them."""
    count = len(plan.sizes)
    figure, grid = plt.subplots(count, 2, figsize=(12, 0.8 + 3.9 * count), squeeze=False, layout="constrained")
    for line, size in zip(grid, plan.sizes, strict=True):
        for axes, writes in zip(line, (False, True), strict=True):
            chosen = [r for r in rows if r.size == size.name and contender(r.contender).writes == writes]
            _bars(axes, sorted(chosen, key=_order))
            axes.set_title(f"{size.name} frames, {'with files' if writes else 'receive only'}", fontsize=11)
            axes.set_ylabel("MB/s")
    figure.suptitle(
        "Workers and I/O threads (io: in each ZeroMQ context; one context a worker, or one shared)", fontsize=11
    )
    figure.supxlabel(where, fontsize=8, color="0.4")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _order(row: Row) -> tuple[Any, ...]:
    c = contender(row.contender)
    return c.program == "ours", c.workers, c.parts, c.shared, c.io_threads


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    labels, values, colours = [], [], []
    for row in rows:
        c = contender(row.contender)
        ours = c.program == "ours"
        words = [f"{c.workers} worker{'s' * (c.workers > 1)}", f"io {c.io_threads}"]
        words += ["shared"] * c.shared + [f"{c.parts} files"] * (c.parts > 1)
        labels.append(("" if ours else "C: ") + ", ".join(words))
        values.append(row.throughput)
        colours.append("0.55" if not ours else "C1" if c.shared else "C2" if c.parts > 1 else "C0")
    places = range(len(rows))[::-1]
    axes.barh(places, values, color=colours, height=0.75)
    axes.set_yticks(list(places), labels, fontsize=7)
    axes.yaxis.label.set_visible(False)
    axes.set_xlabel("MB/s")
    axes.grid(True, axis="x", alpha=0.3)
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {value:.0f}", va="center", fontsize=7)
    axes.margins(x=0.1)
