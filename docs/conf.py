"""`make docs`: Sphinx, without network. Its source folder is the repository: links are the same in a checkout."""

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

from tangods_receiver import __version__  # noqa: E402

project = "tangods-detector"
author = "the authors of tangods-detector"
copyright = author
version = release = __version__
language = "en"
html_title = f"Detector {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "from_code", "drawings", "page_names"]
source_suffix = {".md": "markdown"}
root_doc = "docs/index"
include_patterns = ["docs/**", "resources/**", "benchmarks/*", "benchmarks/results/*", "CHANGELOG.md"]
exclude_patterns = [".*", "*.egg-info", "build", "dist", "tests", "var", "benchmarks/build", "**/__pycache__"]
highlight_language = "none"
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_enable_extensions = ["attrs_inline", "deflist"]
myst_heading_anchors = 3

default_role = "code"
autoclass_content = "both"
toc_object_entries = False  # a third of the time of a build
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
nitpicky = True
# What other packages document is not here; what is ours must be.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!tangods_|sardana_ctrl|taurus_gui)(.+)"),
    (r"py:class", r"tangods_detector\.options\.T"),
    (r"py:class", r"tangods_receiver\.(stats|rois|security)\..*"),  # parts of answers, in the page of HTTP
]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_last_updated_fmt = None
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5c8a",
        "color-brand-content": "#0b5c8a",
        "color-api-name": "#0b5c8a",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb8e6",
        "color-brand-content": "#6cb8e6",
        "color-api-name": "#6cb8e6",
    },
}


def all_others(app: Sphinx, docname: str, source: list[str]) -> None:
    """Pages in resources/ that the contents do not name are in them all the same: a new one needs no line there."""
    if docname == root_doc:
        pages = sorted(HERE.parent.glob("resources/**/*.md"))
        names = [page.relative_to(HERE.parent).with_suffix("").as_posix() for page in pages]
        named = re.findall(
            r"\.\./(resources/[\w/*]+)", "".join(re.findall(r"```{toctree}.*?```", source[0], re.DOTALL))
        )
        others = [name for name in names if not any(fnmatch(name, pattern) for pattern in named)]
        source[0] = source[0].replace("../resources/ALL_OTHERS", "\n".join(f"../{name}" for name in others))


def indented_is_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Our docstrings are plain text: what is indented there is an example."""
    for n in range(len(lines) - 1, 0, -1):
        if lines[n].startswith("    ") and not lines[n - 1].strip() and not _is_indented_before(lines, n):
            lines[n:n] = ["::", ""]


def _is_indented_before(lines: list[str], n: int) -> bool:
    before = next((line for line in reversed(lines[:n]) if line.strip()), "")
    return before.startswith("    ")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("source-read", all_others)
    app.connect("autodoc-process-docstring", indented_is_code)
    app.add_lexer("spock", TextLexer)
    return {"parallel_read_safe": True}
