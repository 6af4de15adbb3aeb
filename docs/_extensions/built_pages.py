"""Looks at the pages that were built: links within the site lead somewhere, nothing is fetched.

Sphinx checks references before it writes; this checks what a browser would follow and load.
"""

import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.util import logging

logger = logging.getLogger(__name__)

# In HTML that Sphinx wrote, where quotes and brackets of the text are escaped.
_ANCHOR = re.compile(r'\bid="([^"]+)"')
_LINK = re.compile(r'<a\b[^>]*\bhref="([^"]*)"')
_LOADED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]*)"'
    r'|<link\b(?=[^>]*\brel="(?:stylesheet|icon|preload|manifest))[^>]*\bhref="([^"]*)"'
)
_CSS_URL = re.compile(r"(?:url\(|@import\s+)['\"]?(?:https?:)?//")


class _Page:
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        self.anchors = set(_ANCHOR.findall(text))
        self.links = {unescape(address) for address in _LINK.findall(text)}
        self.loads = {unescape(one or other) for one, other in _LOADED.findall(text)}


def check_pages(app: Any, exception: Exception | None) -> None:
    """Warns of every dead link and of everything that comes from elsewhere.

    Args:
        app: Sphinx.
        exception: What has ended the build; then there is nothing to look at.
    """
    if exception is not None or app.builder.name != "html":
        return
    root = Path(app.outdir).resolve()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")}
    for path, page in pages.items():
        name = path.relative_to(root)
        for address in sorted(page.loads):
            if urlsplit(address).netloc:
                logger.warning("%s loads %s from elsewhere", name, address)
            elif not _target(path, address).exists():
                logger.warning("%s loads %s, which is not there", name, address)
        for address in sorted(page.links):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = _target(path, address)
            anchor = unquote(parts.fragment)
            if not target.exists():
                logger.warning("%s links to %s, which is not there", name, address)
            elif anchor and target in pages and anchor not in pages[target].anchors:
                logger.warning("%s links to %s, and there is no such place", name, address)
    for style in root.rglob("*.css"):
        if _CSS_URL.search(style.read_text(encoding="utf-8")):
            logger.warning("%s loads something from elsewhere", style.relative_to(root))


def _target(page: Path, address: str) -> Path:
    path = unquote(urlsplit(address).path)
    return (page.parent / path).resolve() if path else page


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx.

    Args:
        app: Sphinx.
    """
    app.connect("build-finished", check_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
