"""A run's tables as a data set's columns, a shard at a time. Pure, and columnar: no row becomes a Python object.

``default``, ``kto`` and ``sft`` are what TRL calls explicit preferences, unpaired preferences and prompt-completion,
each conversational where the run's prompts are (lists of messages), else standard (strings).
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.export.public import public_judge
from pipeline.tables import CANDIDATE_FIELDS, DROPS, IDS, MESSAGES

TEXT, SCORE, ROUND = pa.string(), pa.float64(), pa.int32()
CONFIGS = {
    "default": "a preference pair",
    "kto": "a completion labelled good or bad by itself",
    "sft": "the best completion of a prompt",
    "candidates": "a completion, paired or not",
    "judgments": "what a judge said of a prompt's completions",
    "prompts": "a prompt that was asked",
    "dropped": "a prompt that gave no pair, and why",
}
"""By name, in the order they are listed; and what a row of each is."""
TEXTS = frozenset({"prompt", "chosen", "rejected", "completion", "text", "answer", "votes", "detail"})
"""Columns whose values are long, and seldom come again."""
PERSON, REMARK = "annotator", "comment"
"""Keys of a person's vote that are nobody else's business: who gave it, and what they wrote beside it."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all rows of a round have in common."""

    round: int
    policy: str
    """Digest of the policy that sampled; empty where the models were others'."""
    chat: bool
    """Whether prompts and completions are written as messages."""


def schema(config: str, chat: bool) -> pa.Schema:
    """The columns of a config."""
    said = MESSAGES if chat else TEXT
    lineage = [("prompt_id", TEXT), ("round", ROUND), ("policy", TEXT)]
    columns: dict[str, list[tuple[str, pa.DataType]]] = {
        "default": [
            ("prompt", said), ("chosen", said), ("rejected", said), ("score_chosen", SCORE), ("score_rejected", SCORE),
            ("margin", SCORE), ("prompt_id", TEXT), ("pair_id", TEXT), ("round", ROUND), ("policy", TEXT),
            ("chosen_model", TEXT), ("rejected_model", TEXT), ("source", TEXT), ("prompt_token_ids", IDS),
            ("chosen_token_ids", IDS), ("rejected_token_ids", IDS),
        ],
        "kto": [
            ("prompt", said), ("completion", said), ("label", pa.bool_()), ("score_compared", SCORE), *lineage,
            ("index", ROUND), ("model", TEXT), ("source", TEXT),
        ],
        "sft": [
            ("prompt", said), ("completion", said), ("score", SCORE), *lineage, ("index", ROUND), ("model", TEXT),
            ("source", TEXT),
        ],
        "candidates": [*lineage, *CANDIDATE_FIELDS],
        "judgments": [
            ("prompt_id", TEXT), ("round", ROUND), ("judge", TEXT), ("member", TEXT), ("scores", pa.list_(SCORE)),
            ("votes", TEXT),
        ],
        "prompts": [
            ("prompt_id", TEXT), ("round", ROUND), ("prompt", said), ("text", TEXT), ("token_ids", IDS),
            ("answer", TEXT), ("source", TEXT),
        ],
        "dropped": [("prompt_id", TEXT), ("round", ROUND), *((name, TEXT) for name in DROPS.names[1:])],
    }  # fmt: skip
    return pa.schema(columns[config])


def exported_as(schema: pa.Schema) -> dict[str, Any]:
    """How a config's files are written: in encodings that every reader knows. A dictionary of texts, or of token ids,
    takes longer to make than it saves in reading, and nobody asks for the least of them."""
    short = [field.name for field in schema if field.name not in TEXTS and not pa.types.is_list(field.type)]
    return {"compression": "zstd", "use_dictionary": short, "write_statistics": short}


def preferences(pairs: pa.Table, common: Common) -> pa.Table:
    """``default``: a row a pair, of a table with the columns of ``pipeline.tables.PAIRS``."""
    sides = {side: _answers(pairs[f"{side}_text"], common) for side in ("chosen", "rejected")}
    return _table("default", common, pairs, {"prompt": _prompts(pairs, "prompt_", common), **sides,
                                             "source": pairs["prompt_source"]})  # fmt: skip


def labelled(completions: pa.Table, common: Common) -> pa.Table:
    """``kto``: of a table with the columns of ``pipeline.pairing.unpaired.UNPAIRED``."""
    return _table("kto", common, completions, {
        "prompt": _prompts(completions, "prompt_", common), "completion": _answers(completions["text"], common),
        "label": completions["desirable"], "score_compared": completions["score"],
        "source": completions["prompt_source"],
    })  # fmt: skip


