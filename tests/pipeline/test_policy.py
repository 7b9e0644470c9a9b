"""A policy's digest names its weights and nothing else; its probe refuses everybody else's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pipeline.errors import DataError, WeightSyncError
from pipeline.policy import (
    Probe,
    architecture_digest,
    files_digest,
    prove,
    read_policy,
    read_probe,
    tensor_shapes,
    weights_digest,
    write_probe,
)
from pipeline.types import Policy

Weights = dict[str, np.ndarray]
WEIGHTS: Weights = {
    "embed": np.arange(12, dtype=np.float32).reshape(4, 3),
    "layers.0": np.ones((2, 2), dtype=np.float16),
    "norm": np.array(3.0, dtype=np.float32),
    "empty": np.zeros((0, 5), dtype=np.float32),
}


def save(weights: Weights, path: Path, files: list[int], metadata: dict[str, str] | None = None) -> Path:
    """Weight i goes into file ``files[i]``."""
    for number in set(files):
        part = {name: weights[name] for name, file in zip(weights, files, strict=True) if file == number}
        save_file(part, path / f"model-{number:05d}.safetensors", metadata)
    return path


@given(st.permutations(list(WEIGHTS)), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_digest_does_not_depend_on_files_order_or_metadata(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], files: list[int]
) -> None:
    whole = save(WEIGHTS, tmp_path_factory.mktemp("whole"), [0, 0, 0, 0])
    split = tmp_path_factory.mktemp("split")
    save({name: WEIGHTS[name] for name in order}, split, files, {"format": "pt"})
    assert weights_digest(split) == weights_digest(whole)
    assert tensor_shapes(split) == {"embed": (4, 3), "layers.0": (2, 2), "norm": (), "empty": (0, 5)}


def test_digest_changes_with_a_value_a_name_a_shape_and_a_type(tmp_path: Path) -> None:
    nudged = WEIGHTS["embed"].copy()
    nudged[-1, -1] = np.nextafter(nudged[-1, -1], np.float32(99))
    variants: list[Weights] = [
        WEIGHTS,
        {**WEIGHTS, "embed": nudged},
        {**WEIGHTS, "embed": WEIGHTS["embed"].reshape(3, 4)},
        {**WEIGHTS, "embed": WEIGHTS["embed"].view(np.int32)},
        {**WEIGHTS, "empty": np.zeros((5, 0), dtype=np.float32)},
        {name.replace("norm", "norm.weight"): weight for name, weight in WEIGHTS.items()},
        {name: weight for name, weight in WEIGHTS.items() if name != "empty"},
    ]
    digests = set()
    for number, weights in enumerate(variants):
        path = tmp_path / str(number)
        path.mkdir()
        digests.add(weights_digest(save(weights, path, [0] * len(weights))))
    assert len(digests) == len(variants)


def test_the_same_weights_elsewhere_are_the_same_policy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, there = (read_policy(save(WEIGHTS, tmp_path / name, [0, 0, 0, 0])) for name in "ab")
    assert here.digest == there.digest
    assert here.path != there.path


def test_files_count_for_what_they_say_and_not_for_where_they_are_from(tmp_path: Path) -> None:
    said = {"config.json": {"rope_theta": 1.0}, "generation_config.json": {"eos_token_id": 2}, "tokenizer.json": {}}

    def digests(**changed: dict[str, object]) -> tuple[str, str]:
        for name, content in said.items():
            (tmp_path / name).write_text(json.dumps(content | changed.get(name.removesuffix(".json"), {})))
        return files_digest(tmp_path), architecture_digest(tmp_path)

    whole = digests()
    (tmp_path / "probe.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "README.md").write_text("of somebody")
    assert digests(config={"_name_or_path": "there", "dtype": "bfloat16"}) == whole
    assert [each == other for each, other in zip(digests(tokenizer={"a": 1}), whole, strict=True)] == [False, True]
    assert digests(generation_config={"eos_token_id": 3})[0] != whole[0]
    assert [each == other for each, other in zip(digests(config={"rope_theta": 2.0}), whole, strict=True)] == [
        False
    ] * 2
    assert digests() == whole
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert digests()[0] != whole[0]


@pytest.mark.parametrize("size", [4, 60, -1])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    file = save(WEIGHTS, tmp_path, [0, 0, 0, 0]) / "model-00000.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"model-00000.safetensors .*cut short"):
        weights_digest(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*.safetensors"):
        read_policy(tmp_path)


# ---------------------------------------------------------------------------------------------- the probe
PROBE = Probe([[0, 4, 5, 1], [0, 7]], [[-0.5, -1.25, -3.0], [-2.0]], "float32")


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    write_probe(tmp_path, PROBE)
    return Policy("d" * 64, tmp_path)


def test_probe_comes_back_exactly(policy: Policy) -> None:
    assert read_probe(policy.path) == PROBE


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_log_probabilities_keep_every_bit_in_the_probe(
    tmp_path_factory: pytest.TempPathFactory, logprobs: list[float]
) -> None:
    path = tmp_path_factory.mktemp("policy")
    write_probe(path, Probe([list(range(len(logprobs) + 1))], [logprobs], "float32"))
    assert read_probe(path).logprobs == [logprobs]


def test_numbers_within_the_tolerance_are_proof(policy: Policy) -> None:
    assert prove(policy, [[-0.5, -1.25, -3.0], [-2.0]], 1e-9) == 0.0
    assert prove(policy, [[-0.5, -1.2503, -3.0], [-2.0]], 1e-3) == pytest.approx(3e-4)


def test_many_small_differences_are_refused_where_one_is_not(policy: Policy) -> None:
    """One update old in 16 bit: no token is far off, but all of them are off."""
    assert prove(policy, [[-0.5, -1.3, -3.0], [-2.0]], 0.25) == pytest.approx(0.05)
    with pytest.raises(WeightSyncError, match="mean 0.05"):
        prove(policy, [[-0.55, -1.3, -3.05], [-2.05]], 0.25)


@pytest.mark.parametrize("wrong", [-2.5, math.nan, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 0)])
def test_one_wrong_number_anywhere_is_refused(policy: Policy, wrong: float, place: tuple[int, int]) -> None:
    measured = [list(sequence) for sequence in PROBE.logprobs]
    measured[place[0]][place[1]] = wrong
    with pytest.raises(WeightSyncError, match="does not serve policy dddddddddddd: .* allowed: 0.1 "):
        prove(policy, measured, 0.1)


def test_the_difference_is_the_largest_and_the_mean(policy: Policy) -> None:
    assert PROBE.differences([[-0.5, -1.0, -4.0], [-2.0]]) == (1.0, 0.3125)
    assert PROBE.differences([[-0.5, math.nan, -3.0], [-2.0]]) == (math.inf, math.inf)


def test_measurements_of_another_shape_are_a_bug_and_not_a_difference(policy: Policy) -> None:
    for measured in ([[-0.5, -1.25], [-2.0]], [[-0.5, -1.25, -3.0]]):
        with pytest.raises(ValueError, match="shorter"):
            prove(policy, measured, 0.1)


def test_a_checkpoint_of_somebody_else_has_no_probe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match=r"has no probe.json"):
        read_probe(tmp_path)
