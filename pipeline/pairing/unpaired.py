"""Completions labelled one by one, as KTO (arXiv 2402.01306) takes them: desirable or not.

By their role in pairs: what was only ever chosen is desirable, what was only ever rejected is not. So every filter of
pairing holds here too, and a judge whose scores mean something within a group only will do. With the rule ``threshold``
and a large ``pairs_per_prompt`` these are the labels of a verifier. A completion that won one comparison and lost
another is neither, and is left out and counted.

By a threshold on scores, where they mean the same for every prompt: then groups that gave no pair count as well, those
that a verifier found all right or all wrong.

Both work on one shard at a time, since a group's rows lie in one shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pairing.columns import Shard, array
from pipeline.tables import CANDIDATE_FIELDS, PAIRS, PROMPTS

OF_PROMPT = [name for name in PAIRS.names if name.startswith("prompt_")]
UNPAIRED = pa.schema(
    [
        ("round", pa.int32()), *((name, PAIRS.field(name).type) for name in OF_PROMPT), *CANDIDATE_FIELDS,
        ("score", pa.float64()), ("desirable", pa.bool_()),
        ("candidates_key", pa.string()), ("judgments_key", pa.string()),
    ]
)  # fmt: skip
"""A row a completion: the prompt's columns as in pairs, and the candidate's own."""


@dataclass(frozen=True, slots=True)
class Unpaired:
    completions: pa.Table
    """Schema ``UNPAIRED``."""
    dropped: Mapping[str, int]
    """Completions left out, by reason: ``won_and_lost``, ``abstained``, ``empty``."""


def unpaired_by_role(pairs: pa.Table) -> Unpaired:
    """Of a table of pairs, each candidate once, chosen ones before rejected ones. The score is that which pairing
    compared. Without the token ids, where the table was read without."""
    sides = pa.concat_tables([_side(pairs, "chosen", True), _side(pairs, "rejected", False)])
    name = pc.binary_join_element_wise(
        sides["candidates_key"], sides["prompt_id"], pc.cast(sides["index"], pa.string()), "\0"
    )
    codes = name.combine_chunks().dictionary_encode().indices.to_numpy()
    desirable = sides["desirable"].to_numpy()
    count = int(codes.max(initial=-1)) + 1
    won, lost = (np.bincount(codes[side], minlength=count) > 0 for side in (desirable, ~desirable))
    firsts = np.unique(codes, return_index=True)[1]
    kept = np.sort(firsts[(won ^ lost)[codes[firsts]]])
    return Unpaired(sides.take(pa.array(kept)), {"won_and_lost": int((won & lost).sum())})


def unpaired_by_threshold(
    shard: Shard, threshold: float, round: int, candidates_key: str, judgments_key: str
) -> Unpaired:
    """Of a shard, each candidate: desirable at or above the threshold. An empty one is never desirable; one that
    would be is left out, and so is one that the judge gave no score."""
    scores = array(shard.judgments, "scores")
    sizes = pc.list_value_length(scores).to_numpy()
    flat = scores.flatten().to_numpy(zero_copy_only=False)
    texts = array(shard.candidates, "text")
    empty = pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0)).to_numpy(zero_copy_only=False)
    desirable, scored = flat >= threshold, np.isfinite(flat)
    kept = np.flatnonzero(scored & ~(desirable & empty))
    prompts = shard.prompts.take(pa.array(np.repeat(np.arange(len(sizes)), sizes)[kept]))
    rows = shard.candidates.take(pa.array(kept))
    filled = [
        pa.array(np.full(len(kept), round, np.int32)),
        *(prompts[name if name in PROMPTS.names else name.removeprefix("prompt_")] for name in OF_PROMPT),
        *(rows[name] for name, _ in CANDIDATE_FIELDS),
        pa.array(flat[kept]), pa.array(desirable[kept]),
        pa.repeat(candidates_key, len(kept)), pa.repeat(judgments_key, len(kept)),
    ]  # fmt: skip
    dropped = {"abstained": int((~scored).sum()), "empty": int((scored & desirable & empty).sum())}
    return Unpaired(pa.table(filled, schema=UNPAIRED), {name: count for name, count in dropped.items() if count})


def _side(pairs: pa.Table, role: str, desirable: bool) -> pa.Table:
    count = pairs.num_rows
    columns = {
        "round": pairs["round"],
        **{name: pairs[name] for name in OF_PROMPT if name in pairs.schema.names},
        **{name: pairs[f"{role}_{name}"] for name, _ in CANDIDATE_FIELDS if f"{role}_{name}" in pairs.schema.names},
        "score": pairs[f"score_{role}"], "desirable": pa.array(np.full(count, desirable)),
        "candidates_key": pairs["candidates_key"], "judgments_key": pairs["judgments_key"],
    }  # fmt: skip
    return pa.table(columns, schema=pa.schema([UNPAIRED.field(name) for name in columns]))