def best_of_n(prompts: pa.Table, candidates: pa.Table, judgments: pa.Table, common: Common) -> pa.Table:
    """``sft``: of each group the completion with the highest score that is finished and not empty, if there is one.

    Args:
        prompts, candidates, judgments: of one shard, in the same order. Of equal scores the first counts.
    """
    sizes = pc.list_value_length(judgments["scores"]).to_numpy()
    assert sizes.sum() == candidates.num_rows, "every candidate has one score"
    assert prompts["prompt_id"].equals(judgments["prompt_id"]), "judgments are in the prompts' order"
    scores = pc.list_flatten(judgments["scores"]).to_numpy().astype(float)  # None becomes NaN
    group = np.repeat(np.arange(len(sizes)), sizes)
    full = pc.not_equal(pc.utf8_trim_whitespace(candidates["text"]), "").to_numpy()
    usable = np.isfinite(scores) & full & pc.equal(candidates["finish_reason"], "stop").to_numpy()
    order = np.lexsort((np.arange(len(scores)), -np.where(usable, scores, -np.inf), group))
    first = order[np.flatnonzero(np.diff(group, prepend=-1))]
    best = first[usable[first]]
    rows, asked = candidates.take(pa.array(best)), prompts.take(pa.array(group[best]))
    return _table(
        "sft", common, rows,
        {
            "prompt": _prompts(asked, "", common), "completion": _answers(rows["text"], common),
            "score": pa.array(scores[best]), "source": asked["source"],
        },
    )  # fmt: skip


def candidates(table: pa.Table, common: Common) -> pa.Table:
    return _table("candidates", common, table, {})


def judgments(table: pa.Table, common: Common, member: str = "") -> pa.Table:
    """``member`` is the name in the panel; empty for the judge whose scores were paired. Of people's votes neither
    names nor comments are kept, and of a judge that is a file here its last part."""
    names = table["judge"].unique().to_pylist()
    told = pa.array([public_judge(name) for name in names], TEXT).take(
        pc.index_in(table["judge"], pa.array(names, TEXT))
    )
    more = {"member": pa.repeat(member, table.num_rows), "judge": told, "votes": _without_people(table["votes"])}
    return _table("judgments", common, table, more)


def _without_people(votes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Evidence as JSON. Only what has a person's key is read, which quotes within a text, escaped, never look like."""
    if not pc.any(pc.match_substring(votes, f'"{PERSON}"'), min_count=0).as_py():
        return votes
    return pa.chunked_array([[_impersonal(each) for each in votes.to_pylist()]], TEXT)


def _impersonal(votes: str) -> str:
    told = [
        {key: value for key, value in vote.items() if key not in (PERSON, REMARK)} if PERSON in vote else vote
        for vote in json.loads(votes)
    ]
    return json.dumps(told, ensure_ascii=False)


def prompts(table: pa.Table, common: Common) -> pa.Table:
    return _table("prompts", common, table, {"prompt": _prompts(table, "", common)})


def dropped(table: pa.Table, common: Common) -> pa.Table:
    return _table("dropped", common, table, {})


def _table(config: str, common: Common, table: pa.Table, more: dict[str, pa.Array]) -> pa.Table:
    """The config's columns: from ``more``, from the round, or as they are in ``table``."""
    wanted = schema(config, common.chat)
    same = {"round": pa.repeat(pa.scalar(common.round, ROUND), table.num_rows),
            "policy": pa.repeat(common.policy, table.num_rows)}  # fmt: skip
    found = [more[name] if name in more else same[name] if name in same else table[name] for name in wanted.names]
    return pa.table(found, wanted.names).cast(wanted)


def _prompts(table: pa.Table, prefix: str, common: Common) -> pa.ChunkedArray | pa.Array:
    """Plain prompts as they are, in a run of conversations as a user's turn."""
    messages, texts = table[f"{prefix}messages"], table[f"{prefix}text"]
    if not common.chat:
        return texts
    plain = pc.equal(pc.coalesce(pc.list_value_length(messages), 0), 0)
    if not pc.any(plain, min_count=0).as_py():
        return messages
    return pc.if_else(plain, _turns("user", texts), _whole(messages.cast(MESSAGES)))


def _answers(texts: pa.ChunkedArray, common: Common) -> pa.ChunkedArray | pa.Array:
    return _turns("assistant", texts) if common.chat else texts


def _turns(role: str, texts: pa.ChunkedArray) -> pa.Array:
    """One message a row."""
    content = _whole(texts)
    offsets = pa.array(np.arange(len(content) + 1), pa.int32())
    turns = pa.StructArray.from_arrays([pa.repeat(role, len(content)), content], ["role", "content"])
    return pa.ListArray.from_arrays(offsets, turns).cast(MESSAGES)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
