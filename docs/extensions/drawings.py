"""The directive `drawing`: an SVG file inside the page, so that it takes the page's colours, light or dark."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata


class Drawing(SphinxDirective):
    """`{drawing} drawings/frame.svg` with the text for those who do not see it as its content."""

    required_arguments = 1
    has_content = True
    option_spec = {"width": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        svg = Path(absolute).read_text(encoding="utf-8")
        words = nodes.caption("", " ".join(self.content))
        figure = nodes.figure("", nodes.raw("", svg[svg.index("<svg") :], format="html"), words, classes=["drawing"])
        return [figure]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("drawing", Drawing)
    return {"parallel_read_safe": True}
