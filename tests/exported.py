"""Small finished runs made by hand through the store, for the tests of exports: no engine, no judge, no training.

Candidate j of a prompt scores j. What is special:

    prompt 0   its worst candidate is empty
    prompt 1   its best candidate was cut at the token limit
    prompt 2   the judge abstains on its best candidate
    prompt 3   three pairs: 3 > 0, 3 > 1, 1 > 0
    the last   all scores are equal, where ``ties``: dropped
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.candidates import asked_digest, shards
from pipeline.config import DataConfig, RunConfig
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec, write_json
from pipeline.tables import drops_table, judgments_table, pairs_table, prompts_table
from pipeline.types import (
    Candidate,
    GateCheck,
    GateDecision,
    Group,
    Judgment,
    Message,
    Policy,
    PreferencePair,
    Prompt,
    RoundState,
)
from tests.stored import make, make_groups

EOS = 2
POLICIES = ["a" * 64, "b" * 64, "c" * 64, "d" * 64]
"""Digests: round k samples from the kth, and trains the next."""
HOSTILE = "---\n# no | heading\n```\n``` <script>alert(1)</script> | `pipes` {{ jinja }} --- \u202e ends"


@dataclass(frozen=True)
class Writing:
    """How prompts and answers become token ids."""

    prompt: Callable[[str], list[int]] = lambda text: [1, *(3 + byte for byte in text.encode())]
    answer: Callable[[str], list[int]] = lambda text: [3 + byte for byte in text.encode()]


@dataclass(frozen=True)
class Making:
    """What a run made by hand is like."""

    rounds: int = 2
    prompts: int = 6
    """A round."""
    n: int = 4
    chat: bool = False
    system: str = ""
    """What a chat begins with."""
    ties: bool = True
    panel: bool = False
    models: tuple[str, ...] = ()
    """Others' models that answer, in turn: their text alone, no policy and no training."""
    sources: tuple[str, ...] = ("",)
    """Of prompts, in turn."""
    text: str = "what is"
    """Every prompt begins with it, and every answer holds it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    writing: Writing = field(default_factory=Writing)
    decisions: tuple[str, ...] = ("promote", "promote", "promote")
    judge: str = "acme/judge"
    """What the judge is called in its judgments, where it is no panel."""
    votes: tuple[Mapping[str, Any], ...] = ()
    """Its evidence, the same for every prompt; empty: that it likes the prompt."""
    train: Callable[[Path, int], str] | None = None
    """Puts the policy of a round into a folder; its digest. None: no weights, the digests of ``POLICIES``."""


CONFIG: dict[str, Any] = {
    "title": "Questions", "description": "Made by hand.", "rounds": 2,
    "policy": {"type": "pretrained", "path": "acme/tiny", "revision": "v1"},
    "prompts": {
        "source": {"type": "hub", "path": "acme/questions", "split": "train"}, "held_out": 2, "per_round": 6,
    },
    "judge": {"type": "reward_model", "path": "acme/judge"},
    "pairing": {"pairs_per_prompt": 3, "margin": 0.5},
}  # fmt: skip
PANEL: dict[str, Any] = {
    "type": "panel",
    "members": {
        "one": {"judge": {"type": "reward_model", "path": "acme/judge"}, "weight": 2.0},
        "two": {"judge": {"type": "rules", "rules": {"long": {"type": "regex", "pattern": "answer"}}}},
    },
}
EVALUATION: dict[str, Any] = {
    "win_rate": 0.6, "win_rate_low": 0.52, "win_rate_high": 0.7, "kl": 0.4, "judge": "acme/judge",
    "judge_labelled": False,
}  # fmt: skip
NO_GATE = GateDecision("none", "no policy is trained")
HEALTH: dict[str, Any] = {
    "figures": {"kappa": 0.41, "canaries": 0.9}, "judge": "acme/judge", "pairs": 120,
    "agreement": {"value": 0.7, "low": 0.6, "high": 0.8}, "kappa": {"value": 0.41, "low": 0.3, "high": 0.52},
    "tie_rate": {"value": None, "low": None, "high": None}, "canaries": {"asked": 10, "share": 0.9},
}  # fmt: skip


def make_run(workspace: Path, making: Making | None = None, name: str = "demo") -> Run:
    """A finished run in ``workspace``."""
    making = making or Making()
    run = Run(workspace, name)
    config = _config(making)
    run.directory.mkdir(parents=True, exist_ok=True)
    write_json(run.directory / "config.json", config.model_dump(mode="json"))
    asked = make(
        run.store, Spec("prompts", 3), [prompts_table([])], info={"rounds": 12, "held_out": 2, "bad": ["row 3"]},
        rows_in=4, dropped={"duplicate": 3, "bad": 1},
    )  # fmt: skip
    evaluation = {"win_rate": 0.5, "kl": 0.0, "judge": "acme/judge", "judge_labelled": False, "prompts": 2}
    run.save_initial({
        "round": -1, "policy_out": "" if making.models else POLICIES[0], "seconds": {}, "health": HEALTH,
        "evaluation": {} if making.models else evaluation,
        "artifacts": {"prompts": asked.key},
    })  # fmt: skip
    for number in range(making.rounds):
        add_round(run, making, number)
    best = max((at for at in range(making.rounds) if making.decisions[at] == "promote"), default=-1)
    run.save_outcome("complete", f"all {making.rounds} rounds are done", best, Policy(POLICIES[best + 1], workspace))
    return run


def add_round(run: Run, making: Making, number: int) -> None:
    """The next round of the run, as a run that goes on writes it."""
    groups = [_group(making, number, k) for k in range(making.prompts)]
    before, after = ("", "") if making.models else POLICIES[number : number + 2]
    candidates = _candidates(run, groups, number, before)
    judgments, members = _judgments(run, making, groups, candidates)
    pairs = _pairs(run, groups, number, candidates, judgments)
    made = {"candidates": candidates, "judgments": judgments, "pairs": pairs}
    if making.train is not None:
        made["train"] = train = _trained(run, pairs, making.train, number)
        after = train.info["policy"]
    decision = making.decisions[number]
    dropped = pairs.manifest["dropped"]
    run.save_round(
        RoundState(
            number, before, after, pairs.manifest["rows"], len(groups), pairs.manifest["kept"], dropped,
            {"mean": 2.5, "median": 3.0, "std": 0.5}, {"mean": 1.5, "std": 1.0, "abstained": 0.1}, {"step": 3},
            {} if making.models else EVALUATION, NO_GATE if making.models else
            GateDecision(decision, "all conditions hold", (GateCheck("kl <= 10", 0.4, True),)), {"sample": 1.0},
            {stage: artifact.key for stage, artifact in made.items()},
        )  # type: ignore[arg-type]
    )  # fmt: skip
    assert members is not None


def _config(making: Making) -> RunConfig | DataConfig:
    judge = {"judge": PANEL} if making.panel else {}
    whole = {**CONFIG, **judge, "rounds": making.rounds, **making.config}
    if not making.models:
        return RunConfig.model_validate(whole)
    endpoints = [{"model": "big-one", "base_url": "http://localhost:1/v1"}]
    models = {name: {"type": "server", "endpoints": endpoints, "temperature": 0.7} for name in making.models}
    kept = {name: value for name, value in whole.items() if name not in ("policy",)}
    return DataConfig.model_validate({**kept, "models": models})


def own_pairs(run: Run, number: int) -> list[dict[str, Any]]:
    """Rows of a round's pairs as the store has them."""
    entry = next(each for each in run.status()["rounds"] if each["round"] == number)
    rows: list[dict[str, Any]] = run.store.get("pairs", entry["artifacts"]["pairs"]).table().to_pylist()
    return rows


