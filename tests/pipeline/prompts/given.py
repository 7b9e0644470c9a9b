"""What the tests of prompts are given: rows in files, a chat template, words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PromptsConfig
from pipeline.prompts import PromptSet
from pipeline.types import Prompt

CHAT = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "{{ turn.role }}, {{ turn.content }}.{% endfor %}{% if add_generation_prompt %}assistant, {% endif %}"
)
FRUIT = ["apple", "pear", "plum", "cherry", "quince", "fig", "date", "lime"]


def write_jsonl(file: Path, rows: Iterable[Any]) -> str:
    """``rows`` as lines of JSON, strings as they are; the file's path."""
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


class Source:
    """Writes rows to a JSONL file and makes the config that reads it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "prompts.jsonl"

    def __call__(self, rows: Sequence[Any], source: Mapping[str, Any] | None = None, **settings: Any) -> PromptsConfig:
        where = {"type": "file", "path": write_jsonl(self.file, rows), **(source or {})}
        return PromptsConfig.model_validate({"source": where, **settings})


class Mixture:
    """Writes a file for each member, and makes the config that mixes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, members: Mapping[str, Sequence[Any]], weights: Mapping[str, float] | None = None, **settings: Any
    ) -> PromptsConfig:
        made = {
            name: {
                "weight": (weights or {}).get(name, 1.0),
                "source": {"type": "file", "path": write_jsonl(self.folder / f"{name}.jsonl", rows)},
            }
            for name, rows in members.items()
        }
        return PromptsConfig.model_validate({"source": {"type": "mixture", "members": made}, **settings})


def texts(prompts: Iterable[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def conserved(found: PromptSet) -> bool:
    """Whether every row ended in one place, as a whole and of each member."""
    whole = len(found.rounds) + len(found.held_out) + sum(found.dropped.values()) == found.rows
    parts = (sum(counts.values()) == 2 * counts["rows"] for counts in found.by_source.values())
    return whole and all(parts)
