"""Video files and cameras, through OpenCV.

Shape legend: H rows, W columns of a frame.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")
)
_CAMERA = "camera:"
_USUAL_FPS = 30.0  # where a source does not say its own
_MOST_FPS = 1000.0


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        number: From 0.
        time_s: When it is shown, seconds from the start.
        pixels: (H, W, 3) uint8, RGB.
    """

    number: int
    time_s: float
    pixels: NDArray[np.uint8]


def is_video(argument: str) -> bool:
    """Whether a word on the command line names a video file or a camera.

    Args:
        argument: The word.
    """
    return argument.startswith(_CAMERA) or os.path.splitext(argument)[1].lower() in VIDEO_EXTENSIONS


def drawn_name(argument: str) -> str:
    """Name of the file that a video with objects drawn in goes to.

    Args:
        argument: Video file or camera.
    """
    if argument.startswith(_CAMERA):
        return f"{argument.replace(':', '-')}.mp4"
    return f"{Path(argument).stem}.mp4"


def check_videos(arguments: Sequence[str], draw: Path | None, max_frames: int | None) -> None:
    """Finds out before any work whether every argument is a video that may be there.

    Args:
        arguments: Video files and cameras.
        draw: Folder for videos with objects drawn in, or None.
        max_frames: Frames of each, or None for all.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Images among the videos, no OpenCV, two videos with one name to be drawn, one
            that lies in the folder, or a number out of range.
    """
    others = [argument for argument in arguments if not is_video(argument)]
    if others:
        raise ValueError(f"images and video go in separate commands; {others[0]!r} is no video")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"--max-frames must be at least 1, got {max_frames}")
    open_cv()
    for argument in arguments:
        if argument.startswith(_CAMERA):
            _camera_number(argument)
        elif not os.path.isfile(argument):
            raise FileNotFoundError(f"no such video file: {argument!r}")
    if draw is None:
        return
    names = [drawn_name(argument) for argument in arguments]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two of the videos would be drawn to {draw / name}; draw them in separate commands"
            )
    for argument in arguments:
        if os.path.realpath(os.path.dirname(argument) or ".") == os.path.realpath(draw):
            raise ValueError(f"{argument} lies in the --draw folder; choose another folder")


def open_cv() -> Any:
    """The module cv2, told to be quiet.

    Raises:
        ValueError: It is not installed.
    """
    # Its FFmpeg writes to standard error by itself; what is wrong is said in our own words.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "video needs OpenCV, which is not installed; run: pip install 'wavevit[video]'"
        ) from error
    logs = cv2.utils.logging
    logs.setLogLevel(logs.LOG_LEVEL_SILENT)
    return cv2


class Video:
    """An open video file or camera.

    Args:
        argument: Path, or "camera:" and the camera's number.

    Attributes:
        argument: As given.
        is_camera: Whether it has no end.
        fps: Frames per second, as it says or as is usual.
        promised: Frames that it says it has; None where it does not say.

    Raises:
        OSError: It cannot be opened.
    """

    argument: str
    is_camera: bool
    fps: float
    promised: int | None

    def __init__(self, argument: str) -> None:
        cv2 = open_cv()
        self.argument = argument
        self.is_camera = argument.startswith(_CAMERA)
        source: Any = _camera_number(argument) if self.is_camera else os.fspath(argument)
        self._cv2 = cv2
        self._lock = threading.Lock()
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            self._capture.release()
            kind = "camera" if self.is_camera else "video"
            hint = "is it connected, and free?" if self.is_camera else "is it complete?"
            raise OSError(f"cannot open the {kind} {argument!r}; {hint}")
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps <= _MOST_FPS else _USUAL_FPS
        promised = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.promised = int(promised) if promised > 0 and not self.is_camera else None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the file or camera."""
        with self._lock:  # another thread may be reading
            self._capture.release()

    def frames(self, limit: int | None = None) -> Iterator[Frame]:
        """The frames in order; a camera has no end.

        Args:
            limit: No more than so many; None for all.

        Yields:
            Frames in memory of their own.
        """
        start = time.monotonic()
        number = 0
        while limit is None or number < limit:
            with self._lock:
                is_there, pixels = self._capture.read()
                place_ms = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC))
            if not is_there:
                return
            time_s = time.monotonic() - start if self.is_camera else max(place_ms / 1000, 0.0)
            rgb = self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB)
            yield Frame(number, round(time_s, 4), rgb)
            number += 1


class VideoFile:
    """An .mp4 file that appears when it is complete.

    Args:
        path: File to write.
        fps: Frames per second.
        overwrite: Whether the file may exist.

    Raises:
        FileExistsError: It exists.
    """

    def __init__(self, path: Path, fps: float, overwrite: bool) -> None:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another --draw or pass --overwrite")
        self._path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._fps = fps
        self._cv2 = open_cv()
        self._writer: Any = None
        self._size = (0, 0)

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Adds a frame.

        Args:
            pixels: (H, W, 3) uint8, RGB; all frames of a file have one size.

        Raises:
            OSError: The file cannot be written.
        """
        height, width = pixels.shape[:2]
        if self._writer is None:
            self._size = (width, height)
            code = self._cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = self._cv2.VideoWriter(str(self._partial), code, self._fps, self._size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write the video {self._path}")
        if (width, height) != self._size:  # some streams change in the middle
            pixels = self._cv2.resize(pixels, self._size)
        self._writer.write(self._cv2.cvtColor(pixels, self._cv2.COLOR_RGB2BGR))


def _camera_number(argument: str) -> int:
    number = argument.removeprefix(_CAMERA)
    if not number.isdigit():
        raise ValueError(f"expected camera:0, camera:1, ..., got {argument!r}")
    return int(number)
