"""The store's invariants: keys, whole shards, one maker, conservation, and what is left after kill -9."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BusyError, StoreError
from pipeline.protocols import silent
from pipeline.store import Artifact, Draft, Spec, Store, digest, locked, write_json

ROOT = Path(__file__).resolve().parents[2]
SPEC = Spec("numbers", 1, {"shards": 6}, {"policy": "abc"})


def shard(number: int) -> pa.Table:
    return pa.table({"value": pa.array(range(100 * number, 100 * number + 50), pa.int64())})


def build(draft: Draft, shards: int = 6, made: Callable[[int], None] = lambda number: None) -> Artifact:
    for number in range(shards):
        if not draft.has_shard(number):
            draft.commit_shard(number, shard(number))
            made(number)
    return draft.finish({"mean": 1.5}, rows_in=50 * shards)


def never(draft: Draft) -> Artifact:
    raise AssertionError(f"{draft.path} is made already")


# ---------------------------------------------------------------------------------------------- keys
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.randoms(use_true_random=False))
def test_key_does_not_depend_on_the_order_of_settings(config: dict[str, Any], chance: random.Random) -> None:
    items = list(config.items())
    chance.shuffle(items)
    assert Spec("s", 1, config).key == Spec("s", 1, dict(items)).key


@given(JSON, JSON)
def test_digests_are_equal_exactly_where_the_json_is(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


def test_key_changes_with_each_part() -> None:
    specs = [
        SPEC,
        Spec("letters", 1, SPEC.config, SPEC.inputs),
        Spec("numbers", 2, SPEC.config, SPEC.inputs),
        Spec("numbers", 1, {"shards": 7}, SPEC.inputs),
        Spec("numbers", 1, {}, SPEC.inputs),
        Spec("numbers", 1, SPEC.config, {"policy": "abd"}),
        Spec("numbers", 1, SPEC.config, {"judge": "abc"}),
        Spec("numbers", 1, {**SPEC.config, "policy": "abc"}),
    ]
    assert len({spec.key for spec in specs}) == len(specs)


# ---------------------------------------------------------------------------------------------- made once, kept whole
def test_a_made_artifact_is_found_and_not_made_again(tmp_path: Path) -> None:
    made = Store(tmp_path).make(SPEC, build)
    again = Store(tmp_path).make(SPEC, never)
    assert again == made == Store(tmp_path).get(SPEC.stage, SPEC.key)
    assert again.info == {"mean": 1.5}
    assert again.table() == pa.concat_tables([shard(number) for number in range(6)])


def test_committed_shards_survive_an_error_and_the_others_are_made(tmp_path: Path) -> None:
    def fail_at_three(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).make(SPEC, lambda draft: build(draft, made=fail_at_three))
    assert Store(tmp_path).find(SPEC) is None
    made: list[int] = []
    artifact = Store(tmp_path).make(SPEC, lambda draft: build(draft, made=made.append))
    assert made == [4, 5]
    assert artifact.table()["value"].to_pylist() == [100 * n + i for n in range(6) for i in range(50)]


@pytest.mark.parametrize("damage", [lambda raw: raw[:-40], lambda raw: b"", lambda raw: raw[:50] + b"?" + raw[51:]])
def test_a_torn_shard_is_made_again_and_the_whole_ones_are_not(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    draft = Draft(tmp_path, SPEC)
    for number in range(3):
        draft.commit_shard(number, shard(number))
    torn = next(tmp_path.glob("00001-*.parquet"))
    torn.write_bytes(damage(torn.read_bytes()))
    made: list[int] = []
    artifact = build(Draft(tmp_path, SPEC), 3, made.append)
    assert made == [1]
    assert artifact.table().num_rows == 150


def test_half_written_files_are_cleared_and_never_read(tmp_path: Path) -> None:
    for name in ("00000.part", "manifest.json.part"):
        (tmp_path / name).write_bytes(b"PAR1 half")
    draft = Draft(tmp_path, SPEC)
    assert draft.reused == 0
    assert not list(tmp_path.glob("*.part"))


def test_a_shard_is_committed_under_its_checksum_and_read_back(tmp_path: Path) -> None:
    draft = Draft(tmp_path, SPEC)
    draft.commit_shard(0, shard(0))
    assert Draft(tmp_path, SPEC).reused == 1
    assert pq.read_table(next(tmp_path.glob("00000-*.parquet"))) == shard(0)


def test_a_shard_missing_in_the_middle_is_never_declared_complete(tmp_path: Path) -> None:
    draft = Draft(tmp_path, SPEC)
    draft.commit_shard(0, shard(0))
    draft.commit_shard(2, shard(2))
    with pytest.raises(AssertionError, match="in the middle"):
        draft.finish()
    assert not (tmp_path / "manifest.json").exists()


def test_seconds_add_up_over_sessions(tmp_path: Path) -> None:
    Draft(tmp_path, SPEC).commit_shard(0, shard(0))
    (tmp_path / "seconds").write_text("1000.0")
    assert build(Draft(tmp_path, SPEC), 1).seconds >= 1000.0
    assert not (tmp_path / "seconds").exists()


@given(out=st.integers(0, 5), dropped=st.integers(0, 5), failed=st.integers(0, 5), rows_in=st.integers(0, 15))
def test_finish_refuses_when_a_row_went_missing(
    tmp_path_factory: pytest.TempPathFactory, out: int, dropped: int, failed: int, rows_in: int
) -> None:
    path = tmp_path_factory.mktemp("draft")
    draft = Draft(path, SPEC)
    draft.commit_shard(0, shard(0).slice(0, out))
    if rows_in == out + dropped + failed:
        artifact = draft.finish(None, rows_in, {"ties": dropped}, {"timeout": failed})
        assert artifact.manifest["rows"] == artifact.manifest["kept"] == out
    else:
        with pytest.raises(StoreError, match=f"numbers: {rows_in} rows in, but {out} kept, {dropped + failed}"):
            draft.finish(None, rows_in, {"ties": dropped}, {"timeout": failed})
        assert not (path / "manifest.json").exists()


def test_one_row_in_may_give_several_rows_out_but_none_goes_missing(tmp_path: Path) -> None:
    draft = Draft(tmp_path, SPEC)
    draft.commit_shard(0, shard(0).slice(0, 5))
    with pytest.raises(StoreError, match="numbers: 4 rows in, but 2 kept, 1 dropped"):
        draft.finish(rows_in=4, dropped={"ties": 1}, kept=2)
    manifest = draft.finish(rows_in=3, dropped={"ties": 1}, kept=2).manifest
    assert (manifest["rows"], manifest["kept"]) == (5, 2)


def test_what_is_not_there_is_a_store_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no complete artifact numbers/0123"):
        Store(tmp_path).get("numbers", "0123")
    with pytest.raises(StoreError, match="no rows"):
        Store(tmp_path).make(Spec("empty", 1), lambda draft: draft.finish()).table()


def test_a_damaged_artifact_is_a_store_error_that_says_what_to_delete(tmp_path: Path) -> None:
    artifact = Store(tmp_path).make(SPEC, build)
    (artifact.path / artifact.manifest["shards"][2]["file"]).write_bytes(b"not Parquet")
    with pytest.raises(StoreError, match=f"cannot be read .*; delete {artifact.path}"):
        artifact.table()
    (artifact.path / artifact.manifest["shards"][2]["file"]).unlink()
    with pytest.raises(StoreError, match=f"delete {artifact.path}"):
        artifact.table()
    (artifact.path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=f"is not JSON .*; delete {artifact.path}"):
        Store(tmp_path).find(SPEC)


def test_write_json_leaves_the_old_file_where_the_new_value_cannot_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"round": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "state.json", {"round": object()})
    assert json.loads((tmp_path / "state.json").read_text()) == {"round": 1}


# ---------------------------------------------------------------------------------------------- several processes
HOLD = """
import sys
from pathlib import Path
from tests.pipeline.test_store import SPEC, build, shard
from pipeline.store import Store

