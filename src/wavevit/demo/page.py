"""The layout of the page and what happens on it."""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from PIL import Image

from wavevit.demo.looks import Looker, Wishes
from wavevit.demo.markup import heading_html, result_html
from wavevit.demo.service import Service
from wavevit.demo.subbands import MOST_LEVELS
from wavevit.demo.uploads import UploadFolder
from wavevit.demo.where import METHODS, STAGES, Question, has_class_token

if TYPE_CHECKING:
    import gradio as gr

_T = TypeVar("_T")

_QUALITY = 92  # of JPEG: thin coloured lines stay clean
_MOST_CLASSES = 20  # named
_MOST_TARGETS = 100  # objects to choose from
_AT_ONCE = 2  # one computes while the picture of another is decoded or drawn
_EMPTY = '<p class="wv-empty">Drop a picture, take one with the camera, or choose an example.</p>'
_SLIDERS = (
    ("classification", "Classes named", 1, _MOST_CLASSES, 5, 1),
    ("detection", "Least score", 0.05, 0.95, 0.3, 0.05),
    ("segmentation", "Opacity of the classes", 0, 1, 0.55, 0.05),
)
_METHOD_NAMES = {"grad-cam": "Grad-CAM", "attention": "Attention of the class token"}
_ANY_TARGET = {
    "classification": "the most probable class",
    "detection": "the most certain object",
    "segmentation": "the most frequent class",
}


def style() -> str:
    """The page's style sheet."""
    return files("wavevit.demo").joinpath("page.css").read_text(encoding="utf-8")


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


def build_page(
    service: Service, summaries: Mapping[str, str], examples: Sequence[Path]
) -> "gr.Blocks":
    """The page, not yet served.

    Args:
        service: What computes.
        summaries: A line about each network.
        examples: Pictures to begin with, in the service's folder.
    """
    import gradio as gr

    with gr.Blocks(title="wavevit", analytics_enabled=False) as blocks:
        lines = list(summaries.values())
        gr.HTML(heading_html(lines[0] if len(lines) == 1 else f"what {len(lines)} models see"))
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                chosen = _Choices(service, summaries, examples)
            with gr.Column(scale=8, min_width=300), gr.Tabs():
                with gr.Tab("Result", id="result") as result:
                    _result_tab(service, chosen)
                with gr.Tab("Wavelets", id="bands") as bands:
                    _subbands_tab(service, chosen, bands)
                with gr.Tab("Where it looks", id="where") as where:
                    _where_tab(service, chosen, where)
                # What a tab shows is computed while somebody looks at it.
                for tab, name in ((result, "result"), (bands, "bands"), (where, "where")):
                    tab.select(
                        lambda name=name: name,
                        None,
                        [chosen.tab],
                        queue=False,
                        api_visibility="private",
                    )
    blocks.queue(max_size=service.limits.queue, default_concurrency_limit=_AT_ONCE, api_open=False)
    return blocks


class _Choices:
    """The left column: a network and a picture.

    Args:
        service: What computes.
        summaries: A line about each network.
        examples: Pictures to begin with.
    """

    def __init__(
        self, service: Service, summaries: Mapping[str, str], examples: Sequence[Path]
    ) -> None:
        import gradio as gr

        names = list(service.lookers)
        self.tab = gr.State("result")
        self.model = gr.Dropdown(
            [(f"{name} ({summaries[name]})", name) for name in names],
            value=names[0],
            label="Model",
            visible=len(names) > 1,
            filterable=False,
        )
        self.picture = gr.Image(
            label="Picture",
            type="filepath",
            sources=["upload", "webcam", "clipboard"],
            buttons=["fullscreen"],
            height=330,
            elem_id="picture",
        )
        # Gradio would open the file with every decoder that Pillow has; `uploads` reads it instead.
        self.picture.preprocess = lambda payload: None if payload is None else payload.path
        if examples:
            gr.Examples([[str(path)] for path in examples], [self.picture], label="Examples")


def _result_tab(service: Service, chosen: _Choices) -> None:
    import gradio as gr

    drawn = _shown("Picture with what was seen", "seen", visible=False)
    rows = gr.HTML(_EMPTY, elem_id="rows", padding=False)
    first = next(iter(service.lookers.values())).task
    sliders = [
        gr.Slider(least, most, value=value, step=step, label=label, visible=first == task)
        for task, label, least, most, value, step in _SLIDERS
    ]

    def look(path: str | None, name: str, topk: float, score: float, opacity: float) -> list[Any]:
        nothing = gr.update(value=None, visible=False)
        if path is None:
            return [nothing, _EMPTY]
        wishes = Wishes(
            int(_within(topk, 1, _MOST_CLASSES)), _within(score, 0, 1), _within(opacity, 0, 1)
        )
        seen = _told(lambda: service.look(path, name, wishes))
        html = result_html(seen, service.lookers[name].task)
        if seen.picture is None:
            return [nothing, html]
        return [gr.update(value=_saved(seen.picture, service.folder), visible=True), html]

    chosen.model.change(
        lambda name: [
            gr.update(visible=service.lookers[name].task == task) for task, *_ in _SLIDERS
        ],
        [chosen.model],
        sliders,
        queue=False,
        api_visibility="private",
    )
    done = gr.on(
        [chosen.picture.change, chosen.model.change, *(s.release for s in sliders)],
        look,
        [chosen.picture, chosen.model, *sliders],
        [drawn, rows],
        concurrency_limit=_AT_ONCE,
        trigger_mode="always_last",
        show_progress_on=rows,
        api_name="look",
    )
    # What was seen in another picture would look like the result of this one.
    done.failure(
        lambda: [gr.update(value=None, visible=False), _EMPTY],
        None,
        [drawn, rows],
        queue=False,
        api_visibility="private",
    )


