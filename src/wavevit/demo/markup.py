"""Results as HTML; whatever a model file or a user calls things is escaped."""

from html import escape

from wavevit.demo.looks import Look, Row
from wavevit.pictures.style import BLUE

_NOTHING = {
    "classification": "Nothing to show.",
    "detection": "Nothing was found. A lower least score shows less certain objects.",
    "segmentation": "Nothing to show.",
}


def result_html(look: Look, task: str) -> str:
    """Bars of classes, or a table of objects.

    Args:
        look: What was seen.
        task: Of the network.
    """
    if not look.rows:
        return f'<p class="wv-empty" role="status">{escape(_NOTHING[task])}</p>'
    body = "".join(_line(row, rank, task) for rank, row in enumerate(look.rows))
    return (
        f'<p class="wv-summary" role="status">{escape(look.summary)}</p>'
        f'<ol class="wv-rows">{body}</ol>'
    )


def heading_html(line: str) -> str:
    """The top of the page.

    Args:
        line: What stands under the name.
    """
    return f'<header class="wv-head"><h1>wavevit</h1><p>{escape(line)}</p></header>'


def _line(row: Row, rank: int, task: str) -> str:
    color = BLUE if row.color is None else "#{:02x}{:02x}{:02x}".format(*row.color)
    fade = "" if row.color is not None or rank == 0 else " wv-other"
    chip = "" if row.color is None else f'<i class="wv-chip" style="background:{color}"></i>'
    note = f'<span class="wv-note">{escape(row.note)}</span>' if row.note else ""
    share = f"{row.share:.0%}" if task == "detection" else _percent(row.share)
    return (
        f'<li class="wv-row{fade}">'
        f'<span class="wv-name" title="{escape(row.name)}">{chip}{escape(row.name)}</span>'
        f'<span class="wv-share">{share}</span>'
        f'<span class="wv-bar"><b style="width:{100 * row.share:.2f}%;background:{color}"></b>'
        f"</span>{note}</li>"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "&lt;0.1%"
