"""Lessons for the tiny policies, the same ones for the same arguments in any process."""

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.config import TrainerConfig
from pipeline.types import Policy
from tests.tiny import ALPHABET, BOS, EOS, SPECIAL
from trainers.dpo import Lesson
from trainers.examples import Example, Pair, Row, Single
from trainers.reference import Reference, mismatches, reference_rows
from trainers.step import KnownReference

SPEED = ("pairs_per_second", "tokens_per_second", "memory/process_gib")
"""Figures that no seed decides."""


def config(**changes: Any) -> TrainerConfig:
    return TrainerConfig(**({"batch_size": 4, "epochs": 2, "token_budget": 60, "schedule": "constant"} | changes))


def make_examples(count: int, seed: int = 0, singles: bool = False) -> list[Example]:
    """Of prompts with two pairs each; or with two completions, one desirable and one not."""
    generator = torch.Generator().manual_seed(seed)

    def draw(longest: int) -> tuple[int, ...]:
        length = int(torch.randint(2, longest, (), generator=generator))
        return tuple(torch.randint(len(SPECIAL), len(SPECIAL) + len(ALPHABET), (length,), generator=generator).tolist())

    examples: list[Example] = []
    for number in range(count // 2):
        prompt = (BOS, *draw(12))
        rows = [Row(prompt, (*draw(10), EOS)) for _ in range(3)]
        if singles:
            examples += [Single(row, bool(each % 2), str(number)) for each, row in enumerate(rows[:2])]
        else:
            examples += [Pair(rows[0], other, prompt_id=str(number)) for other in rows[1:]]
    return examples


def make_lesson(policy: Policy, config: TrainerConfig, count: int = 8, **more: Any) -> Lesson:
    singles = all(term.type == "kto" for term in config.loss)
    examples = make_examples(count, singles=singles)
    mismatched = mismatches(examples) if singles else {}
    rows = reference_rows(examples, mismatched)
    logps = Reference(policy, config.dtype, 1000).logps(rows)
    return Lesson(
        examples,
        KnownReference(dict(zip(rows, logps, strict=True))),
        **{"learning_rate": 1e-3, "seed": 7, "starts_at_reference": True, "mismatched": mismatched, **more},
    )


def lines(directory: Path) -> list[dict[str, float]]:
    """The metrics of each step but its speed."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]
