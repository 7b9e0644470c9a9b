"""What a stage keeps is found by all that it depends on, and by nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from flows.console import Console
from flows.session import Session
from flows.stages import sample
from pipeline.candidates import all_groups
from pipeline.config import SamplingConfig
from pipeline.policy import read_policy
from pipeline.protocols import Decoding, Sampler
from pipeline.recipe import load_recipe
from pipeline.runs import Run
from pipeline.types import Policy, Prompt
from tests.tiny import make_policy, token_ids

from .small import RECIPE

PROMPTS = [Prompt(f"p{number}", text, token_ids(text)) for number, text in enumerate(("ice", "ramen, pizza"))]


@pytest.fixture
def session(
    tmp_path: Path, lend: Callable[[SamplingConfig, Path], Sampler], monkeypatch: pytest.MonkeyPatch
) -> Session:
    monkeypatch.setattr("flows.session.start_sampler", lend)
    run = Run(tmp_path, "small")
    run.directory.mkdir(parents=True)
    return Session(load_recipe(str(RECIPE), RECIPE.parent, ()), run, Console(quiet=True))


def copy(policy: Policy, path: Path, name: str, **changed: object) -> Policy:
    """The same weights, with other entries in one of the JSON files."""
    shutil.copytree(policy.path, path)
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return read_policy(path)


def test_policies_of_equal_weights_share_samples_where_their_files_say_the_same(
    session: Session, tmp_path: Path
) -> None:
    policy = make_policy(tmp_path / "policy")
    elsewhere = copy(policy, tmp_path / "elsewhere", "config.json", _name_or_path="elsewhere")
    ends = copy(policy, tmp_path / "ends", "generation_config.json", eos_token_id=list(range(34)))
    shutil.copytree(policy.path, tmp_path / "spelt")
    spelt = tmp_path / "spelt" / "tokenizer.json"
    said = json.loads(spelt.read_text())
    words = said["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    spelt.write_text(json.dumps(said))

    found, drawn = {}, {}
    for each in (policy, elsewhere, ends, read_policy(spelt.parent)):
        assert each.digest == policy.digest
        name, decoding = each.path.name, Decoding(max_tokens=12)
        found[name] = sample(session, each, PROMPTS, round=0, n=4, decoding=decoding, label="sample")
        drawn[name] = [asdict(candidate) for group in all_groups(found[name]) for candidate in group.candidates]
    assert found["elsewhere"].key == found["policy"].key
    assert {len(each["token_ids"]) for each in drawn["ends"]} == {1}  # any token ends a completion
    assert [each["token_ids"] for each in drawn["spelt"]] == [each["token_ids"] for each in drawn["policy"]]
    swapped = [each["text"].translate(str.maketrans("ab", "ba")) for each in drawn["policy"]]
    assert [each["text"] for each in drawn["spelt"]] == swapped != [each["text"] for each in drawn["policy"]]
