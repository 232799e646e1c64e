"""Text from the code as Markdown: tables, anchors, and sentences in which only `code` is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]+`)")
_PAGE = re.compile(r"(?<![`/\w])(resources/[\w/]+\.md)")
_MARKUP = re.compile(r"([\\*_<>\[\]|~#$])")
_INSIDE = re.compile(r"(?<=\w)_(?=\w)")


def sentence(text: str | None) -> str:
    """A docstring or description in one line; what is between backticks stays code, all else is plain."""
    parts = _CODE.split(_PAGE.sub(r"`\1`", " ".join((text or "").split())))
    return "".join(part if n % 2 else _plain(part) for n, part in enumerate(parts))


def paragraphs(text: str | None) -> str:
    """A docstring: its paragraphs, indented parts as they stand."""
    found = []
    for block in (text or "").strip().split("\n\n"):
        literal = block.startswith((" ", "\b"))
        found.append("```\n" + block.replace("\b\n", "").rstrip() + "\n```" if literal else sentence(block))
    return "\n\n".join(found)


def code(value: object) -> str:
    """Text as code; in a table too."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return f"`{text}`" if text else ""


def anchored(name: str, anchor: str) -> str:
    """A name in a table that other pages can lead to: `[](#anchor)`, as `anchor_of` makes it."""
    return f"[`{name}`]{{#{anchor}}}"


def anchor_of(*words: str) -> str:
    """`detector-exposuretime`: MyST looks for nothing but small letters."""
    return "-".join(words).lower().replace("_", "-")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty columns are left out."""
    lines = [list(row) for row in rows]
    kept = [n for n in range(len(heads)) if any(row[n] for row in lines)]
    if not lines:
        return "None.\n"

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells[n] for n in kept) + " |"

    rule = "| " + " | ".join("---" for _ in kept) + " |"
    return "\n".join([line(heads), rule, *(line(row) for row in lines)]) + "\n"


def _plain(text: str) -> str:
    escaped = _MARKUP.sub(r"\\\1", text)
    return _INSIDE.sub("_", escaped.replace("\\_", "_")) if "_" in text else escaped
