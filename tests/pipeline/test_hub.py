"""Pushes over real HTTP, by the Hub's real client, to a server that speaks the Hub's protocol and breaks on demand."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DataError, HubError
from pipeline.hub import MANIFEST, parse_destination, push
from tests.hub_protocol import READ, WRITE, File
from tests.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
NAME = "org/pairs"
ON_THE_WAY = [
    "GET .*/revision/main$", "POST /api/repos/create", "GET .*/refs", "GET .*/tree/", "POST .*/preupload/",
    "POST .*/objects/batch", "PUT /lfs/", "POST /lfs-verify", "POST /api/validate-yaml", "POST .*/commit/",
    "POST .*/tag/",
]  # fmt: skip
"""Every kind of request that a first push makes."""


class Client:
    """A process with the Hub's client, which does one job after another."""

    def __init__(self, hub: HubServer, home: Path, **environment: str) -> None:
        home.mkdir()
        self.home, self.log = home, home / "log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "http_", "https_"))}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/hub_client.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, cwd=home, start_new_session=True,
                env={**clean, **hub.environment, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self, do: str, **job: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **job}, default=str) + "\n")
        self.process.stdin.flush()

    def outcome(self, do: str, **job: Any) -> dict[str, Any]:
        self.start(do, **job)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        told: dict[str, Any] = json.loads(line)
        return told

    def made(self, do: str, **job: Any) -> Any:
        told = self.outcome(do, **job)
        assert "made" in told, told["trace"]
        return told["made"]

    def push(self, folder: Path, **job: Any) -> Any:
        return self.made("push", **{"folder": folder, "repo": NAME, **job})

    def refused(self, folder: Path, **job: Any) -> str:
        """The error's text: of ours, one line, with nothing behind it."""
        told = self.outcome("push", **{"folder": folder, "repo": NAME, **job})
        assert "HubError" in told.get("types", []), told
        assert "\n" not in told["error"]
        assert len(told["chain"]) == 1, told["chain"]
        return str(told["error"])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Client]]:
    """One server and one client for all tests: a new client takes a second to start."""
    with HubServer(page_size=3) as hub, Client(hub, tmp_path_factory.mktemp("client") / "home") as client:
        yield hub, client


@pytest.fixture
def hub(served: tuple[HubServer, Client]) -> HubServer:
    hub = served[0]
    for state in (hub.repos, hub.blobs, hub.requests, hub.faults):
        state.clear()
    hub.held.clear()
    hub.one_namespace = False
    return hub


@pytest.fixture
def client(hub: HubServer, served: tuple[HubServer, Client]) -> Client:
    return served[1]


def data_set(folder: Path, name: str = "first", shards: int = 2) -> Path:
    """A card, some small files, and shards that the Hub takes for large ones."""
    made = folder / name
    (made / "data").mkdir(parents=True)
    (made / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n---\n# " + name + "\n"
    )
    (made / "facts.json").write_text(json.dumps({"name": name}))
    for shard in range(shards):
        rows = [{"prompt": f"{name} {shard} {row}", "chosen": "yes", "rejected": "no"} for row in range(50)]
        pq.write_table(pa.Table.from_pylist(rows), made / f"data/train-{shard:05}.parquet")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(hub: HubServer, revision: str = "main", kind: str = "dataset") -> dict[str, bytes]:
    """What a reader of the repository finds, but for what the Hub and the push put there themselves."""
    return {path: text for path, text in hub.repo(NAME, kind).texts(revision).items() if path != MANIFEST}


