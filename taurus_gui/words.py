"""Numbers as people read them: sizes, times, rates, counts. Pure."""

from __future__ import annotations

import math
import re

_TIME = re.compile(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(s|ms|us|µs|μs|ns|min|h)?\s*")
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_SIZE = re.compile(r"([\d.]+(?:e[+-]?\d+)?) (B|kB|MB|GB|TB) free")
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def size(nbytes: float) -> str:
    """1 MB is 1 000 000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def duration(seconds: float) -> str:
    """A length of time, with no more digits than are of use."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 3570:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    return f"{hours / 24:.1f} days"


def age(seconds: float) -> str:
    """How old something is."""
    return "now" if seconds < 1 else f"{duration(seconds)} ago"


def rate(hertz: float) -> str:
    return "–" if not hertz else f"{hertz:.3g} Hz" if hertz < 999.5 else f"{hertz:,.0f} Hz".replace(",", "\u202f")


def count(number: float) -> str:
    """A whole number in groups of three digits, or a real one with six."""
    if isinstance(number, float) and not number.is_integer():
        return f"{number:.6g}" if math.isfinite(number) else "no value"
    if abs(number) >= 1e15:
        return f"{number:.6g}"
    return f"{int(number):,}".replace(",", "\u202f")


def number(value: float) -> str:
    """As short as it can be written without losing what was set."""
    return f"{value:.10g}"


def seconds(text: str) -> float:
    """ "10 ms" -> 0.01; without a unit seconds. ValueError in words."""
    found = _TIME.fullmatch(text.replace(",", "."))
    try:
        if not found:
            raise ValueError
        return float(found[1]) * _SECONDS[found[2] or ""]
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a time; write for example 0.5, 20 ms or 100 us") from None


def real(text: str) -> float:
    """ValueError in words."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a number") from None


def whole(text: str) -> int:
    """ "10 000" -> 10000. ValueError in words."""
    try:
        return int(re.sub(r"[\s_\u202f]", "", text))
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a whole number") from None


def free_space(sentence: str) -> float | None:
    """Bytes, out of what a receiver says when it is asked for more room than there can be; None: it says no size."""
    found = _SIZE.search(sentence)
    return float(found[1]) * _BYTES[found[2]] if found else None
