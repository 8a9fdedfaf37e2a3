"""How Sphinx makes the site of these pages: ``sphinx-build -nW docs DIRECTORY``, of the extra ``docs``."""

from __future__ import annotations

import re
from typing import Any

from pgwal import __version__

project = "pgwal"
release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"pgwal {__version__}"
html_show_sphinx = False
# Pages link to headings of one another, as they do where the repository is read.
myst_heading_anchors = 4


def setup(app: Any) -> None:
    """Take links to source files out of headings: Sphinx can make no table of contents of them."""
    app.connect("source-read", lambda _app, _name, source: source.append(_without_links(source.pop())))


def _without_links(page: str) -> str:
    return re.sub(r"(?m)^(#+ )\[([^\]\n]+)\]\([^)\n]+\)", r"\1\2", page)
