"""Sizes rounded up, so that a CPU meets the same ones again.

oneDNN compiles a kernel for every shape of matrix product that it has not met, and keeps the last 1,024. Lengths of
texts are nearly all different, so that a step of preference training spent a sixth of its time on compiling, more than
its attention on computing; and the kernels took more memory than the activations. On a GPU sizes stay as they are.
"""

QUERIES = 32
"""Multiple for the queries of a block of attention."""
KEYS = 64
"""Multiple for its keys."""
TOKENS = 32
"""Multiple for the positions of a head's chunk."""


def up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def up_finely(size: int) -> int:
    """Rounded up by less than 1/32: 32 sizes between one power of two and the next."""
    return up(size, 1 << max(0, size.bit_length() - 6))
