"""One round's record, put together from its artifacts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.store import Artifact
from pipeline.types import GateDecision, Policy, RoundState

STAGES = {"candidates": "sample", "judgments": "judge", "pairs": "pair", "evaluation": "evaluate"}
"""Stages by what they make, where the two have different names."""


def summarise(
    round: int,
    before: Policy,
    after: Policy,
    made: Mapping[str, Artifact],
    gate: GateDecision,
    freed: Mapping[str, float],
) -> RoundState:
    """``made`` holds the round's artifacts by stage: candidates, judgments, pairs, evaluation, and if there were pairs
    to train on, reference and train."""
    pairs = made["pairs"]
    return RoundState(
        round=round,
        policy_in=before.digest,
        policy_out=after.digest,
        pairs=pairs.manifest["rows"],
        groups=pairs.manifest["kept"] + sum(pairs.manifest["dropped"].values()),
        paired=pairs.manifest["kept"],
        dropped=pairs.manifest["dropped"],
        margin=_margin(pairs),
        scores=_scores(made["judgments"]),
        training=_training(made["train"]) if "train" in made else {},
        evaluation=figures(made["evaluation"]),
        gate=gate,
        seconds=stage_seconds(made),
        artifacts=artifact_keys(made),
        memory=dict(freed),
    )


def figures(evaluation: Artifact) -> dict[str, Any]:
    """What was measured, without what it cost and where the answers are."""
    return {name: value for name, value in evaluation.info.items() if name not in ("engine_seconds", "answers")}


def artifact_keys(made: Mapping[str, Artifact]) -> dict[str, str]:
    """By stage, and under ``answers`` the candidates that the evaluation judged."""
    keys = {stage: artifact.key for stage, artifact in made.items()}
    return keys | {"answers": made["evaluation"].info["answers"]}


def stage_seconds(made: Mapping[str, Artifact]) -> dict[str, float]:
    """Wall-clock seconds each artifact took to make; the engine's start and weight syncs stand apart."""
    engine = {stage: artifact.info.get("engine_seconds", 0.0) for stage, artifact in made.items()}
    seconds = {STAGES.get(stage, stage): artifact.seconds - engine[stage] for stage, artifact in made.items()}
    return {name: round(value, 2) for name, value in {**seconds, "engine": sum(engine.values())}.items()}


def _training(train: Artifact) -> dict[str, Any]:
    stopped = train.info["stopped"]
    return {**train.info["metrics"], **({} if stopped is None else {"stopped": stopped})}


def _margin(pairs: Artifact) -> dict[str, float]:
    margins = pairs.table().column("margin").to_numpy()
    if not len(margins):
        return {}
    return {"mean": float(margins.mean()), "median": float(np.median(margins)), "std": float(margins.std())}


def _scores(judgments: Artifact) -> dict[str, Any]:
    rows = judgments.table().column("scores").to_pylist()
    every = [score for scores in rows for score in scores]
    known = [score for score in every if score is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known)) if known else None,
        "abstained": 1 - len(known) / len(every),
    }
