"""The pairs artifact: the same whoever works on it, however often it is interrupted, in memory that does not grow."""

import random
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import candidates as asked
from pipeline.candidates import write_asked
from pipeline.config import PairingConfig, ReplayConfig
from pipeline.errors import StoreError
from pipeline.pairing import artifact as pairs_artifact
from pipeline.pairing.artifact import BYTES, DROPPED, ROWS, VERSION, Round, make_pairs, pairs_spec
from pipeline.protocols import silent
from pipeline.store import Artifact, Draft, Spec, Store, digest
from pipeline.tables import DROPS, PAIRS, candidates_table, judgments_table, read_pairs
from pipeline.types import Group, Judgment

from .rounds import group, judged, pair_round

CONFIG = PairingConfig(margin=0.5, margin_unit="sigma", keep=0.7, length_regression=True)


def stored(store: Store, groups: list[Group], judgments: list[Judgment]) -> Round:
    """A round of those groups, as sampling and judging leave it."""
    shards = asked.shards(list(zip(groups, judgments, strict=True)))

    def sampled(draft: Draft) -> Artifact:
        write_asked(draft, [one.prompt for one in groups])
        for number, shard in enumerate(shards):
            draft.commit_shard(number, candidates_table(one for one, _ in shard))
        return draft.finish()

    def scored(draft: Draft) -> Artifact:
        for number, shard in enumerate(shards):
            draft.commit_shard(number, judgments_table(judgment for _, judgment in shard))
        return draft.finish()

    candidates = store.make(Spec("candidates", 1), sampled)
    return Round(candidates, store.make(Spec("judgments", 1, {}, {"candidates": candidates.key}), scored))


def drawn(count: int) -> tuple[list[Group], list[Judgment]]:
    rng = random.Random(0)
    groups = [group(f"p{n}", [rng.choice("abcdef") * rng.randrange(6) for _ in range(4)]) for n in range(count)]
    return groups, judged(groups, [[rng.choice([None, 0.0, 1.0, rng.gauss(0, 1)]) for _ in range(4)] for _ in groups])


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Round]:
    """Ten input shards, three to an output shard."""
    monkeypatch.setattr(asked, "SHARD", 10)
    monkeypatch.setattr(pairs_artifact, "ROWS", 120)
    store = Store(tmp_path)
    return store, stored(store, *drawn(97))


def make(store: Store, source: Round, threads: int | None = 1, config: PairingConfig = CONFIG) -> Artifact:
    spec = pairs_spec(source.candidates, source.judgments, config, 0)
    return store.make(spec, lambda draft: make_pairs(draft, source, config, threads, silent))


def test_a_round_on_disk_gives_what_it_gives_in_memory(many: tuple[Store, Round]) -> None:
    store, source = many
    made = make(store, source)
    groups, judgments = drawn(97)
    found = pair_round(groups, judgments, CONFIG)
    ours = [(p.prompt, p.chosen, p.rejected, p.score_chosen, p.score_rejected) for p in read_pairs(made.table())]
    assert ours == [(p.prompt, p.chosen, p.rejected, p.score_chosen, p.score_rejected) for p in found.pairs]
    assert [tuple(row.values()) for row in pq.read_table(made.path / DROPPED).to_pylist()] == found.dropped
    assert made.manifest["dropped"] == found.counts
    assert made.manifest["kept"] + sum(found.counts.values()) == source.groups == 97
    assert len(made.manifest["shards"]) == 4
    assert len(list(made.path.glob("dropped*"))) == 1


def test_threads_change_nothing(many: tuple[Store, Round], tmp_path: Path) -> None:
    store, source = many
    other = Store(tmp_path / "other")
    alone, together = make(store, source, 1), make(other, source, 4)
    assert [shard["checksum"] for shard in alone.manifest["shards"]] == [
        shard["checksum"] for shard in together.manifest["shards"]
    ]
    assert (alone.path / DROPPED).read_bytes() == (together.path / DROPPED).read_bytes()


def test_an_interrupted_pairing_goes_on_with_the_shards_that_are_missing(
    many: tuple[Store, Round], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, source = many
    pair = pairs_artifact.pair
    worked: list[int] = []

    def interrupted(*arguments: object) -> object:
        worked.append(1)
        if len(worked) == 3:
            raise KeyboardInterrupt
        return pair(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs_artifact, "pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(store, source)
    made = make(store, source)
    assert len(worked) == 3 + 2  # two of the four output shards were whole
    monkeypatch.setattr(pairs_artifact, "pair", pair)
    whole = make(Store(tmp_path / "other"), source)
    for name in ("shards", "rows", "kept", "dropped", "info"):
        assert made.manifest[name] == whole.manifest[name]
    assert (made.path / DROPPED).read_bytes() == (whole.path / DROPPED).read_bytes()


def test_what_an_older_version_left_half_made_is_not_gone_on_with(
    many: tuple[Store, Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = many
    spec = pairs_spec(source.candidates, source.judgments, CONFIG, 0)
    older = replace(spec, version=spec.version - 1)

    def interrupted(draft: Draft) -> Artifact:
        draft.commit_shard(0, PAIRS.empty_table().select(["pair_id"]))  # of other columns
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.make(older, interrupted)
    assert make(store, source).table().num_rows > 0

    shape = digest([[[str(field) for field in each] for each in (PAIRS, DROPS)], ROWS, BYTES])
    assert (VERSION, shape[:8]) == (5, "7af65573"), "columns or the cut into shards changed: raise VERSION"


def test_settings_of_replay_do_not_pair_anew_and_others_do(many: tuple[Store, Round]) -> None:
    store, source = many
    made = make(store, source)
    replayed = CONFIG.model_copy(update={"replay": ReplayConfig(share=0.5)})
    assert pairs_spec(source.candidates, source.judgments, replayed, 0).key == made.key
    assert make(store, source, config=CONFIG.model_copy(update={"margin": 0.0})).key != made.key


def test_a_round_without_groups_and_one_without_pairs_are_whole(tmp_path: Path) -> None:
    none = make(Store(tmp_path / "a"), stored(Store(tmp_path / "a"), [], []))
    assert (none.manifest["rows"], none.manifest["kept"], none.table().num_rows) == (0, 0, 0)
    groups = [group("p", "ab")]
    tied = make(Store(tmp_path / "b"), stored(Store(tmp_path / "b"), groups, judged(groups, [[1, 1]])))
    assert (tied.manifest["rows"], tied.manifest["dropped"]) == (0, {"tie": 1})


def test_a_shard_that_is_gone_is_named(many: tuple[Store, Round]) -> None:
    store, source = many
    gone = source.judgments.path / source.judgments.manifest["shards"][3]["file"]
    gone.unlink()
    with pytest.raises(StoreError, match=gone.name):
        make(store, source)


def test_text_alone_is_measured_in_words_from_the_disk_as_well(tmp_path: Path) -> None:
    texts = [["one two", "three", "four five six seven"], ["a b c", "d", "e f"]]
    groups = [group(f"p{number}", row, ids=False) for number, row in enumerate(texts)]
    judgments = judged(groups, [[2.0, 1.0, 5.0], [3.5, 1.2, 2.0]])
    config = PairingConfig(length_regression=True)
    store = Store(tmp_path)
    made = make(store, stored(store, groups, judgments), config=config)
    assert made.info["yardstick"]["line"]["middle"] == (2 + 1 + 4 + 3 + 1 + 2) / 6
    found = pair_round(groups, judgments, config)
    assert [pair.margin for pair in read_pairs(made.table())] == [pair.margin for pair in found.pairs]
