"""What a card says of a run: plain values and tables, from its settings and records. Pure but for the prompts' counts.

``config`` is always the run's settings as ``public`` leaves them. All text of a run is untrusted: what goes into a
table has been through ``plain`` or ``code``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import grids
from pipeline.errors import StoreError
from pipeline.export.public import code, plain, public_judge, public_text
from pipeline.figures import write
from pipeline.store import Store
from pipeline.texts import toml_lines

Entry = Mapping[str, Any]
Table = list[list[str]]
"""Rows of cells in Markdown, the first row is the header."""
HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HEALTH = {
    "agreement": "share of people's labels that the judge gives too",
    "agreement_decided": "share of people's labels that are no tie that the judge gives too",
    "kappa": "Cohen's kappa between judge and people: 0 is chance, 1 is full agreement",
    "swap_consistency": "same verdict when the two answers change places",
    "tie_rate": "ties it gave", "abstention_rate": "cases it did not judge",
    "length_bias": "how much more often than people it prefers the longer answer",
}  # fmt: skip


def hub_name(path: str) -> str | None:
    """``path`` where it names something on the Hub, and not a folder here."""
    return path if HUB.fullmatch(path) and not Path(path).exists() else None


def base_model(config: Entry) -> str | None:
    """The Hub's name of the model the run started from, where it has one."""
    policy = config.get("policy") or {}
    return hub_name(str(policy.get("path", ""))) if policy.get("type") == "pretrained" else None


def start(config: Entry) -> str:
    """One phrase: what the run's policy was at first, or whose answers were judged."""
    if "models" in config:
        named = (f"{plain(name)} ({_model(each)})" for name, each in config["models"].items())
        return f"the answers of {', '.join(named)}"
    policy = config.get("policy") or {}
    if policy.get("type") != "pretrained":
        return "a small Llama trained from scratch for this run"
    name, revision = code(policy["path"]), policy.get("revision")
    return f"{name}{f' at revision {code(revision)}' if revision else ''}"


def rounds(entries: Sequence[Entry], best: int | None = None) -> Table:
    """A row a round: who sampled, what came out, what the gate decided."""
    table = [["round", "prompts", "pairs", "sampled by", "trained to", "gate"]]
    for entry in entries:
        gate = entry.get("gate") or {}
        after = entry.get("policy_out") if entry.get("policy_out") != entry.get("policy_in") else None
        name = f"{entry['round']}{' (best)' if entry['round'] == best else ''}"
        reason = plain(public_text(gate.get("reason", "")))
        decision = ": ".join(part for part in (str(gate.get("decision", "")), reason) if part)
        table.append(
            [name, write(entry.get("groups")), write(entry.get("pairs")), _digest(entry.get("policy_in")),
             _digest(after), decision or "–"]
        )  # fmt: skip
    return table if any(entry.get("policy_in") for entry in entries) else [row[:3] for row in table]


def data(entries: Sequence[Entry]) -> Table:
    return _grid(grids.data(entries))


def evaluation(initial: Entry | None, entries: Sequence[Entry], config: Entry) -> Table:
    stages = [*([initial] if initial else []), *entries]
    return _grid(grids.evaluation(stages, config)) if any(each.get("evaluation") for each in stages) else []


def gate(entries: Sequence[Entry]) -> Table:
    return _grid(grids.gate(entries)) if any((entry.get("gate") or {}).get("checks") for entry in entries) else []


def evaluation_judge(entries: Sequence[Entry]) -> str:
    """A sentence on who judged the held-out answers; empty where nobody did."""
    evaluations = [entry.get("evaluation") or {} for entry in entries]
    found = next((each for each in reversed(evaluations) if each.get("judge")), None)
    if found is None:
        return ""
    said = f"Held-out answers were scored by {plain(public_judge(str(found['judge'])))}"
    if found.get("judge_labelled"):
        return f"{said}, the judge that also labelled the pairs: read the figures with care."
    return f"{said}, which did not label the pairs."