def _subbands_tab(service: Service, chosen: _Choices, tab: Any) -> None:
    import gradio as gr

    levels = gr.Slider(1, MOST_LEVELS, value=2, step=1, label="Levels")
    bands = _shown("Sub-bands (Haar)", "bands")
    gr.Markdown(
        "Top left the average; around it what each level has of horizontal edges (LH), vertical "
        "edges (HL) and diagonals (HH). Mid grey is zero.",
        elem_classes="wv-hint",
    )

    def split(path: str | None, number: float) -> str | None:
        if path is None:
            return None
        count = int(_within(number, 1, MOST_LEVELS))
        return _told(lambda: _saved(service.subbands(path, count), service.folder))

    inputs = [chosen.picture, levels]
    asked = gr.on([tab.select, levels.release], split, inputs, [bands], api_name="subbands")
    changed = chosen.picture.change(
        lambda open_tab, *values: split(*values) if open_tab == "bands" else gr.skip(),
        [chosen.tab, *inputs],
        [bands],
        api_visibility="private",
    )
    for event in (asked, changed):
        event.failure(lambda: None, None, [bands], queue=False, api_visibility="private")


def _where_tab(service: Service, chosen: _Choices, tab: Any) -> None:
    import gradio as gr

    first = next(iter(service.lookers.values()))
    with gr.Row():
        method = gr.Radio(_methods(first), value="grad-cam", label="How")
        stage = gr.Radio(
            [(f"stage {number + len(STAGES)}", number) for number in STAGES],
            value=-1,
            label="Map of",
        )
    target = gr.Dropdown(_targets(first), value=-1, label="For")
    heat = _shown("What the network is given, bright where it matters", "heat")

    def explain(
        path: str | None, name: str, how: str, number: int, wanted: int | None
    ) -> str | None:
        if path is None:
            return None
        question = Question(
            how if how in METHODS else "grad-cam",
            number if number in STAGES else -1,
            None if wanted is None or wanted < 0 else wanted,
        )
        return _told(lambda: _saved(service.where(path, name, question), service.folder))

    def show(name: str) -> list[Any]:
        looker = service.lookers[name]
        return [
            gr.update(choices=_methods(looker), value="grad-cam"),
            gr.update(choices=_targets(looker), value=-1),
        ]

    inputs = [chosen.picture, chosen.model, method, stage, target]
    asked = gr.on(
        [tab.select, method.input, stage.input, target.input],
        explain,
        inputs,
        [heat],
        trigger_mode="always_last",
        api_name="where",
    )
    chosen.model.change(
        show, [chosen.model], [method, target], queue=False, api_visibility="private"
    )
    changed = gr.on(
        [chosen.picture.change, chosen.model.change],
        # Of another network, or of another picture, other classes and objects are asked for.
        lambda open_tab, path, name: (
            explain(path, name, "grad-cam", -1, None) if open_tab == "where" else gr.skip()
        ),
        [chosen.tab, chosen.picture, chosen.model],
        [heat],
        api_visibility="private",
    )
    for event in (asked, changed):
        event.failure(lambda: None, None, [heat], queue=False, api_visibility="private")


def _methods(looker: Looker) -> list[tuple[str, str]]:
    methods = METHODS if has_class_token(looker) else METHODS[:1]
    return [(_METHOD_NAMES[method], method) for method in methods]


def _targets(looker: Looker) -> list[tuple[str, int]]:
    if looker.task == "detection":
        names = [f"object {number + 1}" for number in range(1, _MOST_TARGETS)]
        return [(_ANY_TARGET[looker.task], -1), *zip(names, range(1, _MOST_TARGETS), strict=True)]
    names = [str(name) for name in looker.class_names]
    return [(_ANY_TARGET[looker.task], -1), *zip(names, range(len(names)), strict=True)]


def _shown(label: str, name: str, *, visible: bool = True) -> "gr.Image":
    import gradio as gr

    return gr.Image(
        label=label,
        type="filepath",
        alt_text=label,
        show_label=False,
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
        raise gr.Error(str(error), print_exception=False) from error


def _saved(picture: Image.Image, folder: UploadFolder) -> str:
    path = folder.path / f"{uuid4().hex}.jpg"
    picture.save(path, quality=_QUALITY, subsampling=0)
    return str(path)


def _within(value: float, least: float, most: float) -> float:
    """The page's sliders have these limits; a request need not come from the page."""
    return min(max(value, least), most)
