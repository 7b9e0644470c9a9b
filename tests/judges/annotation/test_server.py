"""Who may reach the page, and what it is sent: over real HTTP, to a real server."""

import json
import socket
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from judges.annotation.server import serve
from judges.annotation.store import VoteStore, read_votes
from judges.annotation.tasks import compare
from pipeline.errors import BusyError, ConfigError, DataError
from tests.judges.annotation.place import Place

TASKS = [compare(f"prompt {i}", f"good {i}", f"bad {i}") for i in range(3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Place(tmp_path_factory.mktemp("served") / "votes.jsonl", TASKS) as place:
        yield place


@pytest.fixture
def inside(place: Place) -> Iterator[httpx.Client]:
    """Somebody who opened the link."""
    with httpx.Client(base_url=place.root, trust_env=False, follow_redirects=True) as client:
        assert client.get(place.url).status_code == 200
        client.headers["Origin"] = place.root.rstrip("/")
        yield client


@pytest.mark.parametrize(
    "path", ["", "?token=", "?token=x", "?token=%FF", "api/state?annotator=Ann", "api/summary", "page.css"]
)
def test_without_the_link_there_is_nothing_to_see(place: Place, path: str) -> None:
    answer = httpx.get(place.root + path, trust_env=False)
    assert answer.status_code == 403
    assert "prompt" not in answer.text
    assert "set-cookie" not in answer.headers


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(place: Place) -> None:
    entered = httpx.get(place.url + "&annotator=Ann", trust_env=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/?annotator=Ann")
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    token = place.url.partition("token=")[2]
    assert len(token) >= 40
    assert token not in cookie


def test_the_cookie_of_another_server_does_not_open_this_one(place: Place, tmp_path: Path) -> None:
    with (
        Place(tmp_path / "votes.jsonl", TASKS) as other,
        httpx.Client(trust_env=False, follow_redirects=True) as client,
    ):
        client.get(other.url)
        assert client.get(other.root).status_code == 200
        assert client.get(place.root).status_code == 403
        client.get(place.url)
        assert client.get(place.root).status_code == client.get(other.root).status_code == 200  # both at once


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_a_name_that_was_rebound_to_this_machine_is_refused(inside: httpx.Client, host: str) -> None:
    assert inside.get("/", headers={"Host": host}).status_code == 400


def test_localhost_is_this_machine_too(place: Place) -> None:
    link = place.url.replace("127.0.0.1", "localhost")
    assert httpx.get(link, trust_env=False, follow_redirects=True).status_code == 200


def test_only_the_loopback_address_is_listened_on(place: Place) -> None:
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = [line.split()[1] for line in listening if line.split()[3] == "0A"]
    assert [address for address in local if int(address.split(":")[1], 16) == place.port] == [
        f"0100007F:{place.port:04X}"
    ]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", None])
def test_another_site_cannot_vote_even_with_the_cookie(inside: httpx.Client, origin: str | None) -> None:
    task = inside.get("/api/state", params={"annotator": "Eve"}).json()["task"]
    del inside.headers["Origin"]
    answer = inside.post(
        "/api/vote", content=json.dumps({"annotator": "Eve", "task": task["id"], "revision": 0, "verdict": "left"}),
        headers={"Origin": origin} if origin else {},
    )  # fmt: skip
    assert answer.status_code == 403
    assert "Eve" not in inside.get("/api/who").json()["known"]


@pytest.mark.parametrize("path", ["/", "/summary", "/vote.js", "/api/who", "/api/state?annotator=Ann", "/api/nothing"])
def test_every_answer_forbids_foreign_code_and_being_kept(inside: httpx.Client, path: str) -> None:
    headers = inside.get(path).headers
    if path == "/api/nothing":
        return
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b'{"annotator": 3}',
        b"{}",
        b'{"annotator": "Ann", "task": "none"}',
        b"x" * 70000,
    ],
)
def test_a_request_that_is_no_vote_is_refused_in_words(inside: httpx.Client, body: bytes) -> None:
    for path in ("/api/vote", "/api/undo"):
        answer = inside.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]


def test_a_vote_is_on_disk_when_the_page_is_answered_and_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    with Place(path, TASKS) as place, httpx.Client(base_url=place.root, trust_env=False) as client:
        client.get(place.url)
        task = client.get("/api/state", params={"annotator": "Ann"}).json()["task"]
        client.post(
            "/api/vote", headers={"Origin": place.root.rstrip("/")},
            json={"annotator": "Ann", "task": task["id"], "revision": 0, "verdict": "left"},
        )  # fmt: skip
        place.kill()
    (vote,) = read_votes(path).votes
    assert (vote.annotator, vote.task) == ("Ann", task["id"])


def test_an_interrupt_ends_the_server_and_a_second_start_needs_no_tasks(tmp_path: Path) -> None:
    with Place(tmp_path / "votes.jsonl", TASKS) as place:
        with pytest.raises(BusyError):
            serve([], tmp_path / "votes.jsonl")
        place.stop()
    with Place(tmp_path / "votes.jsonl", []) as place:
        assert httpx.get(place.url, trust_env=False).status_code == 303


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to vote on"):
        serve([], tmp_path / "votes.jsonl")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="port .* in use"):
            serve(TASKS, tmp_path / "votes.jsonl", port=taken.getsockname()[1])
    with pytest.raises(ConfigError, match="annotator"):
        serve(TASKS, tmp_path / "votes.jsonl", annotator=" ")
    VoteStore(tmp_path / "votes.jsonl").close()  # and the file is free again


def test_the_page_is_part_of_the_package_and_names_no_other_host() -> None:
    pages = "".join(each.read_text() for each in files("judges.annotation").joinpath("page").iterdir())
    words = pages.replace('"', " ").replace("'", " ").split()
    addresses = {word for word in words if "//" in word and not word.startswith("//")}
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a format, never fetched
