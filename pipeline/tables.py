"""Records to Arrow tables and back, with an explicit schema each: the only place that knows the columns.

Prompts and judgments have a row a prompt; candidates a row a candidate, groups whole and in prompt order; pairs a
row a pair, with both candidates' ids and texts side by side, so that the file alone says what was compared.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.types import Candidate, Group, Judgment, PreferencePair, Prompt

IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
"""No id is missing: said here, nobody has to look for it while reading."""
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPTS = pa.schema(
    [("prompt_id", pa.string()), ("text", pa.string()), ("token_ids", IDS), ("messages", MESSAGES),
     ("answer", pa.string()), ("source", pa.string())]
)  # fmt: skip

CANDIDATE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("index", pa.int32()), ("token_ids", IDS), ("text", pa.string()), ("finish_reason", pa.string()),
    ("seed", pa.int64()), ("cumulative_logprob", pa.float64()), ("model", pa.string()),
]  # fmt: skip
CANDIDATES = pa.schema([("prompt_id", pa.string()), *CANDIDATE_FIELDS])

JUDGMENTS = pa.schema(
    [("prompt_id", pa.string()), ("judge", pa.string()), ("scores", pa.list_(pa.float64())), ("votes", pa.string())]
)
MEMBER = "member "
"""Before the names of a panel's members, where its judgments artifact names theirs among its inputs."""

PAIRS = pa.schema(
    [
        ("pair_id", pa.string()), ("round", pa.int32()),
        *((f"prompt_{name}" if name != "prompt_id" else name, kind)
          for name, kind in zip(PROMPTS.names, PROMPTS.types, strict=True)),
        *((f"chosen_{name}", kind) for name, kind in CANDIDATE_FIELDS),
        *((f"rejected_{name}", kind) for name, kind in CANDIDATE_FIELDS),
        ("score_chosen", pa.float64()), ("score_rejected", pa.float64()), ("margin", pa.float64()),
        ("candidates_key", pa.string()), ("judgments_key", pa.string()),
    ]
)  # fmt: skip

DROPS = pa.schema([("prompt_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@contextmanager
def intact(file: Path) -> Iterator[None]:
    """For reading a file of an artifact: raises StoreError where it has been removed or damaged."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{file} cannot be read ({error}); delete {file.parent} to make it again") from None


def stored_as(schema: pa.Schema) -> dict[str, Any]:
    """How tables of texts and token ids are written: read twice as fast as by default, and no larger.

    Dictionaries of texts come to nothing, and shards are read whole, so nobody asks for the least and the greatest text
    in one; the bytes of ids compress better by place, where the upper ones are alike.
    """
    ids = [f"{field.name}.list.element" for field in schema if _are_ids(field.type)]
    return {"compression": "lz4", "use_dictionary": False, "use_byte_stream_split": ids, "write_statistics": False}


def _are_ids(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_int32(kind.value_type))


def prompts_table(prompts: Iterable[Prompt]) -> pa.Table:
    return pa.Table.from_pylist([_prompt_row(prompt) for prompt in prompts], PROMPTS)


def read_prompts(table: pa.Table) -> list[Prompt]:
    return [_prompt(row) for row in table.to_pylist()]


def candidates_table(groups: Iterable[Group]) -> pa.Table:
    rows = [
        {"prompt_id": group.prompt.id, **_candidate_row(candidate)}
        for group in groups
        for candidate in group.candidates
    ]
    return pa.Table.from_pylist(rows, CANDIDATES)


def read_groups(table: pa.Table, prompts: Mapping[str, Prompt]) -> list[Group]:
    """Groups in the order of their first row; ``prompts`` by id must hold every prompt named."""
    candidates: dict[str, list[Candidate]] = {}
    for row in table.to_pylist():
        candidates.setdefault(row["prompt_id"], []).append(_candidate(row))
    return [Group(prompts[prompt_id], tuple(group)) for prompt_id, group in candidates.items()]


def judgments_table(judgments: Iterable[Judgment]) -> pa.Table:
    rows = [
        {
            "prompt_id": judgment.prompt_id,
            "judge": judgment.judge,
            "scores": list(judgment.scores),
            "votes": json.dumps(list(judgment.votes), ensure_ascii=False),
        }
        for judgment in judgments
    ]
    return pa.Table.from_pylist(rows, JUDGMENTS)


def read_judgments(table: pa.Table) -> list[Judgment]:
    return [
        Judgment(row["prompt_id"], row["judge"], tuple(row["scores"]), tuple(json.loads(row["votes"])))
        for row in table.to_pylist()
    ]


def all_judgments(tables: Iterable[pa.Table]) -> list[Judgment]:
    """Of all shards, in their order."""
    return [judgment for table in tables for judgment in read_judgments(table)]


def pairs_table(pairs: Iterable[PreferencePair]) -> pa.Table:
    return pa.Table.from_pylist([_pair_row(pair) for pair in pairs], PAIRS)


def read_pairs(table: pa.Table) -> list[PreferencePair]:
    return [
        PreferencePair(
            id=row["pair_id"],
            prompt=_prompt({"prompt_id": row["prompt_id"], **_without("prompt_", row)}),
            chosen=_candidate(_without("chosen_", row)),
            rejected=_candidate(_without("rejected_", row)),
            score_chosen=row["score_chosen"],
            score_rejected=row["score_rejected"],
            round=row["round"],
            candidates_key=row["candidates_key"],
            judgments_key=row["judgments_key"],
        )
        for row in table.to_pylist()
    ]


def drops_table(drops: Sequence[tuple[str, str, str]]) -> pa.Table:
    """``drops`` holds (prompt id, reason, detail)."""
    return pa.Table.from_pylist([dict(zip(DROPS.names, drop, strict=True)) for drop in drops], DROPS)


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.id, "text": prompt.text, "token_ids": prompt.token_ids,
        "messages": list(prompt.messages), "answer": prompt.answer, "source": prompt.source,
    }  # fmt: skip


def _prompt(row: Mapping[str, Any]) -> Prompt:
    return Prompt(
        row["prompt_id"], row["text"], tuple(row["token_ids"]), tuple(row["messages"] or ()), row["answer"],
        row["source"],
    )  # fmt: skip


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name, _ in CANDIDATE_FIELDS}


def _candidate(row: Mapping[str, Any]) -> Candidate:
    return Candidate(
        row["index"], tuple(row["token_ids"]), row["text"], row["finish_reason"], row["seed"],
        row["cumulative_logprob"], row["model"],
    )  # fmt: skip


def _pair_row(pair: PreferencePair) -> dict[str, Any]:
    prompt = {f"prompt_{name}" if name != "prompt_id" else name: v for name, v in _prompt_row(pair.prompt).items()}
    return {
        "pair_id": pair.id, "round": pair.round, **prompt,
        **{f"chosen_{name}": value for name, value in _candidate_row(pair.chosen).items()},
        **{f"rejected_{name}": value for name, value in _candidate_row(pair.rejected).items()},
        "score_chosen": pair.score_chosen, "score_rejected": pair.score_rejected, "margin": pair.margin,
        "candidates_key": pair.candidates_key, "judgments_key": pair.judgments_key,
    }  # fmt: skip


def _without(prefix: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
