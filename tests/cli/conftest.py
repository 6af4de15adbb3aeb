"""Model files to run commands on, and commands in processes of their own."""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wavevit.cli.main import main

LIMIT_S = 120


class ForkedCommand:
    """A running command, in a fork of this process: it need not import torch again.

    Args:
        words: After ``wavevit``.
        environment: What is added to the environment.
        prepare: Called in the new process before the command.

    Attributes:
        stdin: Binary, unbuffered.
        stdout: Binary.
    """

    def __init__(
        self,
        *words: object,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (close does)

        def work() -> None:
            os.close(stdin)
            os.close(stdout)
            for number, theirs in enumerate((their_stdin, their_stdout, self._stderr.fileno())):
                os.dup2(theirs, number)
            os.close(their_stdin)
            os.close(their_stdout)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            # As a new interpreter, and not as pytest, has it.
            logging.root.handlers.clear()
            warnings.resetwarnings()
            for kind in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
                warnings.simplefilter("ignore", kind)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(environment or {})
            prepare()
            sys.exit(main([str(word) for word in words]))

        self._process = multiprocessing.get_context("fork").Process(target=work)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that pytest may have threads
            self._process.start()
        os.close(their_stdin)
        os.close(their_stdout)
        self.stdin = os.fdopen(stdin, "wb", 0)
        self.stdout = os.fdopen(stdout, "rb")

    def interrupt(self) -> None:
        """Does as Ctrl-C."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGINT)

    def wait(self) -> int | None:
        """Its exit code; None if it hangs."""
        self._process.join(LIMIT_S)
        return self._process.exitcode

    def stderr(self) -> str:
        """What it has said."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def close(self) -> None:
        """Ends it, if it is still there, and frees what belongs to it."""
        self._process.kill()
        self._process.join()
        self._process.close()
        for stream in (self.stdin, self.stdout, self._stderr):
            stream.close()


@pytest.fixture(scope="module")
def fork() -> Iterator[Callable[..., ForkedCommand]]:
    """Starts commands, which end with the last test of the file at the latest."""
    started: list[ForkedCommand] = []

    def start(*words: object, **options: Any) -> ForkedCommand:
        started.append(ForkedCommand(*words, **options))
        return started[-1]

    yield start
    for command in started:
        command.close()
