"""Do the links inside built pages lead somewhere? Files, and anchors in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ATTRIBUTE = re.compile(r'\s(id|href|src)="([^"]+)"')


class Page:
    """`anchors` that one can lead to, `links` to elsewhere, of one file as Sphinx writes it."""

    def __init__(self, path: Path) -> None:
        found = [(name, unescape(value)) for name, value in _ATTRIBUTE.findall(path.read_text(encoding="utf-8"))]
        self.anchors = {value for name, value in found if name == "id"}
        self.links = [value for name, value in found if name != "id"]


@cache
def page(path: Path) -> Page:
    return Page(path)


def broken(folder: Path) -> list[str]:
    """A sentence for each link in the pages below `folder` that leads nowhere."""
    page.cache_clear()
    return [
        f"{path.relative_to(folder)}: {link} leads nowhere"
        for path in sorted(folder.rglob("*.html"))
        for link in _local(path)
        if not _leads_somewhere(path, link)
    ]


def _local(path: Path) -> Iterator[str]:
    for link in page(path).links:
        if not urlsplit(link).scheme and not link.startswith("//"):
            yield link


def _leads_somewhere(path: Path, link: str) -> bool:
    parts = urlsplit(link)
    target = (path.parent / unquote(parts.path)) if parts.path else path
    if not target.is_file():
        return False
    anchor = unquote(parts.fragment)
    return not anchor or target.suffix != ".html" or anchor in page(target).anchors
