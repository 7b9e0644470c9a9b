"""Completions labelled one by one, as KTO (arXiv 2402.01306) takes them: desirable or not.

By their role in pairs: what was only ever chosen is desirable, what was only ever rejected is not. So every filter of
pairing holds here too, and a judge whose scores mean something within a group only will do. With the rule ``threshold``
and a large ``pairs_per_prompt`` these are the labels of a verifier. A completion is its text: sampled twice, it is
labelled once, and one that won a comparison and lost another is neither, and is left out and counted.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables import CANDIDATE_FIELDS, PAIRS

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
    won_and_lost: int
    """Completions left out."""


def unpaired_by_role(pairs: pa.Table) -> Unpaired:
    """Of a table with all pairs of some prompts, each text of a prompt once, chosen ones before rejected ones. The
    score is that which pairing compared. Without the token ids, where the table was read without."""
    sides = pa.concat_tables([_side(pairs, "chosen", True), _side(pairs, "rejected", False)])
    coded = sides["text"].dictionary_encode()  # all pieces by one dictionary
    texts = pa.chunked_array([pc.cast(piece.indices, pa.string()) for piece in coded.chunks], pa.string())
    name = pc.binary_join_element_wise(sides["candidates_key"], sides["prompt_id"], texts, "\0")
    codes = name.combine_chunks().dictionary_encode().indices.to_numpy()
    desirable = sides["desirable"].to_numpy()
    count = int(codes.max(initial=-1)) + 1
    won, lost = (np.bincount(codes[side], minlength=count) > 0 for side in (desirable, ~desirable))
    firsts = np.unique(codes, return_index=True)[1]
    kept = np.sort(firsts[(won ^ lost)[codes[firsts]]])
    return Unpaired(sides.take(pa.array(kept)), int((won & lost).sum()))


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
