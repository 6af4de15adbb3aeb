"""The page served: gradio behind its guard, in one process, until it is told to stop."""

import asyncio
import contextlib
import importlib.metadata
import os
import signal
import socket
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wavevit.demo.guard import Guard
from wavevit.demo.limits import Limits
from wavevit.demo.looks import Looker
from wavevit.demo.page import build_page, style, theme
from wavevit.demo.service import Service
from wavevit.demo.uploads import UploadFolder

_OLDEST_GRADIO = (6, 16)
_SWEEP_S = 20.0
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def require_gradio() -> None:
    """Raises unless gradio is there; it is not imported, since that makes folders.

    Raises:
        ValueError: It is missing or too old.
    """
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError('the page needs gradio: pip install "wavevit[demo]"') from error
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_GRADIO:
        oldest = ".".join(map(str, _OLDEST_GRADIO))
        raise ValueError(
            f'the page needs gradio {oldest} or newer, got {version}: pip install "wavevit[demo]"'
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address.
        port: 0 takes a free one.

    Raises:
        ValueError: The port is taken or may not be used, or this machine has no such address.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ValueError(f"--host: expected an address of this machine, got {host!r}") from error
    found = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows it would let two servers share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(256)
    except OSError as error:
        found.close()
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"cannot serve on {host}:{port} ({reason}); choose another --port, or 0 for a free one"
        ) from error
    return found


@contextlib.contextmanager
def demo_app(
    lookers: Mapping[str, Looker],
    summaries: Mapping[str, str],
    examples: Sequence[Image.Image],
    limits: Limits,
    host: str,
) -> Iterator[Guard]:
    """The ASGI application, warmed up; its folder of users' files is removed afterwards.

    Args:
        lookers: The networks by name.
        summaries: A line about each.
        examples: Pictures to begin with.
        limits: For all users.
        host: What it will be bound to.

    Yields:
        The application.
    """
    folder = UploadFolder()
    service = Service(lookers, folder, limits)
    settings = {
        # Gradio's places for files; it would share them with others, or use the current folder.
        "GRADIO_TEMP_DIR": str(folder.path),
        "GRADIO_EXAMPLES_CACHE": str(folder.path / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    try:
        with _environment(settings):
            service.warm_up()
            yield _guarded(service, summaries, examples, host)
    finally:
        service.close()
        folder.remove()


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Inside, the process has these environment variables: gradio has no other way for them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _guarded(
    service: Service, summaries: Mapping[str, str], examples: Sequence[Image.Image], host: str
) -> Guard:
    import gradio as gr
    from fastapi import FastAPI

    folder, limits = service.folder, service.limits
    paths = []
    for number, picture in enumerate(examples):
        paths.append(folder.path / f"example-{number}.png")
        picture.save(paths[-1])
    blocks = build_page(service, summaries, paths)
    keep = folder.files()  # gradio has put its own copies of the examples there

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        del app
        sweeping = asyncio.create_task(_sweep(folder, limits.keep_minutes * 60, keep))
        yield
        sweeping.cancel()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        max_file_size=f"{round(limits.upload_mb * 1000)}kb",
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme(),
        css=style(),
    )
    hosts = {*_THIS_MACHINE, host.lower()} if is_local(host) else None
    return Guard(app, folder, limits, hosts)


def is_local(host: str) -> bool:
    """Whether nobody but this machine can reach what is bound to a host.

    Args:
        host: Name or address.
    """
    return host.lower() in _THIS_MACHINE or host.startswith("127.")


async def _sweep(folder: UploadFolder, older_than_s: float, keep: Collection[Path]) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        await asyncio.to_thread(folder.sweep, older_than_s, keep)


def serve(guard: Guard, listening: socket.socket) -> None:
    """Answers requests until Ctrl-C or SIGTERM.

    Args:
        guard: The application.
        listening: From `bind`.

    Raises:
        KeyboardInterrupt: One of these came, and all is shut down.
    """
    import uvicorn

    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        # A page holds one or two connections, and a few more while it loads.
        limit_concurrency=8 * guard.limits.users + 64,
        timeout_graceful_shutdown=2,
    )
    # The server raises the signal again when it has shut down; SIGTERM would then end the process
    # before its folder is removed.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
