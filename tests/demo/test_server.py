"""The server over HTTP: results for many, messages for the rest, and no file of the host."""

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wavevit.demo.limits import Limits
from wavevit.demo.looks import Look, Looker, Row, Wishes

gradio_client = pytest.importorskip("gradio_client", reason="needs wavevit[demo]")
httpx = pytest.importorskip("httpx", reason="needs wavevit[demo]")

API = "/gradio_api"
USERS = 20


@pytest.fixture(scope="module")
def server(lookers: Mapping[str, Looker], serving: Callable[..., Any]) -> Iterator[Any]:
    with serving(lookers, Limits(upload_mb=2.0, users=40)) as served:
        yield served


@pytest.fixture(scope="module")
def http(server: Any) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        yield client


def upload(http: Any, name: str, content: bytes, kind: str = "image/png") -> Any:
    return http.post(f"{API}/upload", files={"files": (name, content, kind)})


def call(http: Any, name: str, data: list[Any], session: str = "s") -> dict[str, Any]:
    """What the queue says at last of a call of one of the page's functions."""
    functions = {f["api_name"]: f["id"] for f in http.get("/config").json()["dependencies"]}
    body = {"fn_index": functions[name], "data": data, "session_hash": session}
    joined = http.post(f"{API}/queue/join", json=body)
    if joined.status_code != 200:
        return {"success": False, "status": joined.status_code, **joined.json()}
    with http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return dict(message)
    raise AssertionError("the queue ended without a result")


def look(http: Any, path: str, model: str = "classes", session: str = "s") -> dict[str, Any]:
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, model, 3, 0.0, 0.5]
    return call(http, "look", data, session)


def test_each_task_gives_its_result(http: Any, picture_file: Path, server: Any) -> None:
    path = upload(http, "a.png", picture_file.read_bytes()).json()[0]
    for model in ("classes", "objects", "pixels"):
        done = look(http, path, model)
        assert done["success"], done
        drawn, html = done["output"]["data"]
        assert "wv-summary" in html
        assert "<script" not in html
        if model == "classes":
            assert drawn["visible"] is False
            continue
        shown = http.get(f"{API}/file={drawn['value']['path']}")
        assert shown.headers["content-type"] == "image/jpeg"
        assert shown.content[:2] == b"\xff\xd8"
    bands = call(http, "subbands", [{"path": path, "meta": {"_type": "gradio.FileData"}}, 2])
    assert bands["success"]
    named = {"path": path, "meta": {"_type": "gradio.FileData"}}
    where = call(http, "where", [named, "classes", "attention", -1, -1])
    assert where["success"]


@pytest.mark.parametrize("kind", ["image/png", "image/svg+xml", "text/html", ""])
def test_what_is_no_picture_gets_a_message_and_the_server_lives(
    http: Any,
    kind: str,
    server: Any,
    bad_files: dict[str, tuple[bytes, str]],
    picture_file: Path,
) -> None:
    for name, (content, words) in bad_files.items():
        path = upload(http, name, content, kind).json()[0]
        served = http.get(f"{API}/file={path}")
        if name.endswith((".svg", ".html", ".eps")):  # a browser would run what is inside
            assert served.headers["content-disposition"].startswith("attachment")
        done = look(http, path)
        assert not done["success"]
        assert words in done["output"]["error"]
        assert str(server.folder.path) not in done["output"]["error"]
        assert not Path(path).exists()
    good = upload(http, "a.png", picture_file.read_bytes()).json()[0]
    assert look(http, good)["success"]


def test_names_of_uploads_cannot_lead_out(http: Any, server: Any) -> None:
    before = set(server.folder.path.parent.iterdir())
    for name in ("../../evil.png", "/etc/evil.png", "..\\evil.png", "a\0b.png", "." * 300, ""):
        answer = upload(http, name, b"x")
        assert answer.status_code < 500
        if answer.status_code == 200:
            assert all(server.folder.holds(path) for path in answer.json())
    assert set(server.folder.path.parent.iterdir()) == before
    assert not Path("/etc/evil.png").exists()


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "//etc/passwd",
        "%2Fetc%2Fpasswd",
        "..%2f..%2f..%2f..%2fetc%2fpasswd",
        "..%252f..%252f..%252fetc%252fpasswd",
        "%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "....//....//etc/passwd",
        "..\\..\\..\\etc\\passwd",
        "/proc/self/environ",
        "/proc/self/cwd/pyproject.toml",
        "pyproject.toml",
        "./pyproject.toml",
        "file:///etc/passwd",
        "https://example.org/x",
        "CHECKPOINT",
        "CHECKPOINT-BY-FOLDER",
        "FOLDER/../../etc/passwd",
        "FOLDER/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_no_file_of_the_host_is_reachable(
    target: str, http: Any, server: Any, checkpoints: list[Path]
) -> None:
    root = server.folder.path
    target = target.replace("CHECKPOINT-BY-FOLDER", f"{root}/../{checkpoints[0]}")
    target = target.replace("CHECKPOINT", str(checkpoints[0])).replace("FOLDER", str(root))
    for address in (f"{API}/file=", f"{API}/file/", "/file=", "/static/", "/assets/", "/"):
        answer = raw_get(server.url, address + target)
        assert answer.split(b" ", 2)[1] in (b"400", b"403", b"404"), (address, answer[:200])
        assert b"root:" not in answer
        assert b"[project]" not in answer
        assert b"wavevit_test" not in answer
    # And by name in a call, which makes gradio read or fetch it.
    done = look(http, target)
    assert not done["success"]
    assert "no longer on the server" in done["detail"]