def _group(making: Making, number: int, k: int) -> Group:
    last = making.ties and k == making.prompts - 1
    text = f"{making.text} number {k} of round {number}"
    system = (Message(role="system", content=making.system),) if making.system else ()
    messages = (*system, Message(role="user", content=text)) if making.chat else ()
    source = making.sources[k % len(making.sources)]
    asked = () if making.models else tuple(making.writing.prompt(text))
    prompt = Prompt(f"p{number}-{k}", text, asked, messages, None, source)
    candidates = []
    for j in range(making.n):
        answer = "" if (k, j) == (0, 0) else f"{making.text} answer {j} to {k}" + (" or not" if last else "")
        cut = (k, j) == (1, making.n - 1)
        ids = (*making.writing.answer(answer), *(() if cut else (EOS,)))
        model = making.models[j % len(making.models)] if making.models else ""
        ids = () if making.models else ids
        candidates.append(Candidate(j, ids, answer, "length" if cut else "stop", 100 * k + j, -1.5 * j, model))
    return Group(prompt, tuple(candidates))


def _scores(group: Group) -> tuple[float | None, ...]:
    k = int(group.prompt.id.partition("-")[2])
    if group.candidates[1].text.endswith(" or not"):
        return tuple(1.0 for _ in group.candidates)
    scores: list[float | None] = [float(candidate.index) for candidate in group.candidates]
    return (*scores[:-1], None) if k == 2 else tuple(scores)


