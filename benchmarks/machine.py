"""What the figures were measured on, and how quiet it was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import h5py
import zmq

from build import HERE


def machine(folder: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cores": os.cpu_count(),
        "cpu": found(r"model name\s*: (.+)", info) or platform.processor(),
        "virtual": "hypervisor" in found(r"flags\s*: (.+)", info).split(),
        "memory_gb": round(int(memory[1]) * 1024 / 1e9) if memory else 0,
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "zeromq": {"ours": zmq.zmq_version(), "C": said("pkg-config", "--modversion", "libzmq")},
        "hdf5": {"h5py": h5py.version.hdf5_version, "C": said("pkg-config", "--modversion", "hdf5")},
        "files": f"{folder} ({said('stat', '-f', '-c', '%T', folder)})",
        "revision": said("git", "-C", str(HERE), "describe", "--always", "--dirty"),
        "load": os.getloadavg()[0],
    }


def ticks() -> dict[str, int]:
    """Of all cores since the machine started: busy, idle, and stolen by other virtual machines."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return {"busy": user + nice + system + irq + softirq, "idle": idle + iowait, "stolen": steal}


def shares(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """Of the time between."""
    spent = {key: after[key] - before[key] for key in before}
    return {key: round(value / max(1, sum(spent.values())), 3) for key, value in spent.items()}


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""


def said(*argv: str) -> str:
    """What a program prints, or "unknown" where it is missing or fails."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
