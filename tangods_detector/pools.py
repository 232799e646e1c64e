"""Sardana's elements to and from the Tango database: the program sardana-config does it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tangods_receiver.errors import ConfigError

LIMIT = 120.0  # s; it imports all of Sardana


def load(tango_host: str, content: Mapping[str, Any], dry_run: bool) -> str:
    """Make the database hold these pools and macro servers, or say what would change; returns what it said.

    ConfigError: sardana-config is not installed, or refuses."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sardana.yaml"
        file.write_text(yaml.safe_dump(dict(content), sort_keys=False))
        options = [] if dry_run else ["--write"]
        return _run(tango_host, "load", *options, "--environment", str(file)).strip()


def dump(tango_host: str, macro_server: str) -> dict[str, Any]:
    """What the database has of the pools of a MacroServer. ConfigError as `load`."""
    return dict(yaml.safe_load(_run(tango_host, "dump", "--environment", macro_server)))


def _run(tango_host: str, *arguments: str) -> str:
    program = Path(sys.executable).parent / "sardana-config"
    if not program.exists():
        raise ConfigError(f"sardana: {program} is missing; pip install 'tangods-detector[sardana]'")
    environment = {**os.environ, "TANGO_HOST": tango_host}
    try:
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as exc:
        raise ConfigError(f"sardana-config {arguments[0]} did not end in {LIMIT:.0f} s") from exc
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(f"sardana-config {arguments[0]}: {' '.join(said[-5:])}")
    return done.stdout
