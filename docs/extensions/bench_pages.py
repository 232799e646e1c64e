"""The table of bars of the last benchmark, out of its report."""

from __future__ import annotations

from pathlib import Path

REPORT = Path(__file__).parents[2] / "benchmarks/results/report.md"


def bars() -> str:
    lines = REPORT.read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| Bar "))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return "\n".join(rows) + "\n"


PARTS = {"bars": bars}
