"""`wavevit predict` on video: a record per frame, the frames drawn, cameras until Ctrl-C."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wavevit.cli import video
from wavevit.cli.main import main
from wavevit.cli.video import Video, VideoFile, is_video
from wavevit.detection.inference import DetectionPredictor

FRAMES, FPS = 9, 12.5


def test_without_opencv_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pip install 'wavevit\[video\]'"):
        video.check_videos([str(tmp_path / "clip.mp4")], None, None)


def test_what_counts_as_video() -> None:
    for name in ("a.mp4", "dir/B.MOV", "camera:0", "x.webm"):
        assert is_video(name)
    for name in ("a.png", "mp4", "camera", "clips/", "-"):
        assert not is_video(name)


@pytest.fixture(scope="module")
def cv2() -> Any:
    return pytest.importorskip("cv2", reason="needs OpenCV, from the extra 'video'")


@pytest.fixture(scope="module")
def checkpoint(
    save_detector: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_detector(tmp_path_factory.mktemp("model") / "m.safetensors")


def picture(number: int) -> np.ndarray:
    """A frame in RGB: reddish, with a bright square that moves right."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[..., 0] = 60 + 10 * number
    frame[20:44, 6 * number : 6 * number + 24] = 255
    return frame


@pytest.fixture(scope="module")
def clip(cv2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoFile(path, FPS, overwrite=False) as file:
        for number in range(FRAMES):
            file.write(picture(number))
    return path


def run(checkpoint: Path, *words: object) -> int:
    fixed = ["--checkpoint", checkpoint, "--device", "cpu", "--score-threshold", "0"]
    return main(["predict", *map(str, (*fixed, *words))])


def refused(capsys: pytest.CaptureFixture[str], checkpoint: Path, *words: object) -> str:
    """The one line on standard error of a command that exits 2."""
    assert run(checkpoint, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_frames_come_in_order_with_their_times_and_colours(clip: Path) -> None:
    with Video(str(clip)) as opened:
        frames = list(opened.frames())
        assert (opened.fps, opened.promised, opened.is_camera) == (FPS, FRAMES, False)
    assert [frame.number for frame in frames] == list(range(FRAMES))
    times = [frame.time_s for frame in frames]
    np.testing.assert_allclose(times, np.arange(FRAMES) / FPS, atol=1e-3)
    for frame in frames:
        difference = frame.pixels.astype(int) - picture(frame.number)
        assert abs(difference).mean() < 8  # what the codec loses; red stays red


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_record_per_frame_and_the_frames_drawn(
    batch_size: int, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    out, drawn = tmp_path / "out.jsonl", tmp_path / "drawn"
    words = ("--images", clip, "--output", out, "--draw", drawn, "--batch-size", batch_size)
    assert run(checkpoint, *words) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["frame"] for record in records] == list(range(FRAMES))
    assert {record["path"] for record in records} == {str(clip)}
    assert records[5]["time_s"] == pytest.approx(5 / FPS, abs=1e-3)
    predictor = DetectionPredictor.load(checkpoint)
    with Video(str(clip)) as opened:
        frames = list(opened.frames())
    for record, frame in zip(records, frames, strict=True):
        (found,) = predictor([torch.from_numpy(frame.pixels).permute(2, 0, 1)])
        assert (record["width"], record["height"]) == (96, 64)
        boxes = [entry["box"] for entry in record["objects"]]
        np.testing.assert_allclose(boxes, found.boxes_xyxy.numpy(), atol=0.02)
    with Video(str(drawn / "clip.mp4")) as opened:
        changed = [
            abs(frame.pixels.astype(int) - original.pixels).mean() > 5
            for frame, original in zip(opened.frames(), frames, strict=True)
        ]
        assert opened.fps == FPS
    assert all(changed)
    assert sorted(path.name for path in drawn.iterdir()) == ["clip.mp4"]


def test_rows_of_the_first_frames(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert run(checkpoint, clip, "--output", out, "--max-frames", 3, "--tile", 64) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted({(row["frame"], row["time_s"]) for row in rows}) == [
        ("0", "0.0"),
        ("1", "0.08"),
        ("2", "0.16"),
    ]


class FakeCamera:
    """Gives frames without end; only the second one is connected."""

    def __init__(self, source: int) -> None:
        self.source = source
        self.count = 0

    def isOpened(self) -> bool:
        return self.source == 1

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.count += 1
        return True, picture(self.count % 12)[..., ::-1].copy()

    def release(self) -> None:
        pass


def test_a_camera_ends_with_ctrl_c_and_its_film_is_whole(
    checkpoint: Path,
    cv2: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find, calls = DetectionPredictor.find, iter(range(100))

    def until_somebody_stops_it(self: DetectionPredictor, prepared: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return find(self, prepared)

    monkeypatch.setattr(DetectionPredictor, "find", until_somebody_stops_it)
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(cv2, "VideoCapture", FakeCamera)
        assert run(checkpoint, "camera:1", "--output", out, "--draw", tmp_path) == 0
        assert run(checkpoint, "camera:0") == 1
    assert "cannot open the camera 'camera:0'" in capsys.readouterr().err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2]
    with Video(str(tmp_path / "camera-1.mp4")) as opened:
        assert len(list(opened.frames())) == 3


def test_a_video_that_cannot_be_read_is_a_failure_and_the_others_go_on(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "half.mp4").write_bytes(clip.read_bytes()[:600])
    assert run(checkpoint, tmp_path / "junk.mp4", tmp_path / "half.mp4", clip) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == FRAMES
    assert captured.err.splitlines() == [
        f"wavevit predict: cannot open the video '{tmp_path / 'junk.mp4'}'; is it complete?",
        f"wavevit predict: cannot open the video '{tmp_path / 'half.mp4'}'; is it complete?",
        f"wavevit predict: {FRAMES} frames done, 2 failures",
    ]


def test_a_film_that_is_not_finished_is_not_there(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"

    def break_off() -> None:
        with VideoFile(path, FPS, overwrite=False) as file:
            file.write(picture(0))
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        break_off()
    assert list(tmp_path.iterdir()) == []
    with VideoFile(path, FPS, overwrite=False):
        pass  # no frame, no file
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line_and_exit_2(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*words: object) -> str:
        return refused(capsys, checkpoint, *words)

    assert "'a.png' is no video" in line(clip, "a.png")
    assert "no such video file" in line(tmp_path / "no.mp4")
    assert "expected camera:0, camera:1" in line("camera:front")
    assert "must end in .jsonl or .csv" in line(clip, "--output", tmp_path / "o.json")
    assert "--max-frames must be at least 1" in line(clip, "--max-frames", 0)
    assert "lies in the --draw folder" in line(clip, "--draw", clip.parent, "--overwrite")
    other = tmp_path / "other" / "clip.mov"
    other.parent.mkdir()
    other.write_bytes(clip.read_bytes())
    assert "two of the videos" in line(clip, other, "--draw", tmp_path / "drawn")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "clip.mp4").write_text("mine")
    assert "clip.mp4 exists" in line(clip, "--draw", tmp_path / "drawn")
    assert (tmp_path / "drawn" / "clip.mp4").read_text() == "mine"
