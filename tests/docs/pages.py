"""The blocks of commands in the README and the docs, and which of them are not run here."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# A block is shown where it says so, in a comment that readers do not see, on the line before it.
_FENCE = re.compile(
    r"^(?:<!-- not run here: (?P<reason>[^\n]+?) -->\n+)?"
    r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
COMMAND_LANGUAGES = ("", "bash", "console", "sh", "shell")
OTHER_LANGUAGES = ("python", "yaml")  # tests/test_docs.py

# Tasks of pages whose blocks do not name one.
_PAGE_TASKS = {
    "detection-predict": "detection",
    "detection": "detection",
    "migrating-from-mmdetection": "detection",
    "migrating-from-mmsegmentation": "segmentation",
    "segmentation": "segmentation",
}
# What leaves threads behind, for its processes or its compilers.
_LAUNCHERS_AND_COMPILERS = ("torchrun ", "--runtime ", "wavevit benchmark", "wavevit export")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Stem of its page's name.
        number: Position among the page's blocks, from 0.
        language: As the fence says.
        text: What stands in it.
        reason: Why it is not run here; None for a block that is.
    """

    page: str
    number: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        """Page and number."""
        return f"{self.page}-{self.number}"

    @property
    def task(self) -> str:
        """The task that its commands are about."""
        named = re.search(r"wavevit train (\w+)", self.text)
        return named[1] if named else _PAGE_TASKS.get(self.page, "classification")

    @property
    def needs_processes(self) -> bool:
        """Whether its commands leave threads behind, which later tests dislike."""
        return any(part in self.text for part in _LAUNCHERS_AND_COMPILERS)

    def commands(self) -> list[list[str]]:
        """The words of each of its commands, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page.

    Args:
        page: Markdown file.
    """
    text = page.read_text(encoding="utf-8")
    return [
        Block(page.stem, number, match["language"].strip(), match["text"], match["reason"])
        for number, match in enumerate(_FENCE.finditer(text))
    ]


def command_blocks() -> list[Block]:
    """All blocks of commands, of all pages."""
    every = [block for page in PAGES for block in blocks(page)]
    return [block for block in every if block.language in COMMAND_LANGUAGES]
