"""``ratchet pair`` on what is stored, and the replay of earlier rounds' pairs: no engine, no judge, no training."""

import json
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.console import Console
from flows.pairing import margins_table, pairs_table, preview_margins, repair
from flows.replay import check_offline, replay
from pipeline import tables
from pipeline.candidates import write_asked
from pipeline.config import PairingConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import candidates_table, judgments_table, read_pairs
from pipeline.types import Candidate, Group, Judgment, Prompt
from tests.stored import make

QUIET = Console(quiet=True)


def groups_of(round: int) -> list[Group]:
    texts = ["a", "bb", "ccc", "dddd"]
    return [
        Group(
            Prompt(f"r{round}-p{number}", "p", (1,)),
            tuple(
                Candidate(index, tuple(map(ord, text)), text, "stop", 10 * number + index)
                for index, text in enumerate(texts)
            ),
        )
        for number in range(8)
    ]


def keep(run: Run, round: int) -> dict[str, str]:
    """Candidates of a round and their scores, as a run leaves them; their keys."""
    groups = groups_of(round)
    judgments = [Judgment(one.prompt.id, "judge", (float(number), 1.0, 0.5, 0.0)) for number, one in enumerate(groups)]

    def sampled(draft: Draft) -> Artifact:
        write_asked(draft, [one.prompt for one in groups])
        draft.commit_shard(0, candidates_table(groups))
        return draft.finish()

    def judged(draft: Draft) -> Artifact:
        draft.commit_shard(0, judgments_table(judgments))
        return draft.finish()

    candidates = run.store.make(Spec("candidates", 1, {"round": round}), sampled)
    scored = run.store.make(Spec("judgments", 1, {}, {"candidates": candidates.key}), judged)
    return {"candidates": candidates.key, "judgments": scored.key}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two judged rounds, its own pairs made with a margin."""
    run = Run(tmp_path, "stored")
    run.directory.mkdir(parents=True)
    config = {"pairing": PairingConfig(margin=2.0).model_dump(mode="json"), "limits": {"threads": 1}}
    (run.directory / "config.json").write_text(json.dumps(config))
    for round in range(2):
        entry = {"round": round, "artifacts": keep(run, round), "gate": {"decision": "promote"}}
        (run.directory / f"round-{round:03d}.json").write_text(json.dumps(entry))
    return run


def test_rounds_are_paired_anew_by_other_settings_from_what_is_stored(run: Run) -> None:
    result = repair(run, QUIET, overrides=["pairing.margin=0.0", "pairing.pairs_per_prompt=2"])
    assert json.loads(json.dumps(result)) == result
    assert (result["run"], result["pairing"]["margin"], result["pairing"]["pairs_per_prompt"]) == ("stored", 0.0, 2)
    assert [(entry["round"], entry["pairs"], entry["paired"], entry["groups"]) for entry in result["rounds"]] == [
        (0, 16, 8, 8), (1, 16, 8, 8),
    ]  # fmt: skip
    for entry in result["rounds"]:
        assert Path(entry["link"]).resolve() == Path(entry["path"])
        assert run.store.get("pairs", entry["key"]).manifest["rows"] == 16
    (one,) = repair(run, QUIET, rounds=[1], overrides=["pairing.margin=0.0", "pairing.pairs_per_prompt=2"])["rounds"]
    assert one == result["rounds"][1]
    assert len(list(run.store.root.glob("candidates/*"))) == 2  # nothing was sampled


def test_the_runs_own_settings_are_where_it_starts(run: Run) -> None:
    (first, _) = repair(run, QUIET)["rounds"]
    assert (first["pairs"], first["dropped"]) == (6, {"margin": 2})
    assert first["margin"]["mean"] == pytest.approx((2 + 3 + 4 + 5 + 6 + 7) / 6)


@pytest.mark.parametrize(
    ("overrides", "round", "message"),
    [
        (["margin=1"], None, "--set 'margin=1': only pairs are made anew; allowed: pairing.KEY=VALUE"),
        (["pairing.replay.share=0.5"], None, "--set 'pairing.replay.share=0.5' has no effect"),
        (["pairing.margin=-1"], None, "-1"),
        (["pairing.rule=worst"], None, '"worst" is not allowed'),
        ([], 7, "run 'stored' has no finished round 7 to pair anew; it has 0, 1"),
    ],
)
def test_a_wrong_setting_or_round_is_refused(run: Run, overrides: list[str], round: int | None, message: str) -> None:
    for work in (repair, preview_margins):
        with pytest.raises(ConfigError) as refused:
            work(run, QUIET, rounds=None if round is None else [round], overrides=overrides)
        assert message in str(refused.value)


def test_judgments_that_are_gone_are_named(run: Run) -> None:
    (run.store.root / "judgments").rename(run.store.root / "no-judgments")
    with pytest.raises(StoreError, match="no complete artifact judgments/"):
        repair(run, QUIET)


def test_a_table_says_what_each_margin_would_keep(run: Run) -> None:
    result = preview_margins(run, QUIET)
    assert json.loads(json.dumps(result)) == result
    first, _ = result["rounds"]
    # p0: 1 − 0, p1: 1 − 0, then 2 − 0 … 7 − 0; the run's own margin is not applied
    assert (first["margins"][0]["margin"], first["margins"][0]["pairs"]) == (1.0, 8)
    assert first["margins"][-1]["margin"] == 7.0 and first["margins"][-1]["pairs"] == 1
    assert first["margins"][-1]["sigma"] == pytest.approx(7 / first["sigma"])
    assert not list(run.store.root.glob("pairs/*"))


def shown(table: Any) -> str:
    console = Console(to_stdout=True)
    with console.terminal.capture() as captured:
        console.terminal.print(table)
    return captured.get()


def test_tables_are_for_people(run: Run) -> None:
    assert "dropped: 2 margin" in (own := shown(pairs_table(repair(run, QUIET))))
    made = shown(pairs_table(repair(run, QUIET, overrides=["pairing.keep=0.5"])))
    assert "next: " in made and "next:" not in own
    assert "what would each margin keep?" in shown(margins_table(preview_margins(run, QUIET)))


def test_what_is_next_can_be_typed_as_it_is_said(run: Run, tmp_path: Path) -> None:
    made = repair(run, QUIET, rounds=[1], overrides=["pairing.keep=0.5", "pairing.rule=best_random"])
    words = shlex.split(made["next"])
    assert words[1:] == [
        "export", "stored", "--rounds", "1", "--set", "pairing.keep=0.5", "--set", "pairing.rule=best_random",
        "--to", "DIR", "--workspace", str(tmp_path),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------- replay
def session(run: Run, share: float, offline: str | None = None) -> Any:
    """What the replay stage takes of a session."""
    pairing = PairingConfig.model_validate({"replay": {"share": share, "offline": offline}})
    return SimpleNamespace(config=SimpleNamespace(pairing=pairing, seed=0), run=run, store=run.store, console=QUIET)


def rounds_of(run: Run) -> list[Artifact]:
    overrides = ["pairing.margin=0.0", "pairing.pairs_per_prompt=2"]
    return [run.store.get("pairs", entry["key"]) for entry in repair(run, QUIET, overrides=overrides)["rounds"]]


def test_a_share_of_earlier_pairs_is_trained_on_again_under_their_own_round_and_id(run: Run) -> None:
    old, new = rounds_of(run)
    mixed = replay(session(run, 0.2), new, [old], 1)
    assert mixed.info == {"fresh": 16, "replayed": 4, "rounds": {"0": 4, "1": 16}}
    assert mixed.manifest["dropped"] == {"repeated": 0, "not_drawn": 12}
    pairs, known = read_pairs(mixed.table()), {pair.id: pair for pair in read_pairs(old.table())}
    assert pairs[:16] == read_pairs(new.table())
    assert all(pair == known[pair.id] for pair in pairs[16:])
    assert Counter(pair.round for pair in pairs) == {1: 16, 0: 4}


def test_a_replay_is_drawn_the_same_again_and_another_round_draws_others(run: Run, tmp_path: Path) -> None:
    old, new = rounds_of(run)
    drawn = [replay(session(run, 0.2), new, [old], number).table()["pair_id"].to_pylist()[16:] for number in (1, 2)]
    assert drawn[0] != drawn[1]
    assert replay(session(run, 0.2), new, [old], 1).table()["pair_id"].to_pylist()[16:] == drawn[0]


def test_where_there_are_fewer_pairs_all_are_replayed_and_none_twice(run: Run) -> None:
    old, new = rounds_of(run)
    mixed = replay(session(run, 0.9), new, [old, new, old], 1)
    assert mixed.info["replayed"] == 16
    assert mixed.manifest["dropped"] == {"repeated": 32, "not_drawn": 0}
    ids = mixed.table()["pair_id"].to_pylist()
    assert len(set(ids)) == len(ids) == 32


def test_drawn_pairs_are_written_some_at_a_time_and_again_after_a_kill(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.replay.AT_ONCE", 5)
    old, new = rounds_of(run)
    shards = [tables.pairs_table([pair]) for pair in read_pairs(old.table())]
    pool = make(run.store, Spec("pairs", 1, {"apart": True}), shards)
    mixed = replay(session(run, 0.5), new, [pool], 1)
    sizes = [shard["rows"] for shard in mixed.manifest["shards"]]
    assert sizes == [16, 5, 5, 5, 1]
    whole = mixed.table()
    mixed.path.joinpath("manifest.json").unlink()  # as a kill leaves it, with what was written last not there
    mixed.path.joinpath(mixed.manifest["shards"][-1]["file"]).unlink()
    assert replay(session(run, 0.5), new, [pool], 1).table() == whole


def test_pairs_of_another_run_are_drawn_from_as_well(run: Run) -> None:
    old, new = rounds_of(run)
    entry = json.loads((run.directory / "round-000.json").read_text())
    entry["artifacts"]["pairs"] = old.key
    (run.directory / "round-000.json").write_text(json.dumps(entry))
    for offline in ("stored:0",):
        assert replay(session(run, 0.2, offline), new, [], 1).info["replayed"] == 4
    with pytest.raises(ConfigError, match="pairing.replay.offline 'nothing' leads nowhere"):
        replay(session(run, 0.2, "nothing"), new, [], 1)


def test_a_run_that_goes_on_is_replayed_by_the_round_alone(run: Run, tmp_path: Path) -> None:
    old, _ = rounds_of(run)
    policy = run.store.make(Spec("policy", 1), lambda draft: draft.finish({"policy": "0"}))
    for file in run.directory.glob("round-*.json"):
        entry = json.loads(file.read_text())
        entry["artifacts"] |= {"pairs": old.key, "policy": policy.key}
        file.write_text(json.dumps(entry))
    other = SimpleNamespace(name="other", workspace=tmp_path)
    ended, itself = session(run, 0.2, "stored"), session(run, 0.2, "stored")
    ended.run = other
    check_offline(ended)
    with pytest.raises(ConfigError, match="'stored' is a run that goes on; allowed: one that has ended, or RUN:ROUND"):
        check_offline(itself)
    with run.held():
        with pytest.raises(ConfigError, match="goes on"):
            check_offline(ended)
        ended.config.pairing = session(run, 0.2, "stored:0").config.pairing
        check_offline(ended)
