"""Which prompts are held out, and which come in which round."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.store import digest
from pipeline.types import Prompt


def split(
    prompts: Sequence[Prompt], marked: frozenset[str], held_out: int, seed: int
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """(held out, for the rounds, surplus), each in the order given.

    Those whose ids are ``marked`` are held out first, then others in an order that only ids and ``seed`` decide. A
    marked one too many is surplus: never trained on.
    """
    order = sorted(prompts, key=lambda prompt: (prompt.id not in marked, digest([seed, "held_out", prompt.id])))
    apart = {prompt.id for prompt in order[:held_out]}
    return (
        [prompt for prompt in prompts if prompt.id in apart],
        [prompt for prompt in prompts if prompt.id not in apart | marked],
        [prompt for prompt in prompts if prompt.id in marked - apart],
    )


def round_slice(
    prompts: Sequence[Prompt], round: int, per_round: int, seed: int, weights: Mapping[str, float] | None = None
) -> list[Prompt]:
    """The prompts of round 0, 1, …: successive windows of ``per_round`` over one shuffle after another.

    No prompt comes twice before all have come once, and none twice in a window. A window depends on the set of
    prompts (not their order), on ``per_round``, ``seed``, ``weights`` and ``round``, and not on how many rounds there
    will be. ``per_round`` 0, or more than there are, takes all, in the order given.

    Args:
        weights: of a mixture's members: each window has its share of each, see :func:`interleaved`.
    """
    if per_round == 0 or per_round >= len(prompts):
        return list(prompts)
    stream: list[Prompt] = []
    for lap in range((round + 1) * per_round // len(prompts) + 1):
        begun = stream[len(stream) - len(stream) % per_round :]  # the window that this lap's first prompts complete
        shuffled = sorted(prompts, key=lambda prompt: digest([seed, "round", lap, prompt.id]))
        taken = {prompt.id for prompt in begun}
        # Those already in that window go to the end of the lap, so that a window never holds a prompt twice.
        stream += sorted(interleaved(shuffled, weights), key=lambda prompt: prompt.id in taken)
    return stream[round * per_round : (round + 1) * per_round]


def interleaved(prompts: Sequence[Prompt], weights: Mapping[str, float] | None) -> list[Prompt]:
    """The sources' prompts mixed so that any beginning of the list has its share of each, by ``weights``.

    The j-th prompt of a source of weight w stands at (2j + 1) / 2w: a beginning is then a Sainte-Laguë apportionment,
    that is, each source's share of it rounded. What is rounded off in one window is made good in the next, so that a
    small source is not left out of every one, and a source that has run dry leaves its share to the others.
    """
    if weights is None:
        return list(prompts)
    seen: Counter[str] = Counter()
    places = []
    for prompt in prompts:
        places.append(((2 * seen[prompt.source] + 1) / (2 * weights[prompt.source]), prompt.source))
        seen[prompt.source] += 1
    return [prompts[index] for index in sorted(range(len(prompts)), key=places.__getitem__)]
