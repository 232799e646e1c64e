"""Names of pages, such as `resources/security.md`, lead there; in a checkout they are plain words."""

from __future__ import annotations

import posixpath

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.typing import ExtensionMetadata


class PageNames(SphinxPostTransform):
    default_priority = 5  # before references are resolved

    def run(self, **_: object) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            page = self._page(literal.astext())
            if page and not isinstance(literal.parent, nodes.reference | addnodes.pending_xref | nodes.title):
                uri = self.app.builder.get_relative_uri(self.env.docname, page)
                literal.replace_self(nodes.reference("", "", literal.deepcopy(), internal=True, refuri=uri))

    def _page(self, text: str) -> str:
        """The document that is meant, seen from the repository, this page or resources/; else ""."""
        if not text.endswith(".md"):
            return ""
        here = posixpath.dirname(self.env.docname)
        for start in ("", here, "resources"):
            name = posixpath.normpath(posixpath.join(start, text.removesuffix(".md")))
            if name in self.env.found_docs and name != self.env.docname:
                return name
        return ""


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_post_transform(PageNames)
    return {"parallel_read_safe": True}
