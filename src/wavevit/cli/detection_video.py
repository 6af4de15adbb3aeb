"""Objects in every frame of video files and cameras."""

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from wavevit.cli.detection_records import ObjectRecord, ObjectWriter
from wavevit.cli.memory import out_of_memory_explained
from wavevit.cli.prediction_loop import MAX_WAIT_S, Counts, Pace, interrupts
from wavevit.cli.read_ahead import ReadAhead, batches
from wavevit.cli.video import Frame, Video, VideoFile, drawn_name
from wavevit.detection.inference import PreparedImage

if TYPE_CHECKING:
    from wavevit.cli.detection_predict import Work


def predict_videos(
    videos: Sequence[str],
    work: "Work",
    counts: Counts,
    *,
    draw: Path | None,
    overwrite: bool,
    max_frames: int | None,
) -> None:
    """Writes a record for each frame, and the frames with their objects to an .mp4 file.

    A camera is followed until Ctrl-C, which ends it like a file's last frame.

    Args:
        videos: Video files and cameras, one after the other.
        work: What is done with each frame.
        counts: Of frames and failures.
        draw: Folder for the .mp4 files; None draws nothing.
        overwrite: Whether they may exist.
        max_frames: Frames of each video; None for all.

    Raises:
        FileExistsError: A file to draw exists.
        OSError: It cannot be written.
    """
    if draw is not None:
        if draw.exists() and not draw.is_dir():
            raise NotADirectoryError(f"--draw names a folder, but {draw} is a file")
        draw.mkdir(parents=True, exist_ok=True)
        targets = [draw / drawn_name(name) for name in videos]
        existing = [target for target in targets if target.exists()]
        if existing and not overwrite:
            raise FileExistsError(
                f"{existing[0]} exists; choose another --draw or pass --overwrite"
            )
    with work.writer as writer:
        for name in videos:
            try:
                video = Video(name)
            except OSError as error:
                counts.fail(str(error))
                continue
            with video, ExitStack() as stack:
                file = None
                if draw is not None:
                    target = draw / drawn_name(name)
                    file = stack.enter_context(VideoFile(target, video.fps, overwrite))
                _predict_video(video, work, writer, file, counts, max_frames)


@dataclass(frozen=True)
class _Seen:
    frame: Frame
    prepared: PreparedImage


def _predict_video(
    video: Video,
    work: "Work",
    writer: ObjectWriter,
    file: VideoFile | None,
    counts: Counts,
    max_frames: int | None,
) -> None:
    before = counts.images
    found = _find(video, work, max_frames)
    pace = Pace(counts, is_silent=work.writes_to_stdout)
    try:
        # Drawing and encoding take as long as a small network does: a thread of their own.
        with closing(found) as groups, ThreadPoolExecutor(1) as pool:
            written: Future[None] | None = None
            for group in groups:
                for frame, record in group:
                    writer.write(record)
                    counts.images += 1
                    if record.error is not None:
                        counts.fail(f"frame {frame.number} of {record.path!r}: {record.error}")
                if file is not None:
                    if written is not None:
                        written.result()
                    written = pool.submit(_draw, file, work, group)
                pace.tick()
            if written is not None:
                written.result()
    except KeyboardInterrupt:
        if not video.is_camera:  # a camera has no other end
            raise
    done = counts.images - before
    if done == 0:
        counts.fail(f"cannot read a single frame of {video.argument!r}")
    elif max_frames is None and video.promised is not None and done < video.promised:
        counts.say(f"{video.argument!r} promises {video.promised:,} frames, {done:,} could be read")


def _find(
    video: Video, work: "Work", max_frames: int | None
) -> Generator[list[tuple[Frame, ObjectRecord]], None, None]:
    finder = work.finder

    def see(frame: Frame) -> _Seen:
        pixels = torch.from_numpy(frame.pixels).permute(2, 0, 1)
        return _Seen(frame, finder.prepare(pixels))

    with (
        interrupts() as interrupted,
        ReadAhead(
            video.frames(max_frames),
            see,
            num_threads=work.num_workers,
            depth=max(finder.ahead, work.num_workers),
            interrupted=interrupted,
        ) as seen,
    ):
        for group in batches(seen, finder.group, max_wait_s=MAX_WAIT_S):
            with out_of_memory_explained(finder.advice):
                found = finder.find([item.prepared for item in group])
            yield [
                (
                    item.frame,
                    ObjectRecord(
                        video.argument,
                        *work.outcome(objects),
                        frame=item.frame.number,
                        time_s=item.frame.time_s,
                    ),
                )
                for item, objects in zip(group, found, strict=True)
            ]


def _draw(file: VideoFile, work: "Work", group: Sequence[tuple[Frame, ObjectRecord]]) -> None:
    for frame, record in group:
        pixels = frame.pixels
        if record.error is None:
            pixels = np.asarray(work.painter(Image.fromarray(pixels), record))
        file.write(pixels)
