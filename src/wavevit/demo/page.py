"""The layout of the page and what happens on it."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from PIL import Image

from wavevit.demo.looks import Wishes
from wavevit.demo.markup import heading_html, result_html
from wavevit.demo.service import Service
from wavevit.demo.uploads import UploadFolder

if TYPE_CHECKING:
    import gradio as gr

_T = TypeVar("_T")

_QUALITY = 92  # of JPEG: thin coloured lines stay clean
_WITH_NETWORK = "network"  # the events that take turns
_AT_ONCE = 2  # of those: one computes while the other's picture is decoded or drawn
_EMPTY = '<p class="wv-empty">Drop a picture, take one with the camera, or choose an example.</p>'


def style() -> str:
    """The page's style sheet."""
    return files("wavevit.demo").joinpath("page.css").read_text(encoding="utf-8")


def build_page(service: Service, summaries: Sequence[str], examples: Sequence[Path]) -> "gr.Blocks":
    """The page, not yet served.

    Args:
        service: What computes.
        summaries: A line about each network.
        examples: Pictures to begin with, in the service's folder.
    """
    import gradio as gr

    with gr.Blocks(title="wavevit", analytics_enabled=False) as blocks:
        gr.HTML(heading_html(summaries), padding=False)
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                inputs = _input_column(service, examples)
            with gr.Column(scale=7, min_width=300):
                _output_column(service, inputs)
    blocks.queue(max_size=service.limits.queue, default_concurrency_limit=_AT_ONCE, api_open=False)
    return blocks


def _input_column(service: Service, examples: Sequence[Path]) -> dict[str, Any]:
    import gradio as gr

    names = list(service.lookers)
    tasks = {looker.task for looker in service.lookers.values()}
    first = service.lookers[names[0]].task
    model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
    picture = gr.Image(
        label="Picture",
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        buttons=["fullscreen"],
        height=340,
        elem_id="picture",
    )
    # Gradio would open the file with every decoder that Pillow has. `uploads` reads it instead.
    picture.preprocess = lambda payload: None if payload is None else payload.path
    if examples:
        gr.Examples([[str(path)] for path in examples], [picture], label="Examples")
    topk = gr.Slider(
        1, 20, value=5, step=1, label="Classes named", visible=first == "classification"
    )
    threshold = gr.Slider(
        0.05, 0.95, value=0.3, step=0.05, label="Least score", visible=first == "detection"
    )
    opacity = gr.Slider(
        0, 1, value=0.55, step=0.05, label="Opacity of the classes", visible=first == "segmentation"
    )
    found = {"picture": picture, "model": model, "sliders": [topk, threshold, opacity]}
    if len(tasks) > 1:
        model.change(
            lambda name: [
                gr.update(visible=service.lookers[name].task == task)
                for task in ("classification", "detection", "segmentation")
            ],
            [model],
            found["sliders"],
            queue=False,
            api_visibility="private",
        )
    return found


def _output_column(service: Service, inputs: dict[str, Any]) -> None:
    import gradio as gr

    picture, model, sliders = inputs["picture"], inputs["model"], inputs["sliders"]
    with gr.Tabs():
        with gr.Tab("Result"):
            drawn = _shown("Seen", "seen", visible=False)
            rows = gr.HTML(_EMPTY, elem_id="rows", padding=False)
        with gr.Tab("Wavelet sub-bands"):
            levels = gr.Slider(1, 5, value=2, step=1, label="Levels")
            bands = _shown("Sub-bands", "bands")
            gr.Markdown(
                "Averages top left; around them what each level has of horizontal edges (LH), "
                "vertical edges (HL) and diagonals (HH). Mid grey is zero.",
                elem_classes="wv-hint",
            )

    def look(path: str | None, name: str, topk: float, score: float, opacity: float) -> list[Any]:
        if path is None:
            return [gr.update(value=None, visible=False), _EMPTY]
        wishes = Wishes(_within(int(topk), 1, 20), _within(score, 0, 1), _within(opacity, 0, 1))
        seen = _told(lambda: service.look(path, name, wishes))
        shown = gr.update(value=None, visible=False)
        if seen.picture is not None:
            shown = gr.update(value=_saved(seen.picture, service.folder), visible=True)
        return [shown, result_html(seen, service.lookers[name].task)]

    def split(path: str | None, number: float) -> str | None:
        if path is None:
            return None
        return _told(
            lambda: _saved(service.subbands(path, _within(int(number), 1, 5)), service.folder)
        )

    gr.on(
        [picture.change, model.change, *(slider.release for slider in sliders)],
        look,
        [picture, model, *sliders],
        [drawn, rows],
        concurrency_id=_WITH_NETWORK,
        concurrency_limit=_AT_ONCE,
        trigger_mode="always_last",
        show_progress_on=rows,
        api_name="look",
    )
    gr.on(
        [picture.change, levels.release],
        split,
        [picture, levels],
        [bands],
        trigger_mode="always_last",
        api_name="subbands",
    )


def _shown(label: str, name: str, *, visible: bool = True) -> "gr.Image":
    import gradio as gr

    return gr.Image(
        label=label,
        type="filepath",
        interactive=False,
        buttons=["download", "fullscreen"],
        visible=visible,
        elem_id=name,
    )


def _told(work: Callable[[], _T]) -> _T:
    """The result of work; what the user can do something about is shown on the page."""
    import gradio as gr

    try:
        return work()
    except ValueError as error:
        raise gr.Error(str(error), title="Not possible", print_exception=False) from error


def _saved(picture: Image.Image, folder: UploadFolder) -> str:
    path = folder.path / f"{uuid4().hex}.jpg"
    picture.save(path, quality=_QUALITY, subsampling=0)
    return str(path)


def _within(value: Any, least: Any, most: Any) -> Any:
    """The page's sliders have these limits; a request need not come from the page."""
    return min(max(value, least), most)


def theme() -> Any:
    """Gradio's plain theme in fonts that every machine has: none is fetched."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
