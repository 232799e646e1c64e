"""Names of detector files: from a pattern and what a scan knows to a path."""

from __future__ import annotations

import string
import time
from collections.abc import Mapping
from pathlib import PurePosixPath

# What a scan fills in; {number} is left to the Detector device, which asks the receiver what is free.
SCAN_PATTERN = "{ScanDir}/{ScanFile}_{ScanID:05d}_{channel}.h5"
SCAN_FIELDS = ("ScanDir", "ScanFile", "ScanID", "date")
FIELDS = ("channel", "index", "date", "number")
PREFIX = "h5file://"


class PatternError(ValueError):
    """A pattern that cannot be filled in; the sentence says why."""


def fill(pattern: str, values: Mapping[str, object]) -> str:
    """Fill in what is known; other fields stay as they are, for whoever knows them. PatternError: no pattern."""
    try:
        parts = list(string.Formatter().parse(pattern))
        done = ""
        for text, name, form, conversion in parts:
            done += text
            if name is None:
                continue
            if name in values:
                done += format(values[name], form or "")
            else:
                done += "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
    except (ValueError, TypeError) as exc:
        raise PatternError(f"{pattern!r} is not a file name pattern: {exc}") from exc
    return done


def fields(pattern: str) -> set[str]:
    """Names of the fields that are still open."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    except ValueError as exc:
        raise PatternError(f"{pattern!r} is not a file name pattern: {exc}") from exc


def for_scan(pattern: str, scan_dir: str, scan_file: str, scan_id: int, channel: str) -> str:
    """What a pre-scan hook gives to a channel: all but {index} and {number} is filled in.

    Of several scan files the first counts, without its suffix. PatternError says what is wrong with the pattern."""
    values = {
        "ScanDir": scan_dir.rstrip("/"),
        "ScanFile": PurePosixPath(scan_file).stem,
        "ScanID": int(scan_id),
        "channel": channel,
        "date": time.strftime("%Y%m%d"),
    }
    name = fill(pattern, values)
    unknown = fields(name) - {"index", "number"}
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in (*SCAN_FIELDS, "channel", "index", "number"))
        raise PatternError(f"{pattern!r}: {{{sorted(unknown)[0]}}} is not known; can have {known}")
    if not name.startswith("/"):
        raise PatternError(f"{name!r} is not a whole path: begin the pattern with / or {{ScanDir}}")
    return name


def for_series(pattern: str, channel: str, index: int) -> str:
    """The path (or `h5file://` address) of series number `index` that is armed with the same pattern.

    The first has the plain name; where the pattern has no {index}, `_001` and so on is put before the suffix of those
    that follow: a scan that arms once per row never asks for a file that is there. {number} is left to the device."""
    path = pattern.strip().removeprefix(PREFIX)
    open_fields = fields(path)
    unknown = open_fields - set(FIELDS)
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise PatternError(f"{pattern!r}: {{{sorted(unknown)[0]}}} is not known; can have {known}")
    if not path.startswith("/"):
        raise PatternError(f"{pattern!r} is not a whole path: begin it with / or {PREFIX}/")
    name = fill(path, {"channel": channel, "index": index, "date": time.strftime("%Y%m%d")})
    if index and not open_fields & {"index", "number"}:
        stem, dot, suffix = name.rpartition(".")
        if not dot or "/" in suffix:
            stem, dot, suffix = name, "", ""
        name = f"{stem}_{index:03d}{dot}{suffix}"
    return name
