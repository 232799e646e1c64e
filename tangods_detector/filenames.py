"""From what the user wrote to the file that is asked for: patterns, free numbers, what to do when it exists."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Callable

from tangods_detector.settings import OverwritePolicy
from tangods_receiver.errors import ConfigError

FIELDS = ("number", "date")
HIGHEST = 10**9  # number tried

Check = Callable[[str, bool], str]  # path, may replace -> "" or what is in the way (receiver.check)


def check_pattern(pattern: str, fields: tuple[str, ...] = FIELDS) -> None:
    """ConfigError when the braces of a name cannot be filled in."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
        unknown = [name for name in names if name not in fields]
        pattern.format(number=1, date="20000101", name="x")
    except (ValueError, KeyError, IndexError, AttributeError) as exc:
        raise ConfigError(f"{pattern!r} is not a file name pattern: {exc!r}; can have {_braces(fields)}") from exc
    if unknown:
        raise ConfigError(f"{pattern!r}: {{{unknown[0]}}} is not known; can have {_braces(fields)}")


def complete(name: str, pattern: str) -> str:
    """`name` put into the site's pattern, unless it is a whole path already. "" stays ""."""
    if not name or name.startswith("/") or not pattern:
        return name
    check_pattern(pattern, (*FIELDS, "name"))
    return pattern.replace("{name}", name)


def resolve(name: str, policy: OverwritePolicy, check: Check) -> tuple[str, bool]:
    """(path, overwrite): what the series will write to. ConfigError says what is in the way.

    `{number}` becomes a number whose file is not there while that of the number before is, `{date}` today."""
    if not name:
        return "", False
    date = time.strftime("%Y%m%d")
    if "{number" in name:
        path = _next_free(lambda n: name.format(number=n, date=date), check)
    else:
        path = name.format(date=date)
    problem = check(path, False)
    if _exists(problem):
        if policy is OverwritePolicy.NEXT_NUMBER:
            stem, dot, suffix = path.rpartition(".")
            if not dot or "/" in suffix:
                stem, dot, suffix = path, "", ""
            path = _next_free(lambda n: f"{stem}_{n:04d}{dot}{suffix}", check)
            problem = check(path, False)
        elif policy is OverwritePolicy.OVERWRITE:
            problem = check(path, True)
            if not problem:
                return path, True
    if problem:
        raise ConfigError(problem)
    return path, False


def _next_free(path_of: Callable[[int], str], check: Check) -> str:
    """The path of a free number, found in a few questions (galloping, then halving)."""
    step = 1
    while _exists(check(path_of(step), False)):
        step *= 2
        if step > HIGHEST:
            raise ConfigError(f"{path_of(HIGHEST)}: no free number; choose another name")
    taken, free = step // 2, step
    while free - taken > 1:
        middle = (taken + free) // 2
        if _exists(check(path_of(middle), False)):
            taken = middle
        else:
            free = middle
    return path_of(free)


def _exists(problem: str) -> bool:
    return re.search(r": exists\b|already exists", problem) is not None


def _braces(fields: tuple[str, ...]) -> str:
    return " and ".join(f"{{{name}}}" for name in fields)
