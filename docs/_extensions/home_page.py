"""The home page: its links are the list of pages beside every page, and cards on the page itself.

In the Markdown they are lists under headings, which any viewer shows.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes

_HEADING = re.compile(r"^## (.+)$")
_LINK = re.compile(r"\]\(([\w/-]+)\.(?:md|rst)\)")


def add_tables_of_contents(app: Any, name: str, source: list[str]) -> None:
    """Appends a hidden table of contents per heading of the home page to it.

    Pages that it does not link to come last.

    Args:
        app: Sphinx.
        name: The page.
        source: Its text, changed in place.
    """
    if name != app.config.root_doc:
        return
    sections: dict[str, list[str]] = {}
    caption = ""
    for line in source[0].splitlines():
        if heading := _HEADING.match(line):
            caption = heading[1]
        for page in _LINK.findall(line):
            sections.setdefault(caption, []).append(page)
    known = {page for pages in sections.values() for page in pages} | {name}
    others = sorted({path.stem for path in Path(app.srcdir).glob("*.md")} - known)
    if others:
        sections["More"] = others
    for caption, pages in sections.items():
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]
        source[0] += "\n\n" + "\n".join(lines) + "\n"


def mark_cards(app: Any, document: nodes.document) -> None:
    """Gives the lists of links a class for the style sheet, and takes the colons behind links.

    Args:
        app: Sphinx.
        document: A page that has been read, changed in place.
    """
    if app.env.docname != app.config.root_doc:
        return
    for section in document.findall(nodes.section):
        for bullets in section.children:
            if isinstance(bullets, nodes.bullet_list):
                bullets["classes"].append("cards")
    for text in list(document.findall(nodes.Text)):
        if text.startswith(": ") and text.parent.index(text) == 1:
            text.parent.replace(text, nodes.Text(text[2].upper() + text[3:]))


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx.

    Args:
        app: Sphinx.
    """
    app.connect("source-read", add_tables_of_contents)
    app.connect("doctree-read", mark_cards)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
