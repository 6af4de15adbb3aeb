"""``.. command-help::``: what every command of ``wavevit`` says with ``--help``."""

import contextlib
import io
import os
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from wavevit.cli.main import COMMANDS, main


class CommandHelp(SphinxDirective):
    """A section per command."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        sections: list[nodes.Node] = []
        for name, (_, summary) in COMMANDS.items():
            section = nodes.section(ids=[name.replace(" ", "-")])
            section += nodes.title("", "", nodes.literal(text=f"wavevit {name}"))
            section += nodes.paragraph(text=f"{summary[0].upper()}{summary[1:]}.")
            section += nodes.literal_block(text=_help_of(name), language="text")
            sections.append(section)
        return sections


def _help_of(name: str) -> str:
    os.environ["COLUMNS"] = "88"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = main([*name.split(), "--help"])
    if code:
        raise RuntimeError(f"wavevit {name} --help ended with code {code}")
    return text.getvalue()


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx.

    Args:
        app: Sphinx.
    """
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
