"""The evaluation of a policy on held-out prompts: win rates, scores, KL, lengths and probes.

Every policy answers with the same seeds every round, so that two policies differ by what they learnt rather than by
luck. Samples, judgments and log-probabilities are artifacts of their own: the opponents' are there already from earlier
rounds.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from flows.answers import EVALUATION_ROUND, Answers, answers, decoding, held_out_judge, scored
from flows.judging import compares, judge_identity, judge_name
from flows.scoring import score_shards
from flows.session import Session
from flows.stages import sample
from pipeline.candidates import all_groups, asked_digest, shards
from pipeline.config import Probe, ShareProbe
from pipeline.metrics import Estimate, kl_estimate, mean_delta, win_rate
from pipeline.policy import architecture_digest, files_digest
from pipeline.prompts import render_texts
from pipeline.sampling import engine_settings
from pipeline.store import Artifact, Draft, Spec
from pipeline.types import Group, Policy, Prompt


def evaluate(
    session: Session, policy: Policy, opponent: Policy, initial: Policy, held_out: Sequence[Prompt]
) -> Artifact:
    """``policy`` against ``opponent`` (the round's start) and ``initial``; the figures are the artifact's info."""
    config = session.config.evaluation
    settings = {
        **config.model_dump(mode="json", exclude={"pairs"}), "judge": judge_identity(held_out_judge(session)),
        "sampling": session.config.sampling.model_dump(mode="json", include={"max_tokens", "max_model_len", "dtype"}),
        **engine_settings(session.config.sampling), "seed": session.config.seed,
        "prompts": asked_digest(held_out),
    }  # fmt: skip
    compared = {"policy": policy, "opponent": opponent, "initial": initial}
    inputs = {name: each.digest for name, each in compared.items()}
    inputs |= {f"{name} files": files_digest(each.path) for name, each in compared.items()}

    def build(draft: Draft) -> Artifact:
        already = session.engine_seconds
        with session.console.stage("evaluate") as progress:
            new, old, first = (answers(session, each, held_out) for each in (policy, opponent, initial))
            probes = {name: _probe(session, probe, policy, initial) for name, probe in config.probes.items()}
            figures = _figures(session, policy, initial, new, old, first) | {"probes": probes}
            progress(len(held_out), len(held_out), "")
        aside = {"engine_seconds": session.engine_seconds - already, "answers": new.candidates.key}
        return draft.finish(figures | aside)

    return session.store.make(Spec("evaluation", 5, settings, inputs), build)


def _figures(
    session: Session, policy: Policy, initial: Policy, new: Answers, old: Answers, first: Answers
) -> dict[str, Any]:
    resamples = session.config.evaluation.bootstrap
    from_start = scored(session, new, old, frozen=first)
    from_initial = scored(session, new, first, frozen=first)
    relative = compares(held_out_judge(session))
    known = [np.mean(scores) for group in from_start[0] if (scores := [score for score in group if score is not None])]
    return {
        **_interval("win_rate", win_rate(*from_start, resamples)),
        **_interval("win_rate_vs_initial", win_rate(*from_initial, resamples)),
        "score_mean": float(np.mean(known)) if known and not relative else None,
        **_interval("score_delta", mean_delta(*from_initial, resamples)),
        "kl": _kl(session, new.candidates, new.groups, policy, initial),
        "length": float(new.lengths().mean()),
        "length_ratio": float(new.lengths().mean() / first.lengths().mean()),
        "truncated": new.truncated(),
        "distinct": len({c.text for g in new.groups for c in g.candidates}) / len(new.lengths()),
        "prompts": len(new.groups),
        "samples": len(new.lengths()),
        "judge": judge_name(held_out_judge(session)),
        "judge_labelled": session.config.evaluation.judge in (None, session.config.judge),
    }


def _interval(name: str, estimate: Estimate) -> dict[str, float | None]:
    figures = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {key: None if np.isnan(value) else value for key, value in figures.items()}


def _probe(session: Session, probe: Probe, policy: Policy, initial: Policy) -> float:
    config = session.config.prompts
    prompts = render_texts(probe.prompts, config, session.tokenizer(initial))
    candidates = sample(
        session, policy, prompts, round=EVALUATION_ROUND, n=probe.samples, decoding=decoding(session), label="probe"
    )
    groups = all_groups(candidates)
    if isinstance(probe, ShareProbe):
        texts = [candidate.text.strip() for group in groups for candidate in group.candidates]
        return sum(re.fullmatch(probe.pattern, text) is not None for text in texts) / len(texts)
    return _kl(session, candidates, groups, policy, initial)


def _kl(session: Session, candidates: Artifact, groups: Sequence[Group], policy: Policy, initial: Policy) -> float:
    """KL(policy ‖ initial) on the policy's own samples, nats a completion."""
    own, others = (_logprobs(session, candidates, groups, each) for each in (policy, initial))
    return kl_estimate(own, others).value


def _logprobs(session: Session, candidates: Artifact, groups: Sequence[Group], policy: Policy) -> list[float]:
    """log π(completion | prompt) of every candidate under ``policy``, by the trainer's model in float32."""
    budget = session.config.trainer.token_budget
    inputs = {"candidates": candidates.key, "policy": policy.digest, "model": architecture_digest(policy.path)}

    def build(draft: Draft) -> Artifact:
        from trainers.examples import Row
        from trainers.reference import Reference

        rows = [[Row(g.prompt.token_ids, c.token_ids) for g in shard for c in g.candidates] for shard in shards(groups)]
        return score_shards(session, draft, rows, lambda: Reference(policy, "float32", budget), "KL", "evaluate")

    artifact = session.store.make(Spec("logprobs", 2, {"token_budget": budget}, inputs), build)
    found: list[float] = artifact.table()["logp"].to_pylist()
    return found
