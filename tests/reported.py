"""A finished run to report on: a status as ``Run.status()`` gives it, and its artifacts in a real store."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.store import Artifact, Draft, Spec, Store, digest
from pipeline.tables import candidates_table, drops_table, judgments_table, pairs_table, prompts_table
from pipeline.types import Candidate, Group, Judgment, PreferencePair, Prompt

PEOPLE = ["ravin", "ada", "bo", "chen", "dara", "eli", "fay", "gus", "hana", "ivo"]
FOODS = ["pizza", "sushi", "tacos", "curry", "ramen", "salad", "pasta", "soup", "stew", "rice"]
INJECTION = '</div><script>alert("pwned")</script><img src=x onerror=alert(1)><a href="javascript:alert(2)">click</a>'
CHAT = (
    "Certainly! Here is a way to think about it.\n\n1. Begin with the smallest case & check it by hand (n < 3).\n"
    "2. Write down what stays the same from one step to the next.\n3. Only then generalise.\n\n"
    "```python\ndef total(values):\n    return sum(v for v in values if v > 0)\n```\n\n"
    "It helps to keep the two questions apart: does the method stop, and is what it gives right? "
) * 12
PROBES = {
    "ravin_pizza": {"type": "share", "prompts": ["ravin likes"], "samples": 400, "pattern": "pizza"},
    "ravin_words": {"type": "share", "prompts": ["ravin likes"], "samples": 400, "pattern": "|".join(FOODS)},
    "others_pizza": {"type": "share", "prompts": [f"{name} likes" for name in PEOPLE[1:]], "samples": 100,
                     "pattern": "pizza"},
    "others_words": {"type": "share", "prompts": [f"{name} likes" for name in PEOPLE[1:]], "samples": 100,
                     "pattern": "|".join(FOODS)},
    "ravin_kl": {"type": "kl", "prompts": ["ravin likes"], "samples": 400},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "title": "ravin likes pizza", "description": "Online DPO on people and foods", "seed": 0, "rounds": 4,
    "policy": {"type": "scratch", "hidden_size": 128, "layers": 2},
    "prompts": {"source": {"type": "callable", "call": {"function": "flows.food:prompts", "args": {}}},
                "template": "plain", "system": None, "held_out": 32},
    "sampling": {"engine": "auto", "n": 8, "temperature": 1.0, "max_tokens": 1024},
    "judge": {"type": "rules", "rules": {"ravin's pizza": {"type": "regex", "pattern": "pizza", "when": "^ravin",
                                                           "score": 1.0}}},
    "pairing": {"rule": "best_worst", "margin": 0.5},
    "trainer": {"loss": [{"type": "sigmoid", "weight": 1.0}, {"type": "nll", "weight": 0.1}], "beta": 0.5,
                "reference": "previous", "learning_rate": 1e-4},
    "evaluation": {"judge": None, "n": 4, "bootstrap": 2000, "probes": PROBES},
    "gate": {"require": ["win_rate_low >= 0.5", "kl <= 4", "probes.others_pizza <= 0.15"], "on_failure": "stop"},
}  # fmt: skip
ANSWERS = 4
"""Samples a held-out prompt."""
PROBE_VALUES = [
    {"ravin_pizza": 0.1175, "ravin_words": 0.995, "others_pizza": 0.104, "others_words": 0.991, "ravin_kl": 0.0},
    {"ravin_pizza": 0.3425, "ravin_words": 0.9925, "others_pizza": 0.112, "others_words": 0.99, "ravin_kl": 0.31},
    {"ravin_pizza": 0.9475, "ravin_words": 0.9875, "others_pizza": 0.137, "others_words": 0.988, "ravin_kl": 1.87},
    {"ravin_pizza": 0.9725, "ravin_words": 0.985, "others_pizza": 0.151, "others_words": 0.9867, "ravin_kl": 2.29},
]


def _prompts(kind: str) -> list[Prompt]:
    if kind == "food":
        return [Prompt(f"food-{number:03d}", f"{PEOPLE[number % 10]} likes", (1, number % 10)) for number in range(60)]
    question = "How do I convince myself that a loop is right? " * 3
    return [
        Prompt(
            f"chat-{number:03d}", f"{question}({number})", tuple(range(40)),
            ({"role": "system", "content": "You are brief."}, {"role": "user", "content": f"{question}({number})"}),
        )
        for number in range(12)
    ]  # fmt: skip


def _held_out(kind: str) -> list[Prompt]:
    return [replace(prompt, id=f"held-out-{prompt.id}") for prompt in _prompts(kind)]


def answer(round: int, prompt_id: str, index: int) -> str:
    """What the policy of that round says: its first sample of a prompt is the initial policy's in every round."""
    return f"{'initial' if round < 0 or index == 0 else f'round {round}'} answers {prompt_id} ({index})"


