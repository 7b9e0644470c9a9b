"""Where a candidate's randomness comes from."""

import hashlib


def draw_seed(run_seed: int, round: int, prompt_id: str, index: int) -> int:
    """The seed of one candidate's request: the same draw in a resumed round, another one everywhere else.

    A hash, because engines offset seeds (child j of n gets ``seed + j`` in vLLM) and neighbours must not meet.
    63 bits: what a signed column, a tensor and every engine can hold.
    """
    name = f"{run_seed}/{round}/{index}/{prompt_id}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) >> 1