# ---------------------------------------------------------------------------------------------- what a push makes
def test_a_push_makes_main_what_the_folder_is_in_one_commit(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    pushed = client.push(folder, message="Round 1: 100 pairs", tag="round-001")
    repo = hub.repo(NAME)
    assert held(hub) == held(hub, "round-001") == contents(folder)
    assert [commit.title for commit in repo.commits] == ["initial commit", "Round 1: 100 pairs"]
    assert repo.texts()[MANIFEST].decode().splitlines() == sorted(contents(folder))
    assert pushed["commit"] == repo.head.oid == repo.tags["round-001"]
    assert pushed["url"] == f"{hub.address}/datasets/{NAME}"
    assert sorted(pushed["sent"]) == sorted(contents(folder))
    assert (pushed["present"], pushed["deleted"]) == (0, [])
    assert pushed["bytes"] == sum(map(len, contents(folder).values()))


def test_a_folder_of_many_batches_is_one_commit(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path, shards=70)
    client.push(folder)
    assert held(hub) == contents(folder)
    assert len(hub.repo(NAME).commits) == 2


def test_a_repository_is_private_unless_a_public_one_is_asked_for(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = data_set(tmp_path)
    assert client.push(folder)["private"] is True
    assert client.push(folder, repo="org/open", private=False)["private"] is False
    assert (hub.repo(NAME).private, hub.repo("org/open").private) == (True, False)


def test_a_private_push_never_goes_to_a_public_repository(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.make(NAME, private=False)
    assert re.search("'org/pairs' is public.*nothing was sent", client.refused(data_set(tmp_path)))
    assert hub.repo(NAME).texts() == {}
    assert not hub.asked("^(POST|PUT|DELETE)")


def test_a_private_repository_stays_private_and_the_push_says_so(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    hub.make(NAME, private=True)
    assert client.push(data_set(tmp_path), private=False)["private"] is True
    assert hub.repo(NAME).private


def test_files_an_older_push_brought_are_deleted_and_others_are_left(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    older = data_set(tmp_path, "first", shards=4)
    (older / ".gitattributes").write_text("*.parquet filter=lfs diff=lfs merge=lfs -text\n")
    client.push(older)
    repo = hub.repo(NAME)
    repo.add("a licence", "", {**repo.head.files, "LICENSE": File(b"do as you like", large=False)})
    newer = data_set(tmp_path, "second", shards=2)
    (newer / "facts.json").unlink()
    pushed = client.push(newer, message="Round 2")
    assert held(hub) == {**contents(newer), "LICENSE": b"do as you like"}
    assert pushed["deleted"] == ["data/train-00002.parquet", "data/train-00003.parquet", "facts.json"]
    assert ".gitattributes" in repo.head.files
    assert [commit.title for commit in repo.commits[2:]] == ["a licence", "Round 2"]


def test_a_file_that_did_not_change_is_not_sent_again(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    client.push(folder)
    (folder / "facts.json").write_text("{}")
    hub.requests.clear()
    pushed = client.push(folder)
    assert (pushed["sent"], pushed["present"]) == (["facts.json"], 3)
    assert [json.loads(line)["key"] for line in hub.asked("/commit/")[0].body.splitlines()] == ["header", "file"]
    assert not hub.asked("lfs")


def test_nothing_local_is_told(hub: HubServer, client: Client, tmp_path: Path) -> None:
    client.push(data_set(tmp_path), tag="round-001")
    for request in hub.requests:
        said = f"{request} {dict(request.headers)} ".encode() + request.body
        assert str(tmp_path).encode() not in said


# ---------------------------------------------------------------------------------------------- again
def test_a_repeated_push_changes_nothing_and_sends_nothing(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    first = client.push(folder)
    hub.requests.clear()
    again = client.push(folder)
    assert (again["commit"], again["sent"], again["present"], again["bytes"]) == (first["commit"], [], 4, 0)
    assert not hub.asked("^(POST|PUT|DELETE)")
    assert len(hub.repo(NAME).commits) == 2


def test_rounds_pushed_again_leave_main_and_tags_as_they_are(hub: HubServer, client: Client, tmp_path: Path) -> None:
    rounds = {f"round-00{number}": data_set(tmp_path, f"round {number}") for number in (1, 2, 3)}
    for _ in range(2):
        for tag, folder in rounds.items():
            client.push(folder, tag=tag)
    assert len(hub.repo(NAME).made) == 4
    assert held(hub) == contents(rounds["round-003"])
    for tag, folder in rounds.items():
        assert held(hub, tag) == contents(folder)


def test_a_tag_moves_only_where_that_is_asked_for(hub: HubServer, client: Client, tmp_path: Path) -> None:
    first = client.push(data_set(tmp_path, "first"), tag="round-001")
    other = data_set(tmp_path, "other")
    before = list(hub.repo(NAME).commits)
    assert re.search(f"'round-001'.*{first['commit'][:12]}.*differs", client.refused(other, tag="round-001"))
    assert hub.repo(NAME).commits == before
    moved = client.push(other, tag="round-001", move_tag=True)
    assert held(hub, "round-001") == contents(other)
    assert moved["moved_from"] == first["commit"]


@pytest.mark.parametrize("killed", [None, "POST .*/branch/", "POST .*/commit/", "POST .*/tag/", "DELETE .*/branch/"])
def test_an_older_round_leaves_main_at_the_newest(
    killed: str | None, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    rounds = {f"round-{number:03}": data_set(tmp_path, f"round {number}") for number in (9, 10)}
    client.push(rounds["round-010"], tag="round-010")
    if killed is not None:
        hub.fault(killed, "hold")
        with Client(hub, tmp_path / "killed") as one:
            one.start("push", folder=rounds["round-009"], repo=NAME, tag="round-009")
            assert hub.held.wait(60), one.log.read_text()
    client.push(rounds["round-009"], tag="round-009")
    assert held(hub) == held(hub, "round-010") == contents(rounds["round-010"])
    assert held(hub, "round-009") == contents(rounds["round-009"])
    assert {*hub.repo(NAME).branches} == {"main"}
    assert len(hub.repo(NAME).made) == 3


def test_a_branch_is_not_mistaken_for_a_tag(hub: HubServer, client: Client, tmp_path: Path) -> None:
    repo = hub.make(NAME)
    repo.branches["round-001"] = repo.head.oid
    assert "has a branch 'round-001'" in client.refused(data_set(tmp_path), tag="round-001")


# ---------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize("fault", ["cut", "lost", 429, 500, 502, 503, 504], ids=str)
def test_a_push_survives_one_fault_on_every_request_it_makes(
    fault: int | str, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = data_set(tmp_path)
    for pattern in ON_THE_WAY:
        hub.fault(pattern, fault)
    pushed = client.push(folder, tag="round-001", message="Round 1")
    assert [each.times for each in hub.faults] == [0] * len(ON_THE_WAY)
    assert held(hub) == held(hub, "round-001") == contents(folder)
    assert [commit.title for commit in hub.repo(NAME).commits] == ["initial commit", "Round 1"]
    assert sorted(pushed["sent"]) == sorted(contents(folder))
    assert pushed["private"] is True


@pytest.mark.parametrize("fault", ["cut", "lost", 503], ids=str)
def test_a_second_push_survives_faults_where_it_reads_moves_and_deletes(
    fault: int | str, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    client.push(data_set(tmp_path, "first", shards=3), tag="round-001")
    second = data_set(tmp_path, "second")
    client.push(second, tag="round-002")
    for pattern in (f"GET .*/resolve/.*/{MANIFEST}", "POST .*/branch/", "DELETE .*/tag/", "POST .*/tag/",
                    "POST .*/commit/", "DELETE .*/branch/"):  # fmt: skip
        hub.fault(pattern, fault)
    third = data_set(tmp_path, "third", shards=1)
    client.push(third, tag="round-001", move_tag=True)
    assert [each.times for each in hub.faults] == [0] * len(hub.faults)
    assert held(hub) == held(hub, "round-002") == contents(second)
    assert held(hub, "round-001") == contents(third)
    assert ({*hub.repo(NAME).branches}, len(hub.repo(NAME).made)) == ({"main"}, 4)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.fault("POST .*/commit/", "lost")
    pushed = client.push(data_set(tmp_path))
    assert len(hub.repo(NAME).commits) == 2
    assert pushed["commit"] == hub.repo(NAME).head.oid
    assert len(hub.asked("PUT /lfs/")) == 2


def test_somebody_elses_commit_in_between_is_kept(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder, repo = data_set(tmp_path), hub.make(NAME)
    theirs = {"LICENSE": File(b"do as you like", large=False)}
    hub.fault("POST .*/commit/", lambda: repo.add("theirs", "", {**repo.head.files, **theirs}))
    client.push(folder)
    assert held(hub) == {**contents(folder), "LICENSE": b"do as you like"}
    assert [request.status for request in hub.asked("/commit/")] == [412, 200]


@pytest.mark.parametrize("path", ["/commit/", "/preupload/"], ids=["ours", "the library's"])
def test_retry_after_is_obeyed(path: str, hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.fault(path, 429, headers={"Retry-After": "2"})
    client.push(data_set(tmp_path), hurry=False)
    refused, taken = hub.asked(path)[:2]
    assert taken.at - refused.at >= 2


def test_a_rate_limit_that_says_when_it_ends_is_obeyed(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.fault("/commit/", 429, headers={"RateLimit": '"api";r=0;t=2', "RateLimit-Policy": '"fixed";"api";q=500;w=300'})
    client.push(data_set(tmp_path), hurry=False)
    refused, taken = hub.asked("/commit/")[:2]
    assert taken.at - refused.at >= 2


def test_a_slow_hub_is_waited_for(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    hub.fault("PUT /lfs/", "slow", times=2)
    client.push(folder)
    assert held(hub) == contents(folder)
    assert len(hub.asked("PUT /lfs/")) == 2


def test_a_hub_that_stays_out_of_order_is_given_up_and_later_pushes_send_only_what_is_missing(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = data_set(tmp_path)
    hub.fault("/commit/", 503, times=6, says="maintenance")
    assert re.search(r"committing to dataset 'org/pairs'.*503: maintenance.*push again", client.refused(folder))
    assert len(hub.asked("/commit/")) == 6
    assert hub.repo(NAME).texts() == {}
    hub.requests.clear()
    client.push(folder)
    assert held(hub) == contents(folder)
    assert not hub.asked("PUT /lfs/")


@pytest.mark.parametrize(
    ("where", "after", "commits"),
    [("PUT /lfs/", 1, 1), ("POST .*/commit/", 0, 1), ("POST .*/tag/", 0, 2)], ids=["upload", "commit", "tag"],
)  # fmt: skip
def test_a_push_killed_anywhere_is_finished_by_pushing_again(
    where: str, after: int, commits: int, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    folder = data_set(tmp_path, shards=3)
    hub.fault(where, "hold", after=after)
    with Client(hub, tmp_path / "killed", HF_HUB_DISABLE_PROGRESS_BARS="1") as killed:
        killed.start("push", folder=folder, repo=NAME, tag="round-001")
        assert hub.held.wait(60), killed.log.read_text()
    arrived = set(hub.blobs)
    assert len(hub.repo(NAME).commits) == commits
    hub.requests.clear()
    client.push(folder, tag="round-001")
    assert held(hub) == held(hub, "round-001") == contents(folder)
    assert len(hub.repo(NAME).commits) == 2
    assert {request.path[5:69] for request in hub.asked("PUT /lfs/")} == {*hub.blobs} - arrived


# ---------------------------------------------------------------------------------------------- what cannot be pushed
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HF_TOKEN": None}, "no token to push to 'org/pairs' with: set HF_TOKEN, or run `hf auth login`"),
        ({"HF_TOKEN": "hf_outOfDate"}, r"does not accept the token .401.*: set HF_TOKEN, or run `hf auth login`"),
        ({"HF_TOKEN": READ}, "may not do that .403: You don't have the rights.*HF_TOKEN.*that may write"),
    ],
    ids=["no token", "an old token", "a token that reads"],
)
def test_a_token_that_will_not_do_is_named_by_where_it_comes_from(
    environment: dict[str, str], says: str, hub: HubServer, client: Client, tmp_path: Path
) -> None:
    told = client.refused(data_set(tmp_path), environment=environment)
    assert re.search(says, told), told
    assert hub.repos == {}


def test_a_namespace_that_is_not_ones_own_is_refused(hub: HubServer, client: Client, tmp_path: Path) -> None:
    assert re.search("making dataset 'other/pairs'.*403", client.refused(data_set(tmp_path), repo="other/pairs"))


def test_a_name_that_another_kind_has_is_refused(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.one_namespace = True
    hub.make(NAME, "model")
    assert "the name is taken" in client.refused(data_set(tmp_path))


def test_a_repository_that_goes_away_is_missed(hub: HubServer, client: Client, tmp_path: Path) -> None:
    hub.fault("POST .*/preupload/", lambda: hub.repos.clear())
    assert re.search("org/pairs.*404", client.refused(data_set(tmp_path)))


def test_a_card_the_hub_refuses_stops_a_push_before_it_commits(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    (folder / "README.md").write_text("---\n- no\n- mapping\n---\n")
    assert "Invalid metadata in README.md" in client.refused(folder)
    assert len(hub.repo(NAME).commits) == 1


def test_without_a_network_the_hub_cannot_be_reached(hub: HubServer, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    with Client(hub, tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:1") as client:
        assert re.search("'org/pairs': the Hub cannot be reached.*push again", client.refused(folder))


def test_offline_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):  # as it is in this process
        push(data_set(tmp_path), NAME, "dataset", message="A round")


@pytest.mark.parametrize(
    "to",
    ["hub:", "hub:name", "hub:a/b/c", "hub:-a/b", "hub:a/b.git", "hub:a/b--c", "hub:a/b c", "hub:org/..",
     f"hub:{'a' * 60}/{'b' * 60}", "", "https://huggingface.co/a/b"],
)  # fmt: skip
def test_a_destination_that_names_nothing_is_refused(to: str) -> None:
    with pytest.raises(ConfigError, match="hub:org/name") as refused:
        parse_destination(to)
    assert repr(to) in str(refused.value)


def test_a_destination_is_a_repository_or_a_folder() -> None:
    assert parse_destination("hub:my-org/pairs_v1.2") == "my-org/pairs_v1.2"
    assert parse_destination("out/pairs") == Path("out/pairs")


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"tag": "main"}, ConfigError, "tag 'main' cannot be"),
        ({"tag": "round/2"}, ConfigError, "tag 'round/2' cannot be"),
        ({"message": "two\nlines"}, ConfigError, "one line"),
        ({"message": " "}, ConfigError, "one line"),
        ({"repo": "pairs"}, ConfigError, "'pairs' names no repository"),
        ({"folder": Path("nowhere")}, DataError, "'nowhere' is not a folder"),
        ({"empty": True}, DataError, "has no files to push"),
        ({"listed": True}, DataError, f"has a file '{MANIFEST}'"),
    ],
    ids=str,
)
def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(
    wrong: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    if wrong.pop("empty", False):
        wrong["folder"] = tmp_path
    folder = data_set(tmp_path) if "folder" not in wrong else wrong["folder"]
    if wrong.pop("listed", False):
        (folder / MANIFEST).touch()
    given = {"folder": folder, "repo": NAME, "kind": "dataset", "message": "A round", **wrong}
    with pytest.raises(error, match=says):
        push(**given)


# ---------------------------------------------------------------------------------------------- tokens
def test_the_token_is_in_no_error_log_or_file_whatever_fails(hub: HubServer, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    told: list[str] = []
    ways: list[tuple[str, int | str]] = [(path, 403) for path in ON_THE_WAY]
    ways += [(path, what) for path in ("PUT /lfs/", "POST .*/commit/") for what in (401, 404, 409, 429, 503, "cut")]
    with Client(hub, tmp_path / "home", HF_HUB_VERBOSITY="debug") as client:
        for path, what in ways:
            for state in (hub.repos, hub.blobs, hub.faults):
                state.clear()
            hub.fault(path, what, times=99, says=f"{what}: your token {WRITE} will not do")
            told.append(json.dumps(client.outcome("push", folder=folder, repo=NAME, tag="round-001")))
    assert all("HubError" in each for each in told)
    assert any("your token … will not do" in json.loads(each).get("error", "") for each in told)
    assert all(WRITE not in each for each in told)
    log = client.log.read_text()
    assert "Retrying in" in log
    assert WRITE not in log
    assert "X-Amz-Signature" not in log
    assert all(WRITE.encode() not in text for text in contents(tmp_path).values())
    assert any(request.headers.get("authorization") == f"Bearer {WRITE}" for request in hub.requests)


# ---------------------------------------------------------------------------------------------- reading it back
def test_load_dataset_reads_each_round_by_its_revision(hub: HubServer, client: Client, tmp_path: Path) -> None:
    rounds = {f"round-00{number}": data_set(tmp_path, f"round {number}") for number in (1, 2)}
    for tag, folder in rounds.items():
        client.push(folder, tag=tag)
    rows = {tag: pq.read_table(folder / "data").to_pylist() for tag, folder in rounds.items()}
    assert client.made("load", repo=NAME, revision="round-001", hurry=False) == rows["round-001"]
    assert client.made("load", repo=NAME, revision="round-002", hurry=False) == rows["round-002"]
    assert client.made("load", repo=NAME, hurry=False) == rows["round-002"]


def test_a_snapshot_is_the_folder(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    client.push(folder, tag="round-001")
    read = client.made("snapshot", repo=NAME, revision="round-001", hurry=False)
    from tests.hub_client import digest

    assert {path: read[path] for path in contents(folder)} == {path: digest(folder / path) for path in contents(folder)}
    assert {*read} - {*contents(folder)} == {MANIFEST, ".gitattributes"}


def test_transformers_reads_a_pushed_policy_by_its_revision(hub: HubServer, client: Client, tmp_path: Path) -> None:
    from tests.tiny import make_policy

    policy = make_policy(tmp_path / "policy")
    pushed = client.push(policy.path, kind="model", repo="org/policy", tag="round-001")
    assert pushed["url"] == f"{hub.address}/org/policy"
    read = client.made("model", repo="org/policy", revision="round-001", hurry=False)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = AutoModelForCausalLM.from_pretrained(policy.path).parameters()
    tokens = AutoTokenizer.from_pretrained(policy.path)("it is good").input_ids
    assert read == {"tokens": tokens, "weights": sum(float(each.detach().double().sum()) for each in weights)}