def hold(draft):
    draft.commit_shard(0, shard(0))
    print("holding", flush=True)
    sys.stdin.readline()
    return build(draft)

Store(Path(sys.argv[1])).make(SPEC, hold)
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is making SPEC, with shard 0 committed; a line on its stdin lets it finish."""
    command = [sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            yield process
        finally:
            process.kill()


@contextmanager
def second_maker(root: Path, build: Callable[[Draft], Artifact]) -> Iterator[list[Artifact]]:
    """A thread that makes SPEC; leaving the block waits for what it made."""
    made: list[Artifact] = []
    thread = threading.Thread(target=lambda: made.append(Store(root).make(SPEC, build)))
    thread.start()
    yield made
    thread.join(timeout=60)
    assert made, "the second maker failed, or is still waiting"


def test_a_second_maker_of_a_key_waits_and_finds_it_made(tmp_path: Path) -> None:
    with holder(tmp_path) as first, second_maker(tmp_path, never) as made:
        assert made == []
        first.communicate("finish\n")
        assert first.returncode == 0
    assert made[0].table().num_rows == 300


def test_a_second_maker_takes_over_from_a_killed_one_and_keeps_its_shards(tmp_path: Path) -> None:
    numbers: list[int] = []
    with holder(tmp_path) as first, second_maker(tmp_path, lambda draft: build(draft, made=numbers.append)) as made:
        first.send_signal(signal.SIGKILL)
    assert numbers == [1, 2, 3, 4, 5]
    assert made[0].table().num_rows == 300


def test_busy_names_the_holder(tmp_path: Path) -> None:
    lock = Store(tmp_path).root / SPEC.stage / SPEC.key / ".lock"
    with holder(tmp_path) as first:
        with (
            pytest.raises(BusyError, match=rf"^run food is busy \(process {first.pid}\)$"),
            locked(lock, busy="run food is busy"),
        ):
            pass
        first.kill()
        first.wait()
        with locked(lock):
            assert lock.read_text() == str(os.getpid())


def test_a_lock_is_free_again_after_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock"), pytest.raises(BusyError, match="is locked"), locked(tmp_path / "lock"):
        pass


# ---------------------------------------------------------------------------------------------- kill -9
TORTURE = """
import os, random, signal, sys, time
from pathlib import Path
from tests.pipeline.test_store import build
from pipeline.store import Spec, Store

