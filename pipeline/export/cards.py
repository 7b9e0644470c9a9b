"""The cards of a data set and of a policy: what it is, what made it, what became of everything, and how to use it.

``templates/data.md`` and ``templates/model.md`` say where things stand, :mod:`pipeline.export.facts` what they are. The
front matter is written by huggingface_hub, so that it is what the Hub reads.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import ConfigError
from pipeline.export import facts
from pipeline.export.columns import CONFIGS
from pipeline.export.lineage import RECIPE, again, commands, versions
from pipeline.export.public import code, fenced, plain, public, public_text
from pipeline.figures import write
from pipeline.runs import Run

Entry = Mapping[str, Any]
UNKNOWN = "unknown"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
SIZES = {
    1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M",
    100_000_000: "10M<n<100M",
}  # fmt: skip
"""The Hub's names for rows below so many."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What only the user knows of an export."""

    licence: str = UNKNOWN
    """The Hub's identifier, such as ``apache-2.0``."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes."""
    repo: str = ""
    """Where it will be on the Hub, ``org/name``; empty for a folder."""
    data: str = ""
    """Of a policy: the Hub's name of the data set it was trained on."""

    def __post_init__(self) -> None:
        """Raises ConfigError where a value cannot be what it should."""
        if not LICENCE.fullmatch(self.licence):
            raise ConfigError(
                f"--license {self.licence!r}: allowed: an identifier of the Hub's, such as 'apache-2.0', 'cc-by-4.0',"
                " 'other' or 'unknown'"
            )
        if wrong := [each for each in self.languages if not LANGUAGE.fullmatch(each)]:
            raise ConfigError(f"--language {wrong[0]!r}: allowed: codes of ISO 639, such as 'en'")


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of a data set."""

    by_config: Mapping[str, Mapping[int, int]]
    """By config and round; configs without rows are not there."""
    sources: Mapping[str, int]
    """Prompts asked, by source; empty where they have no names."""
    won_and_lost: int = 0
    """Completions that ``kto`` leaves out, since they have no one label."""

    def of(self, config: str) -> int:
        return sum(self.by_config.get(config, {}).values())


def data_card(
    run: Run, entries: Sequence[Entry], counts: Counts, chat: bool, example: Entry, terms: Terms, made_of: str
) -> str:
    """The card of the data set of ``entries``, rounds as ``Run.status`` has them; ``made_of`` names its content."""
    rows = {config: counts.of(config) for config in CONFIGS if counts.of(config)}
    context = _shared(run, entries, terms) | {
        "rows": rows, "kinds": CONFIGS, "counts": counts, "chat": chat, "example": example,
        "front": _data_front(run, rows, terms, made_of),
    }  # fmt: skip
    return _render("data.md", context)


def model_card(run: Run, entries: Sequence[Entry], number: int, digest: str, chat: bool, terms: Terms) -> str:
    """The card of the policy that round ``number`` trained; ``entries`` are the rounds up to it."""
    config = public(run.status()["config"])
    context = _shared(run, entries, terms) | {
        "number": number, "digest": digest, "chat": chat, "training": facts.training(config),
        "front": _model_front(config, terms), "data_repo": terms.data,
    }  # fmt: skip
    return _render("model.md", context)


def _shared(run: Run, entries: Sequence[Entry], terms: Terms) -> dict[str, Any]:
    status = run.status()
    config, initial = public(status["config"]), status["initial"]
    anew = public(status.get("paired_anew") or {})
    pairing = (anew or config).get("pairing") or {}
    return {
        "name": run.name, "title": config.get("title") or run.name, "description": config.get("description", ""),
        "online": "models" not in config, "repo": terms.repo, "licence": terms.licence, "entries": entries,
        "base": facts.base_model(config), "start": facts.start(config),
        "rounds": facts.rounds(entries, status["best_round"]), "data": facts.data(entries),
        "evaluation": facts.evaluation(initial, entries, config), "judged_by": facts.evaluation_judge(entries),
        "evaluators": facts.judges((config.get("evaluation") or {}).get("judge") or {}),
        "gate": facts.gate(entries), "judges": facts.judges(config.get("judge") or {}), "health": facts.health(initial),
        "sampling": facts.sampling(config), "anew": bool(anew),
        "pairing": facts.pairing(pairing), "length_taken_out": facts.length_taken_out(pairing),
        "held_out": facts.held_out(config), "held_out_pairs": facts.held_out_pairs(entries),
        "deduplicated": (config.get("prompts") or {}).get("deduplicate") != "none",
        "prompt_sources": facts.prompt_sources(config, run.commits()),
        "prompt_counts": facts.prompt_counts(run.store, initial),
        "decontamination": facts.decontamination(config, run.commits()),
        "hub_data": facts.hub_data(config), "initial": (initial or {}).get("policy_out"),
        "recipe": RECIPE, "commands": commands(run), "again": again(run), "versions": versions(run),
    }  # fmt: skip


def _data_front(run: Run, rows: Mapping[str, int], terms: Terms, made_of: str) -> str:
    from huggingface_hub import DatasetCardData

    configs = [
        {
            "config_name": config, **({"default": True} if config == "default" else {}),
            "data_files": [{"split": "train", "path": f"data/{config}/*.parquet"}],
            # ``datasets`` keeps what it read of a folder by the folder's last name and these lines, not by the files:
            # without it, an export of more rounds would be read as it was before.
            "description": f"content {made_of}",
        }
        for config in rows
    ]  # fmt: skip
    count = next(iter(rows.values()))  # of ``default``, where there are pairs
    size = next((name for limit, name in SIZES.items() if count < limit), "100M<n<1B")
    front: str = DatasetCardData(
        language=list(terms.languages) or None, license=terms.licence, pretty_name=_pretty(run),
        size_categories=[size], task_categories=["text-generation"],
        tags=["dpo", "preference", "rlhf", "trl", "ratchet"], configs=configs,
    ).to_yaml()  # fmt: skip
    return front


def _model_front(config: Entry, terms: Terms) -> str:
    from huggingface_hub import ModelCardData

    base = facts.base_model(config)
    data = [*([terms.data] if terms.data else []), *facts.hub_data(config)]
    front: str = ModelCardData(
        language=list(terms.languages) or None, license=terms.licence, library_name="transformers",
        pipeline_tag="text-generation", tags=["dpo", "ratchet"], base_model=base, datasets=data or None,
        **({"base_model_relation": "finetune"} if base else {}),
    ).to_yaml()  # fmt: skip
    return front


def _pretty(run: Run) -> str:
    """On one line, so that nothing in it can end the front matter."""
    return " ".join(public_text(run.status()["title"] or run.name).split())


def _render(template: str, context: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,  # Markdown has an escape of its own
    )  # fmt: skip
    environment.filters |= {"plain": plain, "code": code, "fenced": fenced, "figure": write}
    return environment.get_template(template).render(context)
