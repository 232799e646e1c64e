"""The keys of a control unit: read, checked, written, and what a write changes read back. Knows no series."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from tangods_detector.hw.rest import Connection, Refused
from tangods_receiver.errors import ConfigError, HardwareError

log = logging.getLogger(__name__)

UNLISTED = {"detector/status/error", "detector/config/wavelength"}  # there, although the lists of keys lack them
SLOW = ("energy", "wavelength", "element", "flatfield", "pixel_mask", "roi_mode", "threshold")  # tables are made


@dataclass(frozen=True)
class Value:
    """What a GET tells of a key: `low`, `high` None where there is no limit, `allowed` () where there is no list."""

    value: Any
    kind: str = ""
    writable: bool = True
    low: float | None = None
    high: float | None = None
    unit: str = ""
    allowed: tuple[Any, ...] = ()

    @classmethod
    def of(cls, answer: Any, key: str) -> Value:
        """HardwareError: that is no answer of SIMPLON."""
        if not isinstance(answer, dict) or "value" not in answer:
            raise HardwareError(f"{key}: {str(answer)[:80]!r} has no value; is this a SIMPLON control unit?")
        return cls(
            answer["value"],
            str(answer.get("value_type", "")),
            answer.get("access_mode", "rw") != "r",
            _number(answer.get("min")),
            _number(answer.get("max")),
            str(answer.get("unit") or ""),
            tuple(answer.get("allowed_values") or ()),
        )

    def converted(self, value: Any) -> Any:
        """As JSON of the type that this key has."""
        try:
            if self.kind == "float":
                return float(value)
            if self.kind in ("int", "uint"):
                return int(value)
            if self.kind == "bool":  # units of API 1.6 have 0 and 1
                return bool(value) if isinstance(self.value, bool) else int(bool(value))
        except (TypeError, ValueError):
            raise ConfigError(f"{value!r} is not {self.kind}") from None
        return str(value) if self.kind in ("string", "date") and not isinstance(value, dict | list) else value

    def refusal(self, value: Any) -> str:
        """Why it cannot be set to that; "": it can, as far as the unit tells."""
        if not self.writable:
            return "can only be read"
        if self.allowed and value not in self.allowed:
            return f"{value!r} is not one of {', '.join(map(str, self.allowed))}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                return f"{value} is no number"
            below, above = self.low is not None and value < self.low, self.high is not None and value > self.high
            if below or above:
                low, high = (f"{bound:g}" if bound is not None else "" for bound in (self.low, self.high))
                return f"{value:g} is not between {low} and {high} {self.unit}".rstrip()
        return ""


def _number(bound: Any) -> float | None:
    return float(bound) if isinstance(bound, int | float) and not isinstance(bound, bool) else None


class Unit:
    """Keys are `module/config/name`, `module/status/name`, `module/command/name`; names may have slashes."""

    def __init__(self, connection: Connection, api: str = "", slow_timeout: float = 120.0) -> None:
        self.connection, self.api = connection, api
        self._slow = slow_timeout
        self._values: dict[str, Value] = {}
        self._lists: dict[str, frozenset[str]] = {}
        self._became: dict[str, tuple[Any, Any]] = {}  # what was written, and what the unit made of it

    def discover(self) -> None:
        """Ask which version of the interface it has, unless that is configured."""
        if not self.api:
            self.api = str(Value.of(self.connection.read("/detector/api/version/"), "detector/api/version").value)

    def path(self, key: str) -> str:
        """ConfigError: that is no key."""
        parts = key.strip("/").split("/")
        if len(parts) < 3 or parts[1] not in ("config", "status", "command", "images", "files"):
            raise ConfigError(f"{key!r} is no key; give one such as detector/config/count_time")
        return f"/{parts[0]}/api/{self.api}/{'/'.join(parts[1:])}"

    def has(self, key: str) -> bool:
        """Does this unit have it, by its own lists?"""
        if key in UNLISTED:
            return True
        section, _, name = _split(key)
        if section not in self._lists:
            try:
                listed = Value.of(_listed(self.connection.read(self.path(f"{section}/keys"))), section).value
                self._lists[section] = frozenset(map(str, listed))
            except Refused as exc:
                if exc.status != 404:
                    raise
                self._lists[section] = frozenset()
        return name in self._lists[section]

    def names(self, section: str, prefix: str) -> list[str]:
        """Keys of a section that begin so."""
        self.has(f"{section}/{prefix}")
        return sorted(f"{section}/{name}" for name in self._lists[section] if name.startswith(prefix))

    def first(self, *keys: str) -> str:
        """The first of these that it has; the last where it has none."""
        return next(filter(self.has, keys), keys[-1])

    def read(self, key: str, connection: Connection | None = None, timeout: float = 0.0) -> Value:
        """Ask for it now."""
        found = Value.of((connection or self.connection).read(self.path(key), timeout), key)
        self._values[key] = found
        return found

    def __contains__(self, key: str) -> bool:
        """Is it known, so that nothing need be asked?"""
        return key in self._values

    def known(self, key: str) -> Value:
        """As it was last read or written; asked for where it never was."""
        return self._values.get(key) or self.read(key)

    def get(self, key: str) -> Any:
        return self.known(key).value

    def forget(self) -> None:
        """The unit was restarted or initialised: nothing is known."""
        self._values.clear()
        self._became.clear()

    def set(self, key: str, value: Any, tolerance: float = 0.0) -> bool:
        """Write it unless it is so already (within `tolerance`); True: it was written. ConfigError: it cannot be so."""
        now = self.known(key)
        try:
            value = now.converted(value)
        except ConfigError as exc:
            raise ConfigError(f"{key}: {exc}") from None
        if _same(value, now.value, tolerance) or self._became.get(key) == (value, now.value):
            return False
        self.write(key, value)
        self._became[key] = value, self.get(key)
        return True

    def write(self, key: str, value: Any, checked: bool = True, connection: Connection | None = None) -> None:
        """Write it, and read back everything that the unit says has changed."""
        if checked and (refusal := self.known(key).refusal(value)):
            raise ConfigError(f"{key}: {refusal}")
        slow = any(word in key for word in SLOW)
        try:
            changed = (connection or self.connection).put(self.path(key), value, self._slow if slow else 0.0)
        except Refused as exc:
            if exc.status >= 500:
                raise
            raise ConfigError(str(exc)) from exc
        section, module, name = _split(key)
        self.read(key, connection)
        for other in changed if isinstance(changed, list) else ():
            if str(other) != name:
                self._read_changed(f"{section}/{other}", connection)

    def _read_changed(self, key: str, connection: Connection | None) -> None:
        """Arrays are not fetched; a name that does not exist, which SIMPLON has been seen to give, is left out."""
        self._values.pop(key, None)
        if key.endswith(("flatfield", "pixel_mask")) or not self.has(key):
            return
        try:
            self.read(key, connection)
        except Refused as exc:
            log.debug("%s", exc)


def _split(key: str) -> tuple[str, str, str]:
    """(section, module, name): detector/config/threshold/1/energy -> detector/config, detector, threshold/1/energy."""
    module, kind, *name = key.split("/")
    return f"{module}/{kind}", module, "/".join(name)


def _listed(answer: Any) -> Any:
    """Some units answer with the list itself."""
    return {"value": answer} if isinstance(answer, list) else answer


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, bool | str) or isinstance(other, bool | str):
        return bool(one == other)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= max(tolerance, 1e-9 * abs(other))
    return bool(one == other)