root, wanted, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))

def work(spec, log):
    journal = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    Store(root).make(spec, lambda draft: build(draft, made=lambda number: os.write(journal, b"%d\\n" % number)))

def seconds(spec):
    started = time.monotonic()
    work(spec, root / f"{spec.stage}.log")
    return time.monotonic() - started

seconds(Spec("warm-up", 1))  # the first use of Arrow is slow, and children of a warm parent need not pay for it
usual, kills, keys = seconds(Spec("undisturbed", 1)), 0, 0
while kills < wanted:
    finished, before = False, kills
    while not finished:
        child = os.fork()
        if child == 0:
            work(Spec("killed", 1, {"number": keys}), root / f"{keys}.log")
            os._exit(0)
        time.sleep(chance.uniform(0, usual))
        os.kill(child, signal.SIGKILL)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        kills += not finished
        usual *= 1 if finished else 1.05  # whatever the machine's pace, some kills come early and some late
    usual *= 0.8
    keys += 1
print(keys)
"""


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.soak)])
def test_killed_at_any_moment_nothing_is_lost_torn_or_made_twice(tmp_path: Path, kills: int) -> None:
    seed = random.randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", TORTURE, str(tmp_path), str(kills), str(seed)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calm = Store(tmp_path).get("undisturbed", Spec("undisturbed", 1).key)
    for number in range(int(done.stdout)):
        artifact = Store(tmp_path).get("killed", Spec("killed", 1, {"number": number}).key)
        assert artifact.manifest["shards"] == calm.manifest["shards"], f"seed {seed}"  # names, rows and checksums
        assert artifact.table() == calm.table()
        journal = (tmp_path / f"{number}.log").read_text().split()
        assert len(journal) == len(set(journal)), f"seed {seed}: a committed shard was made again: {journal}"
        assert {file.suffix for file in artifact.path.iterdir()} <= {".parquet", ".json", ""}


def test_a_folder_left_half_written_does_not_stop_the_next_session(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Spec("train", 1)

    def killed(draft: Draft) -> Artifact:
        (draft.path / "policy.part").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make(spec, killed)
    assert store.make(spec, lambda draft: draft.finish()).key == spec.key


def test_seconds_add_up_over_sessions_even_without_a_shard(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), Spec("train", 1)

    def killed(draft: Draft) -> Artifact:
        time.sleep(0.2)
        draft.timed(silent)(1, 2, "")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make(spec, killed)
    assert store.make(spec, lambda draft: draft.finish()).seconds >= 0.2
