"""Compile the C programs of the benchmarks into benchmarks/build, where they are out of date."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = {"generator": ["libzmq"], "sink": ["libzmq", "hdf5"], "storage": []}


def build() -> dict[str, Path]:
    """Program name -> executable. SystemExit with what to install when a compiler or library is missing."""
    return {name: _compile(name, packages) for name, packages in PROGRAMS.items()}


def _compile(name: str, packages: list[str]) -> Path:
    source, target = HERE / f"{name}.c", HERE / "build" / name
    if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
        return target
    target.parent.mkdir(exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"]
    try:
        asked = ["pkg-config", "--cflags", "--libs", *packages]
        found = subprocess.run(asked, check=True, text=True, capture_output=True).stdout if packages else ""
        subprocess.run([*compiler, *flags, str(source), "-o", str(target), *shlex.split(found)], check=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        detail = getattr(exc, "stderr", None) or exc
        sys.exit(
            f"cannot compile {source.name}: {detail}\ninstall the Debian packages first: resources/install-apt bench"
        )
    return target


if __name__ == "__main__":
    build()
