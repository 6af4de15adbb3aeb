"""Links out of the docs' folder: files become downloads (by MyST); folders are named or shown."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

_RECIPES = "recipes"


class FolderLinks(SphinxPostTransform):
    """Links to folders of recipes lead to the page that shows them; other folders are named."""

    default_priority = 8  # before MyST's own, which takes a folder for a mistake

    def run(self, **_: Any) -> None:
        """Replaces such links."""
        page = Path(self.env.doc2path(self.env.docname))
        for link in list(self.document.findall(addnodes.pending_xref)):
            if link.get("reftype") != "myst":
                continue
            folder = (page.parent / link["reftarget"]).resolve()
            if not folder.is_dir():
                continue
            text = nodes.inline("", link.astext())
            if folder.parent.name == "configs":
                name = self.env.docname
                link.replace_self(make_refnode(self.app.builder, name, _RECIPES, folder.name, text))
            else:
                link.replace_self(text)


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx.

    Args:
        app: Sphinx.
    """
    app.add_post_transform(FolderLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
