"""Failures that somebody wishes for: the base of what each simulator can do wrong next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from tangods_receiver.errors import ConfigError

W = TypeVar("W", bound="Wishes")


class Wishes:
    """Of a dataclass in which each field is a failure whose default means that it is not wished for: a text that a
    request contains, a number of times, numbers of images, one such number (None: at none). What is used up is neutral
    again."""

    HOW: ClassVar[tuple[str, ...]] = ()  # fields that say how it goes wrong, not what

    def take(self, name: str) -> Any:
        """The value, which is used up; its neutral value when it is not wished."""
        value = getattr(self, name)
        setattr(self, name, self._neutral(name))
        return value

    def take_one(self, name: str) -> bool:
        """One of so many?"""
        left = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return bool(left > 0)

    def take_text(self, name: str, text: str) -> bool:
        """Is this request, command or reply meant? Then it is used up."""
        wanted = getattr(self, name)
        if not wanted or wanted not in text:
            return False
        setattr(self, name, "")
        return True

    def take_image(self, name: str, number: int) -> bool:
        """Is this image meant? Then it is used up."""
        wanted = getattr(self, name)
        if wanted is None or number != wanted and (type(wanted) is int or number not in wanted):
            return False
        if type(wanted) is int:
            setattr(self, name, None)
        else:
            wanted.remove(number)
        return True

    def pending(self) -> dict[str, Any]:
        """What is not used up."""
        wished = {name: getattr(self, name) for name in self._names() if name not in self.HOW}
        return {name: value for name, value in wished.items() if value != self._neutral(name)}

    @classmethod
    def from_json(cls: type[W], told: Mapping[str, Any]) -> W:
        """ConfigError: a name or type is wrong."""
        made = cls()
        for name, value in told.items():
            if name not in cls._names():
                raise ConfigError(f"failures: {name!r} is not known")
            usual = cls._neutral(name)
            try:
                setattr(made, name, _checked(value, int if usual is None else type(usual)))
            except (TypeError, ValueError):
                raise ConfigError(f"failures: {name} cannot be {value!r}") from None
        return made

    @classmethod
    def _fields(cls) -> dict[str, dataclasses.Field[Any]]:
        return {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # who inherits is a dataclass

    @classmethod
    def _names(cls) -> list[str]:
        return list(cls._fields())

    @classmethod
    def _neutral(cls, name: str) -> Any:
        found = cls._fields()[name]
        return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def _checked(value: Any, kind: type) -> Any:
    """TypeError, ValueError: it is not of that kind."""
    if kind is dict and type(value) is dict:
        return {int(key): told for key, told in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or (isinstance(value, list) and not all(type(n) is int for n in value)):
        raise TypeError
    return value
