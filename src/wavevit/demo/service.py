"""What the page asks for, computed one request after the other for all users.

Shape legend: H rows and W columns of a picture.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from PIL import Image

from wavevit.demo.limits import Limits
from wavevit.demo.looks import Look, Looker, Wishes
from wavevit.demo.subbands import draw_subbands
from wavevit.demo.uploads import UploadError, UploadFolder, read_upload
from wavevit.demo.where import Question, draw_where

_T = TypeVar("_T")


class Service:
    """Networks that many users share.

    All of a network's work happens in one thread, whoever asks: the cores are busy with one picture
    at a time, and no two requests hold a network's memory together. How many may wait is the
    server's matter. Decoding and drawing sub-bands happen in the threads that ask.

    Args:
        lookers: The networks by the names that users choose from; at least one.
        folder: Where users' files are.
        limits: What is too large.
    """

    def __init__(self, lookers: Mapping[str, Looker], folder: UploadFolder, limits: Limits) -> None:
        self.lookers = dict(lookers)
        self.folder = folder
        self.limits = limits
        self._thread = ThreadPoolExecutor(1, "network")

    def look(self, path: str, model: str, wishes: Wishes) -> Look:
        """What a network sees in a file.

        Args:
            path: Of the file, as a request names it.
            model: Name of the network, as a request names it.
            wishes: Of the user.

        Raises:
            UploadError: A file or a name that cannot be used.
            ValueError: The network gave NaN or infinity.
        """
        looker = self._looker(model)
        picture = self.read(path)
        return self.compute(partial(looker.look, picture, wishes))

    def where(self, path: str, model: str, question: Question) -> Image.Image:
        """Where a network looks in a file.

        Args:
            path: Of the file, as a request names it.
            model: Name of the network, as a request names it.
            question: Of the user.

        Raises:
            UploadError: A file or a name that cannot be used.
            ValueError: A question that the network has no answer to.
        """
        looker = self._looker(model)
        picture = self.read(path)
        return self.compute(partial(draw_where, looker, picture, question))

    def subbands(self, path: str, levels: int) -> Image.Image:
        """The wavelet bands of a file.

        Args:
            path: Of the file, as a request names it.
            levels: How often to halve.

        Raises:
            UploadError: A file that cannot be used.
        """
        return draw_subbands(self.read(path), levels)

    def read(self, path: str) -> Image.Image:
        """The picture in a file.

        Args:
            path: Of the file, as a request names it.

        Raises:
            UploadError: A file that cannot be used.
        """
        return read_upload(path, self.folder, self.limits)

    def compute(self, work: Callable[[], _T]) -> _T:
        """The result of work with a network, when its turn has come.

        Args:
            work: Called in the network's thread.
        """
        return self._thread.submit(work).result()

    def warm_up(self) -> None:
        """Lets every network see one picture, so that the first user does not wait for more."""
        blank = Image.new("RGB", (320, 240), "white")
        for looker in self.lookers.values():
            self.compute(partial(looker.look, blank, Wishes()))
        draw_subbands(blank, 2)

    def close(self) -> None:
        """Ends the network's thread."""
        self._thread.shutdown(cancel_futures=True)

    def _looker(self, model: str) -> Looker:
        if model not in self.lookers:
            raise UploadError(f"There is no model {model[:80]!r} here: choose one of the list.")
        return self.lookers[model]
