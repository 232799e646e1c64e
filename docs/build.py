"""Build the documentation into build/docs, or the folder that is given: python docs/build.py [FOLDER]

Warnings are errors; then every link inside the built pages must lead somewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "extensions"))

START = """<!doctype html>
<meta charset="utf-8"><title>Documentation</title>
<meta http-equiv="refresh" content="0; url=docs/index.html">
<a href="docs/index.html">Documentation</a>
"""


def build(output: Path) -> int:
    """The exit code: 0 when there is no warning and no broken link."""
    from links import broken

    options = ["-b", "html", "-q", "-E", "-W", "--keep-going", "-j", "2", "-c", str(HERE)]
    code = sphinx([*options, "-d", str(output.parent / f"{output.name}-doctrees"), str(ROOT), str(output)])
    (output / "index.html").write_text(START)
    found = broken(output)
    for one in found:
        print(one, file=sys.stderr)
    return code or bool(found)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/docs"
    sys.exit(build(target.resolve()))
