"""What stands between the network and gradio: which requests get through at all."""

import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from html import escape
from typing import Any
from urllib.parse import unquote, urlsplit

from wavevit.demo.limits import MEGABYTE, Limits
from wavevit.demo.uploads import UploadFolder

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/gradio_api"
_FILE = f"{_API}/file="
_UPLOAD = f"{_API}/upload"
_HEARTBEAT = f"{_API}/heartbeat/"
# Calls of the page's functions: in turn, and at once for those that compute nothing. Gradio refuses
# others at the second address.
_CALLS = (f"{_API}/queue/join", f"{_API}/run/predict")

# All that the page and gradio's client for Python ask for. Gradio has more: it can fetch any
# address for a client, watch its users, and be edited from the browser.
_GET = (
    *("/", "/config", "/theme.css", "/favicon.ico", f"{_API}/info", f"{_API}/app_id"),
    *(f"{_API}/queue/data", f"{_API}/startup-events", f"{_API}/upload_progress"),
)
_GET_BELOW = ("/assets/", "/static/", _HEARTBEAT, _FILE)
_POST = (_UPLOAD, *_CALLS, f"{_API}/cancel", f"{_API}/reset")

_LARGEST_CALL = 100_000  # bytes of a request that carries no file
_MULTIPART = 10_000  # bytes that an upload has around its file

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"SAMEORIGIN"),
    # The page asks nobody but this server. Gradio's own page has scripts inside.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        b"media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        b"worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; "
        b"form-action 'self'; frame-ancestors 'self'",
    ),
)


class _RefusedError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Guard:
    """ASGI application around gradio's: refuses what no user of the page needs.

    Args:
        app: Gradio's.
        folder: The only place that files come from.
        limits: Of users and sizes.
        hosts: Names that the server answers to, in lower case; None: to any. Where it is bound to
            this machine, a page of another site whose name points here would otherwise read it.
    """

    def __init__(
        self, app: App, folder: UploadFolder, limits: Limits, hosts: Collection[str] | None
    ) -> None:
        self._app = app
        self._folder = folder
        self.limits = limits
        self._hosts = None if hosts is None else frozenset(hosts)
        self.open_pages = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers or passes on one request.

        Args:
            scope: As ASGI has it.
            receive: As ASGI has it.
            send: As ASGI has it.
        """
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets: closing without an answer refuses them
        try:
            self._check(scope)
        except _RefusedError as refusal:
            await _answer(scope, send, refusal)
            return
        receive = _limited(receive, self._largest_body(scope["path"]))
        if scope["path"] in _CALLS:
            body = await _whole_body(receive)
            if not self._names_own_files(body):
                gone = "This picture is no longer on the server: send it again."
                await _answer(scope, send, _RefusedError(403, gone))
                return
            receive = _replayed(body, receive)
        if not scope["path"].startswith(_HEARTBEAT):
            await self._app(scope, receive, _with_headers(send))
            return
        self.open_pages += 1
        try:
            await self._app(scope, receive, _with_headers(send))
        finally:
            self.open_pages -= 1

    def _check(self, scope: Scope) -> None:
        path, method = scope["path"], scope["method"]
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self._check_origin(headers, method)
        if method == "POST":
            if path not in _POST:
                raise _RefusedError(404, "There is nothing here.")
            self._check_length(path, headers)
            return
        if method not in ("GET", "HEAD"):
            raise _RefusedError(405, "This server takes GET and POST.")
        if path not in _GET and not path.startswith(_GET_BELOW):
            raise _RefusedError(404, "There is nothing here.")
        if ".." in unquote(path).replace("\\", "/").split("/"):
            raise _RefusedError(403, "This file is not served.")
        if path.startswith(_FILE) and not self._folder.holds(path.removeprefix(_FILE)):
            raise _RefusedError(403, "This file is not served.")
        if (
            b"deep_link" in scope["query_string"]
        ):  # a stored state of gradio's, of which we have none
            raise _RefusedError(404, "There is nothing here.")
        is_new = path == "/" or path.startswith(_HEARTBEAT)
        if is_new and self.open_pages >= self.limits.users:
            raise _RefusedError(
                503,
                f"All {self.limits.users} places are taken right now. Try again in a few minutes.",
            )

    def _check_origin(self, headers: dict[str, str], method: str) -> None:
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if self._hosts is not None and name not in self._hosts:
            raise _RefusedError(
                403,
                "This server answers on its own machine only: open it as http://127.0.0.1, or "
                "start it with --host.",
            )
        origin = headers.get("origin")
        if method == "POST" and origin is not None and urlsplit(origin).netloc != host:
            raise _RefusedError(403, "Requests of other sites are not answered.")

    def _check_length(self, path: str, headers: dict[str, str]) -> None:
        text = headers.get("content-length", "")
        length = int(text) if text.isdigit() else self._largest_body(path)  # `_limited` counts
        if length > self._largest_body(path):
            raise _too_large(path, self.limits)
        if path == _UPLOAD:
            room = self.limits.store_mb * MEGABYTE - self._folder.used_bytes()
            if length > room:
                raise _RefusedError(
                    503, "The server's room for pictures is full. Try again in a few minutes."
                )

    def _names_own_files(self, body: bytes) -> bool:
        """Whether all files that a call names are uploaded ones; gradio would fetch addresses."""
        try:
            values = [json.loads(body)]
        except (ValueError, RecursionError):
            return False
        while values:
            value = values.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and self._folder.holds(path)):
                    return False
                values += value.values()
            elif isinstance(value, list):
                values += value
        return True

    def _largest_body(self, path: str) -> int:
        if path == _UPLOAD:
            return round(self.limits.upload_mb * MEGABYTE) + _MULTIPART
        return _LARGEST_CALL


def _too_large(path: str, limits: Limits) -> _RefusedError:
    if path == _UPLOAD:
        return _RefusedError(
            413,
            f"This file is too large: {limits.upload_mb:g} MB are the most. Send a smaller one.",
        )
    return _RefusedError(413, "This request is too large.")


def _limited(receive: Receive, limit: int) -> Receive:
    """Ends a body that is longer than its request said, or that did not say."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            return {"type": "http.disconnect"}
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            added = [pair for pair in _HEADERS if pair[0] not in names]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return extended


async def _whole_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then what comes after it."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(scope: Scope, send: Send, refusal: _RefusedError) -> None:
    if scope["path"] == "/":
        kind = b"text/html; charset=utf-8"
        text = (
            '<!doctype html><meta name="viewport" content="width=device-width">'
            "<title>wavevit</title>"
            '<p style="font:1.1rem system-ui;max-width:32rem;margin:20vh auto;padding:0 1rem">'
            f"{escape(refusal.text)}</p>"
        )
    else:
        # Gradio's page shows "detail" to the user.
        kind, text = b"application/json", json.dumps({"detail": refusal.text})
    body = text.encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
    await _with_headers(send)(start)
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
