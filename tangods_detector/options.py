"""Property lines `key = value` -> a checked, frozen dataclass; all mistakes are reported in one message."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, TypeVar

from tangods_receiver.errors import ConfigError

T = TypeVar("T")

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def option(default: Any, doc: str) -> Any:
    """A dataclass field with a sentence for the operator."""
    return field(default=default, metadata={"doc": doc})


def parse_options(cls: type[T], lines: Iterable[str]) -> T:
    """Make `cls` from lines such as `port = 9999`; empty lines and lines that begin with # are skipped."""
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, text = (part.strip() for part in line.partition("="))
        if not equals:
            problems.append(f"{line!r} is not `key = value`")
        elif key not in known:
            problems.append(_unknown(key, known))
        elif key in values:
            problems.append(f"{key}: given twice")
        else:
            try:
                values[key] = _convert(text, hints[key])
            except ValueError as exc:
                problems.append(f"{key}: {exc}")
                values[key] = None
    problems += [f"{f.name}: missing" for f in known.values() if _is_required(f) and f.name not in values]
    if problems:
        raise ConfigError("; ".join(problems))
    return cls(**values)


def describe_options(cls: type) -> list[tuple[str, str, str]]:
    """(key, default, sentence) of every option, for pages and wizards; default "" where one must be given."""
    return [(f.name, "" if _is_required(f) else str(f.default), str(f.metadata.get("doc", ""))) for f in fields(cls)]


def _is_required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _unknown(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown option {key!r}" + (f" (did you mean {close[0]!r}?)" if close else "")


def _convert(text: str, hint: Any) -> Any:
    """`text` as what the annotation says; ValueError with the reason otherwise."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        by_text = {str(choice): choice for choice in choices}
        if text not in by_text:
            raise ValueError(f"{text!r} is not one of {', '.join(by_text)}")
        return by_text[text]
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return None if text.lower() in ("", "none") else _convert(text, inner[0])
    if origin is tuple:
        arguments = typing.get_args(hint)
        return tuple(_convert(part.strip(), arguments[0]) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"{text!r} is not true or false")
        return BOOLEANS[text.lower()]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {hint.__name__}") from None
    return text
