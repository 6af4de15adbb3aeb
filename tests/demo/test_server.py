"""The server over HTTP: results for many, messages for the rest, and no file of the host."""

import itertools
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

httpx = pytest.importorskip("httpx", reason="needs wavevit[demo]")

pytestmark = pytest.mark.slow

API = "/gradio_api"
USERS = 20
SLOW = Path(__file__).with_name("slow_server.py")


@pytest.fixture(scope="module")
def server(checkpoints: list[Path], start: Callable[..., Any]) -> Any:
    options = ["--port", "0", "--max-upload-mb", "2", "--max-users", "40"]
    return start("-m", "wavevit", "demo", *options, "--checkpoint", *checkpoints)


@pytest.fixture(scope="module")
def http(server: Any) -> Iterator[Any]:
    with client(server) as made:
        yield made


def client(server: Any) -> Any:
    return httpx.Client(base_url=server.url, trust_env=False, timeout=60)


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
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, model, 3, 0.05, 0.5]
    return call(http, "look", data, session)


def test_each_task_gives_its_result(http: Any, picture_file: Path) -> None:
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
        assert "/" not in done["output"]["error"]
        assert not Path(path).exists()
    good = upload(http, "a.png", picture_file.read_bytes()).json()[0]
    assert look(http, good)["success"]


@pytest.fixture(scope="module")
def folder(http: Any) -> Path:
    """Where the server keeps what users send."""
    return Path(upload(http, "first.png", b"x").json()[0]).parents[1]


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "..\\evil.png", "a\0b.png", "." * 300, "x" * 300]
)
def test_names_of_uploads_cannot_lead_out(name: str, http: Any, folder: Path) -> None:
    around = set(folder.parent.iterdir())
    answer = upload(http, name, b"x")
    if answer.status_code == 200:
        assert all(Path(path).is_relative_to(folder) for path in answer.json())
        assert all(".." not in Path(path).parts for path in answer.json())
    assert set(folder.parent.iterdir()) == around
    assert not Path("/etc/evil.png").exists()
    assert http.get("/config").status_code == 200


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
    target: str, http: Any, server: Any, folder: Path, checkpoints: list[Path]
) -> None:
    target = target.replace("CHECKPOINT-BY-FOLDER", f"{folder}/../{checkpoints[0]}")
    target = target.replace("CHECKPOINT", str(checkpoints[0])).replace("FOLDER", str(folder))
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

    def use(number: int) -> list[str]:
        with client(server) as http:
            path = upload(http, "mine.png", files[number].read_bytes()).json()[0]
            found = []
            for model in ("classes", "objects", "pixels"):
                done = look(http, path, model, f"user-{number}")
                assert done["success"], done
                found.append(done["output"]["data"][1])
            return found

    with ThreadPoolExecutor(USERS) as pool:
        together = list(pool.map(use, range(USERS)))
    assert together == [use(number) for number in range(USERS)]
    assert len({str(found) for found in together}) == USERS  # pictures differ, so do results


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the slow server's network does not answer."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def slow(start: Callable[..., Any], hold: Path) -> Any:
    """A server with room for two requests that wait, and for two pages."""
    return start(SLOW, hold, 2, 2)


def test_a_full_queue_tells_and_serves_again_afterwards(
    picture_file: Path, slow: Any, hold: Path
) -> None:
    with client(slow) as http, ThreadPoolExecutor(12) as pool:
        path = upload(http, "a.png", picture_file.read_bytes()).json()[0]
        hold.touch()
        asked = [pool.submit(look, http, path, "slow", f"user-{n}") for n in range(12)]
        wait_for(lambda: sum(future.done() for future in asked) >= 8)
        refused = [future.result() for future in asked if future.done()]
        hold.unlink()
        finished = [future.result() for future in asked if future.result() not in refused]
        # Two at work and two that wait.
        assert [done["status"] for done in refused] == [503] * 8
        assert all("Queue is full" in done["detail"] for done in refused)
        assert [done["success"] for done in finished] == [True] * 4, finished
        assert look(http, path, "slow", "later")["success"]


def test_pages_beyond_the_limit_get_a_message_until_one_closes(slow: Any) -> None:
    with client(slow) as http, ExitStack() as pages:
        held = []  # a stream whose iterator is gone is closed
        for number in range(2):
            page = pages.enter_context(http.stream("GET", f"{API}/heartbeat/page-{number}"))
            held.append(page.iter_raw())
            next(held[-1])
        answer = http.get("/")
        assert answer.status_code == 503
        assert "places are taken" in answer.text
        pages.close()
        wait_for(lambda: http.get("/").status_code == 200)


def test_the_end_takes_what_users_sent_with_it(picture_file: Path, slow: Any) -> None:
    with client(slow) as http:
        path = Path(upload(http, "a.png", picture_file.read_bytes()).json()[0])
        folder = path.parents[1]
        assert path.exists()
        with http.stream("GET", f"{API}/heartbeat/open") as page:  # it is still open
            alive = page.iter_raw()
            next(alive)
            slow.stop(signal.SIGTERM)
    assert not folder.exists()


def test_ctrl_c_is_no_error(server: Any, http: Any, folder: Path) -> None:
    assert server.stop(signal.SIGINT) == 130
    assert "Traceback" not in server.errors()
    assert not folder.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")
