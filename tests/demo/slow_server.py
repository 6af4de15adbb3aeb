"""A server whose network looks for as long as a file is there: slow_server.py FILE QUEUE USERS."""

import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from wavevit.demo.limits import Limits
from wavevit.demo.looks import Look, Row, Wishes
from wavevit.demo.server import bind, demo_app, serve


class SlowLooker:
    """Sees the same in every picture, after a while."""

    task = "classification"
    class_names = ("one", "two")

    def __init__(self, hold: Path) -> None:
        self._hold = hold

    def look(self, picture: Image.Image, wishes: Wishes) -> Look:
        while self._hold.exists():
            time.sleep(0.02)
        return Look((Row("one", 1.0),), None, "one")


def main() -> None:
    hold, queue, users = sys.argv[1:]
    limits = Limits(queue=int(queue), users=int(users))
    lookers: Any = {"slow": SlowLooker(Path(hold))}
    with (
        bind("127.0.0.1", 0) as listening,
        demo_app(lookers, {"slow": "slow"}, [], limits, "127.0.0.1") as guard,
    ):
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)  # noqa: T201
        serve(guard, listening)


if __name__ == "__main__":
    main()