def _candidates(run: Run, groups: list[Group], number: int, policy: str) -> Artifact:
    prompts = [group.prompt for group in groups]
    inputs = {"policy": policy} if policy else {}
    spec = Spec("candidates", 3, {"round": number, "prompts": asked_digest(prompts)}, inputs)
    return make_groups(run.store, spec, groups, {"policy": policy})


def _judgments(
    run: Run, making: Making, groups: list[Group], candidates: Artifact
) -> tuple[Artifact, dict[str, Artifact]]:
    names = ["one", "two"] if making.panel else []
    inputs = {"candidates": candidates.key}

    def tables(judge: str) -> list[Any]:
        votes = making.votes or ({"reply": f"{judge} likes it"},)
        said = [Judgment(g.prompt.id, judge, _scores(g), votes) for g in groups]
        return [judgments_table(shard) for shard in shards(said)]

    members = {name: make(run.store, Spec("judgments", 2, {"of": name}, inputs), tables(name)) for name in names}
    if not members:
        return make(run.store, Spec("judgments", 2, {}, inputs), tables(making.judge)), {}
    keys = {f"member {name}": member.key for name, member in members.items()}
    return make(run.store, Spec("judgments", 1, {"type": "panel"}, inputs | keys), tables("panel")), members


def _pairs(run: Run, groups: list[Group], number: int, candidates: Artifact, judgments: Artifact) -> Artifact:
    pairs, dropped = [], []
    for group in groups:
        scores = _scores(group)
        known = [index for index, score in enumerate(scores) if score is not None]
        best, worst = known[-1], known[0]
        if scores[best] == scores[worst]:
            dropped.append((group.prompt.id, "tie", "all scores are 1"))
            continue
        three = group.prompt.id.endswith("-3")
        for chosen, rejected in [(best, worst), (best, 1), (1, worst)] if three else [(best, worst)]:
            pairs.append(
                PreferencePair(
                    f"{group.prompt.id}:{chosen}>{rejected}", group.prompt, group.candidates[chosen],
                    group.candidates[rejected], float(scores[chosen] or 0), float(scores[rejected] or 0), number,
                    candidates.key, judgments.key,
                )
            )  # fmt: skip
    spec = Spec("pairs", 3, {"round": number}, {"candidates": candidates.key, "judgments": judgments.key})

    def build(draft: Draft) -> Artifact:
        draft.commit_shard(0, pairs_table(pairs))
        pq.write_table(drops_table(dropped), draft.path / "dropped.parquet")
        kept = len({pair.prompt.id for pair in pairs})
        return draft.finish(rows_in=len(groups), dropped={"tie": len(dropped)} if dropped else {}, kept=kept)

    return run.store.make(spec, build)


def _trained(run: Run, pairs: Artifact, train: Callable[[Path, int], str], number: int) -> Artifact:
    def build(draft: Draft) -> Artifact:
        return draft.finish({"policy": train(draft.path / "policy", number)})

    return run.store.make(Spec("train", 3, {"seed": number}, {"pairs": pairs.key}), build)