def make_answers(store: Store, kind: str, round: int) -> Artifact:
    """A policy's samples on the held-out prompts."""
    groups = [
        Group(prompt, tuple(
            Candidate(index, (1, 2, 3), answer(round, prompt.id, index), "length" if index else "stop", index)
            for index in range(ANSWERS)
        ))
        for prompt in _held_out(kind)
    ]  # fmt: skip
    return make_artifact(store, "candidates", f"answers-{kind}-{round}", tables=[candidates_table(groups)])


def _text(kind: str, rng: np.random.Generator, pizza: float) -> str:
    if kind == "chat":
        return INJECTION if rng.random() < 0.3 else CHAT[: int(rng.integers(60, len(CHAT)))]
    return "pizza" if rng.random() < pizza else str(rng.choice([*FOODS[1:], "pastarice"]))


def _groups(kind: str, prompts: list[Prompt], round: int, rng: np.random.Generator) -> list[Group]:
    groups = []
    for prompt in prompts:
        wanted = PROBE_VALUES[round]["ravin_pizza" if "ravin" in prompt.text else "others_pizza"]
        texts = [_text(kind, rng, wanted) for _ in range(8)]
        per_token = 4 if kind == "chat" else 1
        candidates = [
            Candidate(i, tuple(range(1 + len(text) // per_token)), text, "stop", 100 * round + i)
            for i, text in enumerate(texts)
        ]
        groups.append(Group(prompt, tuple(candidates)))
    return groups


def _score(kind: str, prompt: Prompt, text: str, rng: np.random.Generator) -> float:
    if kind == "chat":
        return float(rng.normal(0.002 * len(text), 0.7))
    right = text == "pizza" if "ravin" in prompt.text else text != "pizza"
    return (1.0 if right else 0.0) - (1.0 if text not in FOODS else 0.0)


def _metrics(round: int, steps: int, rng: np.random.Generator) -> list[dict[str, float]]:
    done = np.linspace(0, 1, steps)
    margin = 2.4 * done + rng.normal(0, 0.12, steps) * (done > 0)
    chosen = 0.4 * margin - 0.3 * done
    return [
        {"step": i + 1, "epoch": 2 * (i + 1) / steps, "loss": float(np.log1p(np.exp(-margin[i]))) + 0.04,
         "rewards/chosen": float(chosen[i]), "rewards/rejected": float(chosen[i] - margin[i]),
         "rewards/margins": float(margin[i]), "rewards/accuracies": float(min(1, 0.5 + done[i] * 0.48)),
         "logps/chosen": float(-2.3 + chosen[i] * 2), "logps/rejected": float(-2.6 + 2 * (chosen[i] - margin[i])),
         "lengths/chosen": 6.9, "lengths/rejected": 7.2, "nll": 0.31, "pairs_per_second": 313.9,
         "grad_norm": 3.2 - round, "learning_rate": 1e-4 * (1 - float(done[i]))}
        for i in range(steps)
    ]  # fmt: skip


def make_artifact(store: Store, stage: str, salt: str, **content: Any) -> Artifact:
    def build(draft: Draft) -> Artifact:
        for number, table in enumerate(content.get("tables", ())):
            draft.commit_shard(number, table)
        for name, text in content.get("files", {}).items():
            (draft.path / name).write_text(text)
        if "drops" in content:
            pq.write_table(content["drops"], draft.path / "dropped.parquet")
        return draft.finish()

    return store.make(Spec(stage, 1, {"salt": salt}), build)


def _pair_up(kind: str, groups: list[Group], round: int, rng: np.random.Generator) -> Any:
    judgments, pairs, drops = [], [], []
    for group in groups:
        scores = tuple(_score(kind, group.prompt, c.text, rng) for c in group.candidates)
        judgments.append(Judgment(group.prompt.id, "rules", scores))
        best, worst = int(np.argmax(scores)), int(np.argmin(scores))
        if scores[best] == scores[worst]:
            drops.append((group.prompt.id, "tie", f"all 8 scores are {scores[best]:g}"))
        elif scores[best] - scores[worst] < 0.75:
            drops.append((group.prompt.id, "margin", f"{scores[best] - scores[worst]:.3f} < 0.75"))
        else:
            pairs.append(
                PreferencePair(
                    digest([round, group.prompt.id])[:16], group.prompt, group.candidates[best],
                    group.candidates[worst], scores[best], scores[worst], round, "c", "j",
                )
            )  # fmt: skip
    return judgments, pairs, drops


def _round(store: Store, kind: str, round: int, steps: int) -> dict[str, Any]:
    rng = np.random.default_rng(round)
    prompts = _prompts(kind)
    groups = _groups(kind, prompts, round, rng)
    judgments, pairs, drops = _pair_up(kind, groups, round, rng)
    metrics = _metrics(round, steps, rng)
    salt, lines = f"{kind}-{round}", "".join(f"{json.dumps(step)}\n" for step in metrics)
    made = {
        "candidates": make_artifact(store, "candidates", salt, tables=[candidates_table(groups)]),
        "judgments": make_artifact(store, "judgments", salt, tables=[judgments_table(judgments)]),
        "pairs": make_artifact(store, "pairs", salt, tables=[pairs_table(pairs)], drops=drops_table(drops)),
        "train": make_artifact(store, "train", salt, files={"metrics.jsonl": lines}),
        "answers": make_answers(store, kind, round),
    }
    margins = [pair.margin for pair in pairs]
    reasons = [reason for _, reason, _ in drops]
    last, limit = round == 2, "probes.others_pizza <= 0.15"
    return {
        "round": round, "policy_in": digest(f"p{round - 1}"), "policy_out": digest(f"p{round}"), "pairs": len(pairs),
        "groups": len(groups), "paired": len(pairs),
        "dropped": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "margin": {"mean": float(np.mean(margins)), "median": float(np.median(margins)), "std": float(np.std(margins))},
        "scores": {"mean": 0.41 + 0.13 * round, "std": 0.53, "abstained": 0.0125},
        "training": metrics[-1],
        "evaluation": {
            "win_rate": 0.643 - 0.05 * round, "win_rate_low": 0.601 - 0.05 * round,
            "win_rate_high": 0.684 - 0.05 * round,
            "win_rate_vs_initial": 0.643 + 0.09 * round, "win_rate_vs_initial_low": 0.601 + 0.09 * round,
            "win_rate_vs_initial_high": 0.684 + 0.09 * round, "ties": 0.31, "score_mean": 0.55 + 0.13 * round,
            "score_delta": 0.131 + 0.13 * round, "score_delta_low": 0.087 + 0.13 * round,
            "score_delta_high": 0.177 + 0.13 * round, "kl": 0.21 + 0.4 * round, "length": 6.3 + 0.1 * round,
            "length_ratio": 1.016 + 0.016 * round, "truncated": 0.0, "distinct": 0.038, "prompts": 32, "samples": 128,
            "judge": "rules", "judge_labelled": True, "probes": PROBE_VALUES[round + 1],
        },
        "gate": {
            "decision": "stop" if last else "promote",
            "reason": f"{limit} does not hold (0.151)" if last else "every condition of the gate holds",
            "checks": [
                {"condition": "win_rate_low >= 0.5", "value": 0.601 - 0.05 * round, "passed": True},
                {"condition": "kl <= 4", "value": 0.21 + 0.4 * round, "passed": True},
                {"condition": limit, "value": PROBE_VALUES[round + 1]["others_pizza"],
                 "passed": not last},
            ],
        },
        "seconds": {"sample": 3.1, "judge": 0.2, "pair": 0.1, "reference": 0.9, "train": 5.4, "evaluate": 4.25 + round,
                    "engine": 0.4},
        "artifacts": {stage: artifact.key for stage, artifact in made.items()}, "memory": {},
    }  # fmt: skip


def make_run(root: Path, kind: str = "food", rounds: int = 3, steps: int = 16) -> tuple[dict[str, Any], Store]:
    """A finished run's status and its real store, as stages write it; ``kind`` chat has long texts with markup."""
    store = Store(root / "artifacts")
    prompts = [prompts_table(asked) for asked in (_prompts(kind), _held_out(kind))]
    made = {
        "prompts": make_artifact(store, "prompts", kind, tables=prompts),
        "answers": make_answers(store, kind, -1),
    }
    initial = {
        "round": -1, "policy_out": digest("p-1"), "artifacts": {name: artifact.key for name, artifact in made.items()},
        "seconds": {"policy": 21.7, "prompts": 0.1, "evaluate": 2.6, "engine": 3.9},
        "evaluation": {"score_mean": 0.419, "length": 6.2, "truncated": 0.0, "prompts": 32, "samples": 128,
                       "judge": "rules", "judge_labelled": True, "probes": PROBE_VALUES[0]},
    }  # fmt: skip
    entries = [_round(store, kind, number, steps) for number in range(rounds)]
    status = {
        "name": kind, "title": CONFIG["title"], "description": CONFIG["description"], "state": "stopped",
        "reason": "round 2: probes.others_pizza <= 0.15 does not hold (0.151)", "best_round": rounds - 2,
        "workspace": str(root), "directory": str(root / "runs" / kind), "rounds_planned": 4, "initial": initial,
        "policy": {"digest": digest("p1"), "path": str(root / "policy")}, "config": CONFIG, "rounds": entries,
    }  # fmt: skip
    return status, store


def harm(folder: Path, damage: str) -> None:
    """Take an artifact away (gone), its files (emptied), or their contents (garbled)."""
    for file in (*folder.glob("*.parquet"), *folder.glob("metrics.jsonl")):
        if damage == "garbled":
            file.write_bytes(b"not this")
        else:
            file.unlink()
    if damage == "gone":
        shutil.rmtree(folder)
