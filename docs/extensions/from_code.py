"""The directive `from-code`: a part of a page that is written from the code each time the pages are built."""

from __future__ import annotations

import bench_pages
import cli_pages
import config_pages
import file_pages
import http_pages
import tango_pages
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

# words of the directive -> function of the words that follow, which gives Markdown
PARTS = {
    **tango_pages.PARTS,
    **bench_pages.PARTS,
    **config_pages.PARTS,
    **http_pages.PARTS,
    **cli_pages.PARTS,
    **file_pages.PARTS,
}


class FromCode(SphinxDirective):
    """`{from-code} attributes Detector`."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = False

    def run(self) -> list[nodes.Node]:
        what, *words = self.arguments[0].split()
        if what not in PARTS:
            raise self.error(f"from-code: {what!r} is not one of {', '.join(PARTS)}")
        lines = PARTS[what](*words).splitlines()
        parent = nodes.section()
        parent.document = self.state.document
        source = f"from-code {self.arguments[0]}"
        self.state.nested_parse(StringList(lines, source), 0, parent, match_titles=True)
        for table in parent.findall(nodes.table):
            table["classes"].append("names")  # on a phone shown one below the other
        return parent.children


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("from-code", FromCode)
    return {"parallel_read_safe": True}
