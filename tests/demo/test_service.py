"""From a picture to what the page shows, without gradio."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wavevit
from wavevit.demo.limits import Limits
from wavevit.demo.looks import Look, Looker, Row, Wishes
from wavevit.demo.markup import result_html
from wavevit.demo.service import Service
from wavevit.demo.subbands import draw_subbands, most_levels
from wavevit.demo.uploads import UploadError, UploadFolder
from wavevit.demo.where import METHODS, STAGES, Question, draw_where, has_class_token
from wavevit.pictures.heat_maps import heat_overlay


@pytest.fixture
def service(lookers: Mapping[str, Looker]) -> Iterator[Service]:
    folder = UploadFolder()
    made = Service(lookers, folder, Limits())
    yield made
    made.close()
    folder.remove()


@pytest.fixture
def upload(service: Service, picture_file: Path) -> str:
    path = service.folder.path / "upload.png"
    path.write_bytes(picture_file.read_bytes())
    return str(path)


def test_a_classifier_gives_its_own_probabilities(
    service: Service, upload: str, picture: Image.Image, lookers: Mapping[str, Looker]
) -> None:
    found = service.look(upload, "classes", Wishes(topk=3))
    classifier = lookers["classes"].classifier  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = classifier.model(classifier.transform()(picture)[None]).softmax(1)[0]
    best = expected.argsort(descending=True)[:3].tolist()
    assert [row.name for row in found.rows] == [classifier.card.class_names[c] for c in best]
    assert [row.share for row in found.rows] == pytest.approx(expected[best].tolist(), abs=1e-5)
    assert found.picture is None


def test_a_detector_shows_the_objects_of_the_wished_score(
    service: Service, upload: str, picture: Image.Image, lookers: Mapping[str, Looker]
) -> None:
    everything = service.look(upload, "objects", Wishes(score_threshold=0.0))
    scores = [row.share for row in everything.rows]
    assert len(scores) > 2
    assert scores == sorted(scores, reverse=True)
    assert everything.picture is not None
    assert everything.picture.size == picture.size
    assert everything.picture.tobytes() != picture.tobytes()
    least = scores[1]
    fewer = service.look(upload, "objects", Wishes(score_threshold=least))
    assert [row.share for row in fewer.rows] == [score for score in scores if score >= least]
    none = service.look(upload, "objects", Wishes(score_threshold=1.0))
    assert none.rows == ()
    assert none.picture is not None
    assert none.picture.tobytes() == picture.tobytes()
    assert "lower least score" in result_html(none, "detection")


def test_a_segmenter_shows_shares_that_sum_to_one(
    service: Service, upload: str, picture: Image.Image
) -> None:
    found = service.look(upload, "pixels", Wishes(opacity=1.0))
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert found.picture is not None
    assert found.picture.size == picture.size
    counts = found.picture.getcolors()
    assert counts is not None
    painted = {color: count / (picture.width * picture.height) for count, color in counts}
    assert painted == pytest.approx({row.color: row.share for row in found.rows})


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (31, 33)])
@pytest.mark.parametrize("model", ["classes", "objects", "pixels"])
def test_pictures_of_any_shape_are_looked_at(
    service: Service, model: str, size: tuple[int, int]
) -> None:
    path = service.folder.path / "small.png"
    Image.new("RGB", size, "orange").save(path)
    found = service.look(str(path), model, Wishes(score_threshold=0.0))
    assert found.summary
    service.subbands(str(path), 5)
    assert service.where(str(path), model, Question()).width > 0


def test_an_unknown_model_is_refused(service: Service, upload: str) -> None:
    with pytest.raises(UploadError, match="no model '/etc/passwd' here"):
        service.look(upload, "/etc/passwd", Wishes())


def test_many_who_ask_at_once_get_what_one_gets(service: Service, upload: str) -> None:
    alone = service.look(upload, "classes", Wishes())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: service.look(upload, "classes", Wishes()), range(24)))
    assert found == [alone] * 24


def test_class_names_are_text_and_never_markup() -> None:
    row = Row('<img src=x onerror="alert(1)">', 0.5, note="<b>")
    html = result_html(Look((row,), None, "<i>"), "classification")
    assert "<img" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert 'title="&lt;img src=x onerror=&quot;' in html


def test_the_average_of_the_bands_is_the_picture_made_small(picture: Image.Image) -> None:
    bands = np.asarray(draw_subbands(picture, 1)).astype(float)
    H, W = picture.height // 2, picture.width // 2
    blocks = np.asarray(picture, float).reshape(H, 2, W, 2, 3).mean(axis=(1, 3))
    inside = (slice(24, H - 1), slice(1, W - 1))  # below the name, beside the lines
    assert np.abs(bands[:H, :W][inside] - blocks[inside]).max() <= 1


def test_stripes_are_in_the_band_of_their_direction() -> None:
    rows = np.zeros((128, 128, 3), np.uint8)
    rows[::2] = 255
    bands = np.asarray(draw_subbands(Image.fromarray(rows), 1))
    lh, hl = bands[100, 20], bands[30, 100]  # below and beside the average
    assert abs(int(lh[0]) - 128) > 100
    assert abs(int(hl[0]) - 128) <= 1


def test_levels_stop_where_nothing_would_be_left() -> None:
    tiny = Image.new("RGB", (20, 500))
    assert most_levels(tiny) == 1
    assert draw_subbands(tiny, 5).tobytes() == draw_subbands(tiny, 1).tobytes()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", ["classes", "objects", "pixels"])
def test_grad_cam_at_every_stage_of_every_task(
    lookers: Mapping[str, Looker], picture: Image.Image, model: str, stage: int
) -> None:
    looker = lookers[model]
    before = looker.look(picture, Wishes(score_threshold=0.0))
    drawn = draw_where(looker, picture, Question("grad-cam", stage))
    assert max(drawn.size) >= 300
    after = looker.look(picture, Wishes(score_threshold=0.0))
    assert after.rows == before.rows  # explaining leaves nothing behind


def test_the_map_on_the_page_is_the_librarys_over_what_the_network_is_given(
    lookers: Mapping[str, Looker], picture: Image.Image
) -> None:
    looker: Any = lookers["classes"]
    images, card = looker.input(picture), looker.classifier.card
    heat = wavevit.explain.class_token_attention(looker.classifier.model, images).mean(dim=1)[0]
    mean, std = (np.array(values) for values in (card.mean, card.std))
    seen = (images[0].permute(1, 2, 0).numpy() * std + mean).clip(0, 1) * 255
    drawn = draw_where(looker, picture, Question("attention"))
    image = Image.fromarray(np.rint(seen).astype(np.uint8))
    image = image.resize(drawn.size, Image.Resampling.BICUBIC)
    expected = heat_overlay(image, heat.numpy())
    difference = np.asarray(drawn, float) - np.asarray(expected, float)
    assert np.abs(difference).max() <= 2


def test_attention_is_offered_to_networks_with_a_class_token(
    lookers: Mapping[str, Looker], picture: Image.Image
) -> None:
    assert [has_class_token(looker) for looker in lookers.values()] == [True, False, False]
    assert METHODS == ("grad-cam", "attention")
    with pytest.raises(ValueError, match="class attention"):
        draw_where(lookers["pixels"], picture, Question("attention"))


def test_a_target_that_is_not_there_is_told(
    lookers: Mapping[str, Looker], picture: Image.Image
) -> None:
    with pytest.raises(ValueError, match="there is no object 99"):
        draw_where(lookers["objects"], picture, Question(target=99))