def raw_get(url: str, target: str) -> bytes:
    """The answer to a request whose address is sent letter by letter."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        lines = f"GET {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        connection.sendall(lines.encode())
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_what_needs_the_network_has_to_wait_its_turn(http: Any, server: Any) -> None:
    functions = {f["api_name"]: f["id"] for f in http.get("/config").json()["dependencies"]}
    for name in ("look", "where", "subbands"):
        body = {
            "fn_index": functions[name],
            "data": [None, "classes", 3, 0, 0],
            "session_hash": "s",
        }
        answer = http.post(f"{API}/run/predict", json=body)
        assert answer.status_code in (401, 403, 404), answer.text


def test_a_file_that_is_too_large_gets_a_message(http: Any) -> None:
    answer = upload(http, "large.bmp", b"x" * 2_100_000)
    assert answer.status_code == 413
    assert "2 MB are the most" in answer.json()["detail"]
    parts = itertools.repeat(b"x" * 100_000, 40)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    with pytest.raises(httpx.HTTPError):  # the server hangs up
        http.post(f"{API}/upload", content=parts, headers=headers).raise_for_status()
    assert http.get("/config").status_code == 200


def test_twenty_users_at_once_all_get_their_own_result(
    server: Any, picture: Image.Image, tmp_path: Path
) -> None:
    files = []
    for number in range(USERS):
        files.append(tmp_path / f"{number}.png")
        picture.rotate(18 * number).save(files[-1])

    def use(number: int) -> tuple[str, str]:
        client = gradio_client.Client(server.url, verbose=False, analytics_enabled=False)
        file = gradio_client.handle_file(str(files[number]))
        found = []
        for model in ("classes", "pixels"):
            _, html = client.predict(file, model, 3, 0.3, 0.5, api_name="/look")
            found.append(html)
        client.close()
        return found[0], found[1]

    with ThreadPoolExecutor(USERS) as pool:
        together = list(pool.map(use, range(USERS)))
    assert together == [use(number) for number in range(USERS)]
    assert len(set(together)) > USERS // 2  # pictures differ, and so do results


class SlowLooker:
    """Looks for as long as the test wants."""

    task = "classification"
    class_names = ("one", "two")

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.may_end.set()

    def look(self, picture: Image.Image, wishes: Wishes) -> Look:
        self.may_end.wait(60)
        return Look((Row("one", 1.0),), None, "one")


def test_a_full_queue_tells_and_serves_again_afterwards(
    picture_file: Path, serving: Callable[..., Any]
) -> None:
    looker: Any = SlowLooker()
    with serving({"slow": looker}, Limits(queue=2)) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
            path = upload(http, "a.png", picture_file.read_bytes()).json()[0]
            looker.may_end.clear()
            # Two at work, two that wait; then it is full.
            with ThreadPoolExecutor(12) as pool:
                asked = [
                    pool.submit(look, http, path, "slow", f"user-{number}") for number in range(12)
                ]
                refused = 0
                for future in asked:
                    try:
                        done = future.result(timeout=3)
                    except TimeoutError:
                        continue
                    assert done["status"] == 503
                    assert "Queue is full" in done["detail"]
                    refused += 1
                looker.may_end.set()
                finished = sum(future.result(timeout=60)["success"] for future in asked)
            assert refused + finished == 12
            assert refused >= 6
            assert finished >= 4
            assert look(http, path, "slow", "later")["success"]


def test_pages_beyond_the_limit_get_a_message_until_one_closes(
    serving: Callable[..., Any],
) -> None:
    looker: Any = SlowLooker()
    with serving({"slow": looker}, Limits(users=1)) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as http:
            with http.stream("GET", f"{API}/heartbeat/first") as held:
                next(held.iter_raw())
                answer = http.get("/")
                assert answer.status_code == 503
                assert "places are taken" in answer.text
            wait_for(lambda: server.guard.open_pages == 0)
            assert http.get("/").status_code == 200


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it did not come")
