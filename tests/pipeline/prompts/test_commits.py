"""Each Hub data set of a recipe at its commit, and nothing else of it changed."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PromptsConfig
from pipeline.prompts.commits import at_commits, commits_of


def hub(name: str, revision: str | None = None) -> dict[str, Any]:
    return {"type": "hub", "path": f"org/{name}", "revision": revision}


FILE = {"type": "file", "path": "a.jsonl"}
MIXED = {"type": "mixture", "members": {"a": {"source": FILE}, "b": {"weight": 2.0, "source": hub("b", "main")}}}


@pytest.mark.parametrize("source", [hub("a"), FILE, MIXED])
@pytest.mark.parametrize("against", [None, {"against": [FILE, hub("held")], "ngram": 8}])
def test_each_source_gets_its_commit_and_all_else_stays(source: Any, against: Any) -> None:
    settings = {"source": source, "decontaminate": against, "per_round": 3}
    config = PromptsConfig.model_validate(settings)
    commits = {key: f"commit of {each.path}" for key, each in config.single_sources() if each.type == "hub"}
    settled = at_commits(config, commits)
    assert type(settled.source) is type(config.source)
    for (key, before), (same, after) in zip(config.single_sources(), settled.single_sources(), strict=True):
        assert key == same
        assert after == (before.model_copy(update={"revision": commits[key]}) if key in commits else before)
    assert settled.model_dump(exclude={"source", "decontaminate"}) == config.model_dump(
        exclude={"source", "decontaminate"}
    )
    assert settled.weights == config.weights
    assert commits_of(config, commits) == commits  # what is known is asked nobody for


def test_a_folder_has_no_commit_nor_has_what_nobody_tells_of(tmp_path: Path) -> None:
    for source in ({"type": "hub", "path": str(tmp_path)}, hub("a"), FILE):  # the Hub is switched off here
        config = PromptsConfig.model_validate({"source": source})
        assert commits_of(config, {}) == {} and at_commits(config, {}) == config
