"""``.. recipe-files:: TASK``: every recipe of a task, as it is."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class RecipeFiles(SphinxDirective):
    """A section per recipe, with the whole file."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The sections."""
        folder = Path(self.env.srcdir).parent / "configs" / self.arguments[0]
        sections: list[nodes.Node] = []
        for path in sorted(folder.glob("*.yaml")):
            self.env.note_dependency(str(path))
            section = nodes.section(ids=[path.stem.replace("_", "-")])
            section += nodes.title("", "", nodes.literal(text=path.stem))
            block = nodes.literal_block(text=path.read_text(encoding="utf-8"), language="yaml")
            sections.append(section)
            section += block
        return sections


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx.

    Args:
        app: Sphinx.
    """
    app.add_directive("recipe-files", RecipeFiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
