"""A pair is found by its id wherever it lies, in little memory, or it is said how much was searched."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.lineage import search
from pipeline.lineage.search import find_pair, pair_artifacts, pair_ids
from pipeline.store import Artifact
from pipeline.tables import read_pairs
from tests.traced import BASE, Place, pairs_of


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def all_of(place: Place) -> list[Artifact]:
    return list(pair_artifacts(place.store, [], []))


def test_every_pair_is_found_by_its_whole_id_and_by_eight_digits(place: Place) -> None:
    artifacts = [place.round(number, BASE, count=5)["pairs"] for number in range(3)]
    for artifact in artifacts:
        for pair in read_pairs(artifact.table()):
            for given in (pair.id, pair.id[:8], f" {pair.id[:12].upper()} "):
                found = find_pair(all_of(place), given, [])
                assert found.id == pair.id
                assert [where.read() for where in found.places] == [pair]
                assert found.searched == 15


def test_a_pair_far_into_a_row_group_is_read_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROWS", 2)
    monkeypatch.setattr(search, "IDS", 3)
    artifact = place.round(0, BASE, count=9)["pairs"]
    for pair in read_pairs(artifact.table()):
        (where,) = find_pair([artifact], pair.id, []).places
        assert where.read() == pair


def test_a_pair_that_was_paired_twice_is_found_in_both_artifacts_the_newest_run_first(place: Place) -> None:
    made = place.round(0, BASE)
    again = place.pairs(made["candidates"], made["judgments"], take_off=1.0)
    pair = pairs_of(made["pairs"])[0]["pair_id"]
    for order in ([made["pairs"], again], [again, made["pairs"]]):
        found = find_pair(pair_artifacts(place.store, [each.key for each in order], []), pair, [])
        assert [where.artifact.key for where in found.places] == [each.key for each in order]


def test_an_unknown_pair_is_refused_with_how_much_was_searched(place: Place) -> None:
    place.round(0, BASE, count=3)
    place.round(1, BASE, count=4)
    with pytest.raises(ConfigError, match=r"'ffffffff': none of 7 pairs in 2 artifacts"):
        find_pair(all_of(place), "ffffffff", [])
    with pytest.raises(ConfigError, match="none of 0 pairs in 0 artifacts"):
        find_pair([], "ffffffff", [])


@pytest.mark.parametrize("given", ["", "abc", "1234567", "not-a-digest", "zzzzzzzz", "12345678/.."])
def test_what_cannot_be_a_pair_is_refused_before_anything_is_read(given: str) -> None:
    with pytest.raises(ConfigError, match="8 or more"):
        find_pair(iter([]), given, [])


def test_a_prefix_of_several_pairs_names_them(place: Place) -> None:
    artifact = place.round(0, BASE, count=3)["pairs"]
    shard = artifact.path / artifact.manifest["shards"][0]["file"]
    table = pq.read_table(shard)
    ids = [f"abcdef01{number:024x}" for number in range(3)]
    pq.write_table(table.set_column(table.schema.get_field_index("pair_id"), "pair_id", pa.array(ids)), shard)
    with pytest.raises(ConfigError) as said:
        find_pair(all_of(place), "abcdef01", [])
    assert all(each in str(said.value) for each in [*ids, "3 pairs"])
    assert find_pair(all_of(place), ids[1], []).id == ids[1]


def test_a_damaged_file_is_said_and_the_others_are_searched(place: Place) -> None:
    broken, whole = place.round(0, BASE)["pairs"], place.round(1, BASE)["pairs"]
    (broken.path / broken.manifest["shards"][0]["file"]).write_bytes(b"PAR1 no more")
    gaps: list[str] = []
    pair = pairs_of(whole)[2]["pair_id"]
    assert find_pair(all_of(place), pair, gaps).id == pair
    (gap,) = gaps
    assert str(broken.path) in gap
    with pytest.raises(ConfigError, match="1 files could not be read"):
        find_pair(all_of(place), "ffffffff", [])


def test_ids_of_an_artifact_are_listed_up_to_a_limit(place: Place) -> None:
    artifact = place.round(0, BASE, count=5)["pairs"]
    ids = [row["pair_id"] for row in pairs_of(artifact)]
    assert pair_ids(artifact, 3) == ids[:3]
    assert pair_ids(artifact, 50) == ids
    assert pair_ids(artifact, 0) == []
