"""One round's record, put together from its artifacts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.store import Artifact
from pipeline.types import GateDecision, Policy, RoundState

STAGES = {"sampled": "sample", "judgments": "judge", "pairs": "pair", "evaluation": "evaluate"}
"""Stages by what they make, where the two have different names."""
PROPOSALS = "proposals-"
"""Before a model's name: what it answered, where it is not the policy."""
NO_POLICY = GateDecision("none", "no policy is trained")


def summarise(
    round: int,
    before: Policy | None,
    after: Policy | None,
    made: Mapping[str, Artifact],
    gate: GateDecision = NO_POLICY,
    freed: Mapping[str, float] | None = None,
) -> RoundState:
    """``made`` holds the round's artifacts by stage: candidates, judgments, pairs; what other models proposed; where
    there is a policy, evaluation, and if there were pairs to train on, reference and train."""
    pairs, asked = made["pairs"], made["candidates"].info
    return RoundState(
        round=round,
        policy_in=before.digest if before else "",
        policy_out=after.digest if after else "",
        pairs=pairs.manifest["rows"],
        groups=pairs.manifest["kept"] + sum(pairs.manifest["dropped"].values()),
        paired=pairs.manifest["kept"],
        dropped=pairs.manifest["dropped"],
        margin=margin_figures(pairs),
        scores=_scores(made["judgments"]),
        training=_training(made["train"]) if "train" in made else {},
        evaluation=figures(made["evaluation"]) if "evaluation" in made else {},
        gate=gate,
        seconds=stage_seconds(made),
        artifacts=artifact_keys(made),
        memory=dict(freed or {}),
        left_out=asked.get("prompts_left_out", 0),
        missing=asked.get("missing", {}),
    )


def figures(evaluation: Artifact) -> dict[str, Any]:
    """What was measured, without what it cost and where the answers are."""
    return {name: value for name, value in evaluation.info.items() if name not in ("engine_seconds", "answers")}


def artifact_keys(made: Mapping[str, Artifact]) -> dict[str, str]:
    """By stage, and under ``answers`` the candidates that the evaluation judged."""
    keys = {stage: artifact.key for stage, artifact in made.items()}
    return keys | ({"answers": made["evaluation"].info["answers"]} if "evaluation" in made else {})


def stage_seconds(made: Mapping[str, Artifact]) -> dict[str, float]:
    """Wall-clock seconds each artifact took to make; the engine's start and weight syncs stand apart. Asking other
    models, and putting the groups together, is one stage."""
    seconds: dict[str, float] = {}
    engine = 0.0
    for name, artifact in made.items():
        apart = artifact.info.get("engine_seconds", 0.0)
        stage = _stage(name, made)
        seconds[stage] = seconds.get(stage, 0.0) + artifact.seconds - apart
        engine += apart
    return {name: round(value, 2) for name, value in {**seconds, "engine": engine}.items()}


def _stage(name: str, made: Mapping[str, Artifact]) -> str:
    proposed = any(each.startswith(PROPOSALS) for each in made)
    if name.startswith(PROPOSALS) or (name == "candidates" and proposed):
        return "propose"
    return "sample" if name == "candidates" else STAGES.get(name, name)


def _training(train: Artifact) -> dict[str, Any]:
    """The last step's metrics; how many pairs were held out, if any; why it ended early, if it did."""
    said = {name: train.info[name] for name in ("held_out", "stopped") if train.info[name]}
    return {**train.info["metrics"], **said}


def margin_figures(pairs: Artifact) -> dict[str, float]:
    """Mean, median and standard deviation of the margins; empty without pairs."""
    margins = np.concatenate([np.empty(0), *(table["margin"].to_numpy() for table in pairs.tables(["margin"]))])
    if not len(margins):
        return {}
    return {"mean": float(margins.mean()), "median": float(np.median(margins)), "std": float(margins.std())}


def _scores(judgments: Artifact) -> dict[str, Any]:
    parts = [table["scores"].combine_chunks().flatten() for table in judgments.tables(["scores"])]
    every = np.concatenate([np.empty(0), *(part.to_numpy(zero_copy_only=False) for part in parts)])
    known = every[np.isfinite(every)]
    return {
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std()) if len(known) else None,
        "abstained": 1 - len(known) / len(every),
    }