def health(initial: Entry | None) -> Table:
    """The judge's figures against people's labels, and its canaries; empty where they were not checked."""
    found = (initial or {}).get("health")
    if not found:
        return []
    table = [["figure", "value", "95% interval", "meaning"]]
    for name, meaning in HEALTH.items():
        each = found.get(name)
        if isinstance(each, Mapping) and each.get("value") is not None:
            known = each.get("low") is not None and each.get("high") is not None
            span = f"{write(each['low'])} to {write(each['high'])}" if known else "–"
            table.append([plain(name), write(each["value"]), span, meaning])
    canaries = found.get("canaries")
    if isinstance(canaries, Mapping) and canaries.get("share") is not None:
        meaning = f"of {write(canaries.get('asked'))} answers that ask to be chosen, those it did not fall for"
        table.append(["canaries", write(canaries["share"]), "–", meaning])
    return table if len(table) > 1 else []


def sampling(config: Entry) -> Table:
    """How candidates were drawn; a column a model."""
    keys = ("n", "temperature", "top_p", "top_k", "max_tokens", "dtype")
    if "models" in config:
        drawn = {plain(name): each for name, each in config["models"].items()}
    else:
        own = config.get("sampling") or {}
        drawn = {"policy": own, **{plain(name): each for name, each in (own.get("proposers") or {}).items()}}
    rows = [[code(key), *(_number(each.get(key)) for each in drawn.values())] for key in keys]
    return [["setting", *drawn], *(row for row in rows if set(row[1:]) != {"–"})]


def training(config: Entry) -> Table:
    """The trainer's settings that decide what is learnt."""
    trainer = config.get("trainer") or {}
    wanted = (
        "loss", "beta", "betas", "reference", "learning_rate", "learning_rate_decay", "schedule", "warmup_ratio",
        "epochs", "batch_size", "dtype", "lora",
    )  # fmt: skip
    return settings({name: trainer[name] for name in wanted if trainer.get(name) not in (None, {}, [])})


def pairing(values: Entry) -> Table:
    """The rule and the filters, but for what has no effect beside the others."""
    idle = {
        "threshold": values.get("rule") != "threshold",
        "margin_unit": not values.get("margin"),
        "replay": not (values.get("replay") or {}).get("share"),
    }
    return settings({name: value for name, value in values.items() if not idle.get(name)})


def length_taken_out(values: Entry) -> bool:
    """Whether pairing compared other scores than the judge's; of its settings."""
    return bool(values.get("length_regression") or values.get("length_penalty"))


def held_out(config: Entry) -> str:
    """A sentence on the prompts that no round asked, and on what else has their text; empty where there are none."""
    prompts = config.get("prompts") or {}
    if not prompts.get("held_out"):
        return ""
    same = {
        "none": ", but prompts were not deduplicated: one with the same text may be, under another id",
        "near": ", nor is one with the same text, or, as far as such were found, with nearly the same",
    }.get(str(prompts.get("deduplicate")), ", nor is one with the same text")
    return f"Prompts that were held out for evaluation are in none of the configs{same}."


def held_out_pairs(entries: Sequence[Entry]) -> str:
    """A sentence on the pairs that were measured and not trained on; empty without them."""
    counts = [(entry["round"], (entry.get("training") or {}).get("held_out")) for entry in entries]
    told = ", ".join(f"{write(count)} in round {number}" for number, count in counts if count)
    return f"Pairs of a share of the prompts were never trained on, but measured in training: {told}." if told else ""


def settings(values: Entry) -> Table:
    """A row a setting, inner tables with dotted names, as in a recipe; those that are not set are left out."""
    lines = [line.partition(" = ") for line in toml_lines(values) if not line.startswith("#")]
    return [["setting", "value"], *([code(name), code(value)] for name, _, value in lines)]


