"""Pictures of speed: what is drawn, what is left out and said, and that labels do not touch."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from wavevit.pictures import speed
from wavevit.pictures.speed import PUBLISHED_TOP1, Cost, draw_scaling, draw_speed

FAMILIES = (
    "wavevit_s",
    "plain_wavevit_s",
    "pvt_v2_b2",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
)


def row(model: str, rate: float, size: int = 224, **more: object) -> dict[str, object]:
    return {
        "model": model,
        "image_size": size,
        "images_per_s": rate,
        "images_per_s_p20": 0.9 * rate,
        "images_per_s_p80": 1.05 * rate,
        "batch_size": 256,
        "runtime": "eager",
        "precision": "bf16",
        "device": "a GPU",
        "mode": "inference",
        **more,
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved in a test."""
    figures: list[Figure] = []
    save = speed.save_figure

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(speed, "save_figure", keep)
    return figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def labels(axes: Axes) -> list[str]:
    return [note.get_text() for note in axes.findobj(Annotation) if note.get_text()]


def boxes(figure: Figure) -> dict[str, Bbox]:
    """Labels on the panels, and the pixels that they cover."""
    notes = [note for note in figure.findobj(Annotation) if note.get_text()]
    return {f"{i} {note.get_text()}": Text.get_window_extent(note) for i, note in enumerate(notes)}


def assert_nothing_touches(figure: Figure, path: Path) -> None:
    found = boxes(figure)
    assert found
    for (name, box), (other_name, other) in combinations(found.items(), 2):
        assert not box.overlaps(other), f"{name} / {other_name}"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge > 250).all() for edge in edges)


def test_labels_do_not_touch_also_where_points_do(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        row(model, (1000 + 20 * i + len(runtime)) * 224**2 / size**2, size, runtime=runtime)
        for i, model in enumerate(FAMILIES)
        for size in (224, 384, 512)
        for runtime in ("eager", "compiled")
    ]
    draw_speed(rows, tmp_path / "speed.png")
    assert_nothing_touches(drawn[0], tmp_path / "speed.png")
    left, right = drawn[0].axes
    assert len(labels(right)) == len(FAMILIES) * 2
    # Of two runtimes the faster one is compared; two networks have a second published size.
    assert sorted(labels(left)) == sorted(
        [f"{model} compiled 224 px" for model in FAMILIES]
        + [f"{model} compiled 384 px" for model in FAMILIES[:2]]
    )


def test_the_fastest_batch_size_counts_and_the_title_is_what_rows_share(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rows = [
        row("pvt_v2_b2", rate, batch_size=batch) for rate, batch in ((10, 1), (90, 64), (80, 256))
    ]
    draw_speed(rows, tmp_path / "speed.png")
    left, right = drawn[0].axes
    assert [note.xy for note in left.findobj(Annotation) if note.get_text()] == [(90.0, 82.0)]
    assert [note.xy for note in right.findobj(Annotation) if note.get_text()] == [(224.0, 90.0)]
    assert "Throughput, inference, a GPU, bf16, eager" in texts(drawn[0])


def test_error_bars_are_the_percentiles(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_speed([row("pvt_v2_b2", 100.0)], tmp_path / "speed.png")
    _, right = drawn[0].axes
    (segment,) = right.collections[0].get_segments()
    np.testing.assert_allclose(segment, [[224, 90], [224, 105]])


def test_what_has_no_published_accuracy_is_left_out_and_named(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    rows = [row("wavevit_nano", 300.0), row("wavevit_s", 100.0), row("wavevit_s", 50.0, 448)]
    draw_speed(rows, tmp_path / "speed.png")
    left, _ = drawn[0].axes
    assert labels(left) == ["wavevit_s"]
    left_out = "no published accuracy: wavevit_nano; the others at sizes not shown"
    assert left_out in texts(drawn[0])
    assert "Accuracy (Wave-ViT with token labels)" in texts(drawn[0])


@pytest.mark.parametrize(
    "rows",
    [
        [row("wavevit_test", 3.0)],
        [row("a" * 300, 1e-3), row("$x_1^2$", 1e6)],
        [{"model": "pvt_v2_b0", "image_size": "224", "images_per_s": "7.5"}],
        [row("pvt_v2_b2", 5.0, p) for p in range(224, 300, 4)],
        [row("pvt_v2_b2.in1k", 5.0), row("pvt_v2_b2", 0.0, images_per_s="")],
    ],
    ids=["nothing published", "odd names", "from CSV", "close sizes", "a failed row and a tag"],
)
def test_odd_rows_are_drawn(rows: list[dict[str, object]], tmp_path: Path) -> None:
    draw_speed(rows, tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as image:
        assert image.width == 1380


def test_published_accuracies_grow_with_the_network() -> None:
    for family in ("wavevit_", "pvt_v2_", "swin_", "convnext_"):
        by_name = [top1[224] for name, top1 in PUBLISHED_TOP1.items() if name.startswith(family)]
        assert by_name == sorted(by_name)
    assert (
        PUBLISHED_TOP1["plain_wavevit_s"] == PUBLISHED_TOP1["wavevit_s"] == {224: 83.9, 384: 85.0}
    )


def test_scaling_shows_where_attention_takes_over(tmp_path: Path, drawn: list[Figure]) -> None:
    sizes = (224, 448, 896)
    fits = {"wavevit_s": lambda s: 1e-7 * s**2 + 2e-13 * s**4, "pvt_v2_b2": lambda s: 1e-7 * s**2}
    costs = [
        Cost(name, sizes, [(0.9 * fit(s), fit(s), 1.1 * fit(s)) for s in sizes], fit, crossing)
        for (name, fit), crossing in zip(fits.items(), (707.1, float("inf")), strict=True)
    ]
    draw_scaling(costs, tmp_path / "scaling.png", title="a CPU")
    assert_nothing_touches(drawn[0], tmp_path / "scaling.png")
    assert {"wavevit_s, half from 707 px", "pvt_v2_b2"} <= set(texts(drawn[0]))


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected rows with images_per_s"):
        draw_speed([row("pvt_v2_b2", 0.0, images_per_s="")], tmp_path / "speed.png")
    with pytest.raises(ValueError, match="cost of one network or more"):
        draw_scaling([], tmp_path / "scaling.png")
    assert not list(tmp_path.iterdir())
