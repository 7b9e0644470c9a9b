"""What asking language models costs: before it is done, and after."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from flows.judging import compares
from pipeline.config import JudgeConfig, PairwiseJudge, PanelJudge, PointwiseJudge, RunConfig
from pipeline.prompts import peek
from pipeline.types import Candidate, Group, Prompt

if TYPE_CHECKING:
    from judges import Desk
    from judges.pairwise import PairwiseJudge as Pairwise
    from judges.pointwise import PointwiseJudge as Pointwise
    from pipeline.calls.estimate import Estimate
    from pipeline.calls.ledger import Use
    from pipeline.calls.request import Request


def of_check(labels: Path | None, limit: int | None) -> list[Group]:
    """What ``ratchet judge check`` would have judged. Raises DataError where the labels cannot be read."""
    from judges.health.canaries import canaries
    from judges.health.check import drawn, groups
    from judges.labels.reading import read_labels

    pairs = [] if labels is None else drawn(read_labels(labels).pairs, limit)
    return [*groups(pairs), *(canary.group for canary in canaries())]


def of_run(config: RunConfig, rounds: int) -> tuple[list[Group], list[Group]]:
    """Groups like those that the judge and the held-out judge will see, each candidate as long as it may be.

    Raises:
        DataError: the prompts cannot be read.
    """
    prompts = peek(config.prompts, config.prompts.per_round or 10**9)
    held_out = prompts[: config.prompts.held_out]
    labelled = [
        _stand_in(replace(prompt, id=f"{number} {prompt.id}"), config.sampling.n, config.sampling.max_tokens)
        for number in range(rounds)
        for prompt in prompts
    ]
    # Who compares sees the initial policy's answers alone, then two policies' together: against the round's start and
    # against the initial policy, which in round 0 are one. Who does not sees each policy's once.
    relative = compares(config.evaluation.judge or config.judge)
    sizes = [1, *([2] if rounds else []), *([2, 2] * (rounds - 1))] if relative else [1] * (rounds + 1)
    evaluated = [
        _stand_in(replace(prompt, id=f"{number} {prompt.id}"), size * config.evaluation.n, config.sampling.max_tokens)
        for number, size in enumerate(sizes)
        for prompt in held_out
    ]
    return labelled, evaluated


def _stand_in(prompt: Prompt, n: int, tokens: int) -> Group:
    """Candidates of ``tokens`` tokens, at four characters each, all different."""
    texts = [f"{prompt.id} {index} ".ljust(4 * tokens, "x") for index in range(n)]
    return Group(prompt, tuple(Candidate(index, (), text, "length", 0) for index, text in enumerate(texts)))


def estimates(config: JudgeConfig, groups: Sequence[Group], paid_from: "Desk") -> "list[Estimate]":
    """Calls, tokens and money of judging ``groups``, an entry an endpoint. Empty where no language model is asked.

    Sends nothing, and needs no key.
    """
    from pipeline.calls.estimate import estimate
    from pipeline.calls.ledger import opened

    if isinstance(config, PanelJudge):
        return [each for member in config.members.values() for each in estimates(member.judge, groups, paid_from)]
    if not isinstance(config, PointwiseJudge | PairwiseJudge):
        return []
    asked: list[list[Request]] = [[] for _ in config.endpoints]
    with closing(_llm_judge(config, paid_from)) as judge:
        for endpoint, request in judge.calls(groups):
            asked[endpoint].append(request)
    answered: set[str] = set()
    if Path(paid_from.ledger).exists():  # to open one is to make it
        answered = opened(paid_from.ledger).answered(request.key for requests in asked for request in requests)
    return [estimate(endpoint, requests, answered) for endpoint, requests in zip(config.endpoints, asked, strict=True)]


def _llm_judge(config: PointwiseJudge | PairwiseJudge, paid_from: "Desk") -> "Pointwise | Pairwise":
    from judges import pairwise, pointwise

    if isinstance(config, PointwiseJudge):
        return pointwise.PointwiseJudge(config, "estimate", paid_from)
    return pairwise.PairwiseJudge(config, "estimate", paid_from)


def estimates_table(estimates: "Sequence[Estimate]") -> RenderableType:
    if not estimates:
        return "No language model is asked: nothing to pay."
    table = Table(box=None, padding=(0, 2))
    for name in ("model", "calls", "in the ledger", "prompt tokens", "reply tokens at most", "cost"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for each in estimates:
        cost = "no prices" if each.low is None else f"{each.low:.2f} to {each.high:.2f}"
        table.add_row(each.model, f"{each.calls:,}", f"{each.answered:,}", f"{each.prompt_tokens:,}",
                      f"{each.most_reply_tokens:,}", cost)  # fmt: skip
    return table


def uses_table(uses: "Sequence[Use]") -> RenderableType:
    if not uses:
        return "Nothing was asked."
    table = Table(box=None, padding=(0, 2))
    for name in ("judge", "model", "calls", "from the ledger", "tokens in", "tokens out", "cost", "failed tries"):
        table.add_column(name, justify="left" if name in ("judge", "model", "failed tries") else "right")
    for use in uses:
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(use.failures.items()))
        table.add_row(use.judge, use.model, f"{use.calls:,}", f"{use.cached:,}", f"{use.tokens_in:,}",
                      f"{use.tokens_out:,}", f"{use.cost:.4f}", failed)  # fmt: skip
    return table