def judges(config: Entry, name: str = "") -> list[str]:
    """A line a judge: its kind and its name; a panel's members each."""
    lead = f"{plain(name)}: " if name else ""
    match config.get("type"):
        case None:
            return []
        case "panel":
            lines = [f"a panel that takes the {str(config.get('combine')).replace('_', ' ')} of"]
            for member, each in config["members"].items():
                lines += [f"{line}, weight {_number(each.get('weight'))}" for line in judges(each["judge"], member)]
            return lines
        case "rules":
            named = (f"{plain(rule)} ({plain(each.get('type'))})" for rule, each in config["rules"].items())
            return [f"{lead}rules: {', '.join(named)}"]
        case "callable":
            return [f"{lead}the function {code(config['call']['function'])}"]
        case "reward_model":
            return [f"{lead}the reward model {code(config['path'])}"]
        case "human":
            return [f"{lead}people, by votes collected with `ratchet annotate`"]
        case kind:
            models = dict.fromkeys(str(endpoint.get("model")) for endpoint in config.get("endpoints") or ())
            return [f"{lead}{plain(kind)} verdicts of {', '.join(map(code, models)) or 'a model'}"]


def prompt_sources(config: Entry, commits: Mapping[str, str]) -> list[str]:
    """A line a source of prompts, Hub data sets with their commits where these are known."""
    source = (config.get("prompts") or {}).get("source") or {}
    if source.get("type") == "mixture":
        return [
            f"{plain(name)} (weight {_number(each.get('weight'))}): "
            + _source(each["source"], commits.get(f"prompts.source.members.{name}.source"))
            for name, each in source["members"].items()
        ]
    return [_source(source, commits.get("prompts.source"))] if source else []


def decontamination(config: Entry, commits: Mapping[str, str]) -> dict[str, Any]:
    """``words`` in a row that prompts must not share with what is ``against`` them; empty where they may."""
    found = (config.get("prompts") or {}).get("decontaminate") or {}
    if not found:
        return {}
    key = "prompts.decontaminate.against"
    against = [_source(each, commits.get(f"{key}.{at}")) for at, each in enumerate(found["against"])]
    return {"words": write(found["ngram"]), "against": against}


def hub_data(config: Entry) -> list[str]:
    """Names of the Hub data sets that prompts came from."""
    source = (config.get("prompts") or {}).get("source") or {}
    every = [each["source"] for each in (source.get("members") or {}).values()] or [source]
    return sorted({name for each in every if each.get("type") == "hub" and (name := hub_name(str(each["path"])))})


def prompt_counts(store: Store, initial: Entry | None) -> Table:
    """What became of the rows that prompts were read from; empty where the run has no record of it any more."""
    key = ((initial or {}).get("artifacts") or {}).get("prompts")
    if key is None:
        return []
    try:
        manifest = store.get("prompts", key).manifest
    except StoreError:
        return []
    counts = {name: value for name, value in manifest["info"].items() if type(value) is int}
    kept = [[plain(name.replace("_", " ")), write(value)] for name, value in counts.items()]
    lost = [[plain(f"dropped: {reason}"), write(count)] for reason, count in manifest["dropped"].items()]
    return [["prompts", "count"], *kept, *lost]


# ---------------------------------------------------------------------------------------------- pieces
def _grid(grid: grids.Grid) -> Table:
    rows = []
    for row in grid.rows:
        cells = [plain(f"{cell.text} {cell.note}").strip() for cell in row.cells]
        rows.append([plain(row.label), *cells, plain(row.meaning)])
    return [["figure", *grid.columns, "meaning"], *rows] if rows else []


def _number(value: Any) -> str:
    """A setting as it was written, without decimals that nobody asked for."""
    return f"{value:g}" if isinstance(value, float) else write(value)


def _digest(value: Any) -> str:
    return f"`{str(value)[:12]}`" if value else "–"


def _model(model: Entry) -> str:
    if "path" in model:
        return code(model["path"])
    return ", ".join(map(code, dict.fromkeys(each["model"] for each in model.get("endpoints") or ())))


def _source(source: Entry, commit: str | None) -> str:
    match source.get("type"):
        case "hub":
            told = {**source, "commit": commit}
            more = [f"{name} {code(told[name])}" for name in ("name", "split", "revision", "commit") if told.get(name)]
            return f"the data set {code(source['path'])} ({', '.join(more)})"
        case "file":
            return f"the file {code(source['path'])}"
        case _:
            return f"the function {code((source.get('call') or {}).get('function', ''))}"
