"""Requests that no user of the page makes do not reach gradio."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wavevit.demo.guard import Guard
from wavevit.demo.limits import Limits
from wavevit.demo.uploads import UploadFolder

API = "/gradio_api"


@pytest.fixture
def folder() -> Iterator[UploadFolder]:
    found = UploadFolder()
    (found.path / "mine.png").write_bytes(b"mine")
    yield found
    found.remove()


class Behind:
    """Takes the place of gradio: says what reached it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"reached"})


def ask(
    guard: Guard,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    query: bytes = b"",
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    sent: list[Any] = []
    parts = [body[i : i + 1000] for i in range(0, len(body), 1000)] or [b""]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:7860", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    asyncio.run(guard(scope, receive, send))
    if not sent:
        return 0, b"", {}
    received = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], sent[1]["body"], received


def guarded(folder: UploadFolder, **limits: float) -> tuple[Guard, Behind]:
    behind = Behind()
    return Guard(behind, folder, Limits(**limits), {"127.0.0.1", "localhost"}), behind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/static/../../../etc/passwd",
        "/static/..\\..\\secret",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        f"{API}/file=/etc/passwd",
        f"{API}/file=//etc/passwd",
        f"{API}/file=../../../../../../etc/passwd",
        f"{API}/file=%2Fetc%2Fpasswd",
        f"{API}/file=file:///etc/passwd",
        f"{API}/file=http://127.0.0.1/secret",
        f"{API}/file=https://example.org/",
        f"{API}/file=pyproject.toml",
        f"{API}/file=/proc/self/environ",
        f"{API}/file=/dev/stdin",
        f"{API}/file=\0",
        f"{API}/file/etc/passwd",
        f"{API}/proxy=http://127.0.0.1/",
        f"{API}/runs",
        f"{API}/openapi.json",
        f"{API}/vibe-code",
        "/monitoring",
        "/monitoring/summary",
        "/docs",
        "/svelte/a.js",
        "/manifest.json/../../x",
    ],
)
def test_files_of_the_host_and_gradios_other_doors_stay_shut(
    path: str, folder: UploadFolder
) -> None:
    guard, behind = guarded(folder)
    status, body, _ = ask(guard, path)
    assert status in (403, 404)
    assert json.loads(body)["detail"]
    assert behind.bodies == []


def test_files_of_users_are_served_but_not_by_way_of_elsewhere(folder: UploadFolder) -> None:
    guard, behind = guarded(folder)
    assert ask(guard, f"{API}/file={folder.path}/mine.png")[0] == 200
    assert ask(guard, f"{API}/file={folder.path}/../{folder.path.name}/mine.png")[0] == 403
    (folder.path / "link").symlink_to("/etc/passwd")
    assert ask(guard, f"{API}/file={folder.path}/link")[0] == 403
    assert len(behind.bodies) == 1


@pytest.mark.parametrize(
    "named",
    [
        {"path": "/etc/passwd"},
        {"path": "http://127.0.0.1:22/x.png"},
        {"path": "https://example.org/x.png"},
        {"path": 3},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    ],
)
def test_calls_name_uploaded_files_only(named: Any, folder: UploadFolder) -> None:
    guard, behind = guarded(folder)
    for data in ([named], [[{"deep": [named]}]]):
        body = json.dumps({"fn_index": 0, "data": data}).encode()
        status, answer, _ = ask(guard, f"{API}/queue/join", method="POST", body=body)
        assert status == 403
        assert "no longer on the server" in json.loads(answer)["detail"]
    assert behind.bodies == []
    own = json.dumps({"data": [{"path": f"{folder.path}/mine.png"}]}).encode()
    assert ask(guard, f"{API}/queue/join", method="POST", body=own)[0] == 200
    assert behind.bodies == [own]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 90_000, b"\xff\xfe"])
def test_a_call_that_cannot_be_read_is_refused(body: bytes, folder: UploadFolder) -> None:
    guard, behind = guarded(folder)
    assert ask(guard, f"{API}/queue/join", method="POST", body=body)[0] == 403
    assert behind.bodies == []


@pytest.mark.parametrize(
    "path", ["component_server", "run/look", "api/look", "call/look", "vibe-edit"]
)
def test_other_addresses_for_calls_are_refused(path: str, folder: UploadFolder) -> None:
    guard, behind = guarded(folder)
    assert ask(guard, f"{API}/{path}", method="POST", body=b"{}")[0] == 404
    assert behind.bodies == []


def test_a_body_is_no_longer_than_the_limit_whatever_its_length_is_said_to_be(
    folder: UploadFolder,
) -> None:
    guard, behind = guarded(folder, upload_mb=0.05)
    large = b"x" * 100_000
    upload = f"{API}/upload"
    status, body, _ = ask(guard, upload, method="POST", body=large, content_length="100000")
    assert status == 413
    assert "0.05 MB are the most" in json.loads(body)["detail"]
    for length in ({}, {"content_length": "10"}):
        assert ask(guard, upload, method="POST", body=large, **length)[0] == 0  # cut off
    assert behind.bodies == []
    assert ask(guard, upload, method="POST", body=large[:40_000])[0] == 200


def test_a_full_store_takes_no_more_pictures(folder: UploadFolder) -> None:
    guard, _ = guarded(folder, store_mb=1, upload_mb=0.5)
    (folder.path / "much").write_bytes(b"x" * 800_000)
    status, body, _ = ask(guard, f"{API}/upload", method="POST", body=b"x", content_length="300000")
    assert status == 503
    assert "room for pictures is full" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "", "127.0.0.1.evil.example"]
)
def test_another_sites_name_for_this_machine_is_not_answered(
    host: str, folder: UploadFolder
) -> None:
    guard, behind = guarded(folder)
    status, body, _ = ask(guard, "/", host=host)
    assert status == 403
    assert b"on its own machine only" in body
    assert behind.bodies == []
    anywhere = Guard(behind, folder, Limits(), None)
    assert ask(anywhere, "/", host=host)[0] == 200


def test_another_sites_page_cannot_send(folder: UploadFolder) -> None:
    guard, _ = guarded(folder)
    upload = f"{API}/upload"
    assert ask(guard, upload, method="POST", origin="https://evil.example")[0] == 403
    assert ask(guard, upload, method="POST", origin="http://127.0.0.1:9999")[0] == 403
    assert ask(guard, upload, method="POST", origin="http://127.0.0.1:7860")[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str, folder: UploadFolder) -> None:
    assert ask(guarded(folder)[0], "/", method=method)[0] == 405


def test_pages_beyond_the_limit_get_a_message(folder: UploadFolder) -> None:
    guard, _ = guarded(folder, users=2)
    guard.open_pages = 2
    status, body, headers = ask(guard, "/")
    assert status == 503
    assert b"All 2 places are taken right now" in body
    assert headers["content-type"].startswith("text/html")
    assert ask(guard, f"{API}/heartbeat/x")[0] == 503
    guard.open_pages = 1
    assert ask(guard, "/")[0] == 200
    assert guard.open_pages == 1


def test_every_answer_tells_the_browser_to_ask_nobody_else(
    folder: UploadFolder, tmp_path: Path
) -> None:
    guard, _ = guarded(folder)
    for path in ("/", f"{API}/file={tmp_path}", "/nowhere"):
        headers = ask(guard, path)[2]
        assert headers["x-content-type-options"] == "nosniff"
        assert "connect-src 'self'" in headers["content-security-policy"]
        assert "default-src 'self'" in headers["content-security-policy"]
