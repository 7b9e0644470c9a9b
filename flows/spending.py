"""What asking language models costs: before it is done, and after."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import RenderableType
from rich.table import Table

from flows.judging import LEDGER, compares
from pipeline.config import DataConfig, JudgeConfig, PairwiseJudge, PanelJudge, PointwiseJudge, RunConfig, ServedModel
from pipeline.prompts import load_prompts, peek, round_slice
from pipeline.types import Candidate, Group, Prompt

if TYPE_CHECKING:
    from judges import Desk
    from judges.pairwise import PairwiseJudge as Pairwise
    from judges.pointwise import PointwiseJudge as Pointwise
    from pipeline.calls.estimate import Estimate
    from pipeline.calls.ledger import Use
    from pipeline.calls.request import Request


BY_BATCH = (
    "By batch: answers come within a day. A round's models are asked side by side, and so are a panel's members; the"
    " judge after the models."
)


class _Drawing(Protocol):
    """How much a model writes for one prompt."""

    @property
    def n(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Own:
    """How much the policy writes."""

    n: int
    max_tokens: int


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
    longest = config.sampling.max_tokens
    answering: list[_Drawing] = [_Own(config.sampling.n, longest), *config.sampling.proposers.values()]
    labelled = [
        _stand_in(replace(prompt, id=f"{number} {prompt.id}"), answering)
        for number in range(rounds)
        for prompt in prompts
    ]
    # Who compares sees the initial policy's answers alone, then two policies' together: against the round's start and
    # against the initial policy, which in round 0 are one. Who does not sees each policy's once.
    relative = compares(config.evaluation.judge or config.judge)
    sizes = [1, *([2] if rounds else []), *([2, 2] * (rounds - 1))] if relative else [1] * (rounds + 1)
    evaluated = [
        _stand_in(replace(prompt, id=f"{number} {prompt.id}"), [_Own(size * config.evaluation.n, longest)])
        for number, size in enumerate(sizes)
        for prompt in held_out
    ]
    return labelled, evaluated


def of_whole_run(config: RunConfig, paid_from: "Desk") -> "list[Estimate]":
    """What proposers and judges would be asked in all rounds and evaluations, an entry an endpoint.

    Raises:
        DataError: the prompts, or the labels that the judge is checked with, cannot be read.
    """
    labelled, evaluated = of_run(config, config.rounds)
    found = of_proposers(config, paid_from) + estimates(config.judge, labelled, paid_from)
    if config.health.require:
        labels = None if config.health.labels is None else Path(config.health.labels)
        found += estimates(config.judge, of_check(labels, config.health.limit), paid_from)
    return found + estimates(config.evaluation.judge or config.judge, evaluated, paid_from)


def estimating(workspace: Path) -> "Desk":
    """Who pays for an estimate: nobody; what the ledger has is known."""
    from judges import Desk

    return Desk(str(workspace.resolve() / LEDGER), "estimate")


def _stand_in(prompt: Prompt, drawn: Iterable[_Drawing]) -> Group:
    """n candidates for each model, as long as it may write, at four characters a token; all different."""
    lengths = [each.max_tokens for each in drawn for _ in range(each.n)]
    texts = [f"{prompt.id} {index} ".ljust(4 * tokens, "x") for index, tokens in enumerate(lengths)]
    return Group(prompt, tuple(Candidate(index, (), text, "length", 0) for index, text in enumerate(texts)))


def of_proposers(config: RunConfig, paid_from: "Desk") -> "list[Estimate]":
    """What the proposers would be asked in all rounds, an entry a model. Raises DataError as :func:`of_run` does.

    Prompts are known by their rows here and by their policy's tokens in a run, so the ledger is not looked into.
    """
    prompts = peek(config.prompts, config.prompts.per_round or 10**9) if config.sampling.proposers else []
    windows = [prompts] * config.rounds
    return _of_models(config.sampling.proposers, windows, config.seed, config.limits.unanswered, paid_from)


def of_data(config: DataConfig, paid_from: "Desk") -> "list[Estimate]":
    """What a data run's models and judge would be asked, an entry an endpoint. Sends nothing, and needs no key.

    Raises:
        DataError: the prompts cannot be read.
    """
    prompts = load_prompts(config.prompts, None, config.seed).rounds
    per_round, weights = config.prompts.per_round, config.prompts.weights
    windows = [round_slice(prompts, each, per_round, config.seed, weights) for each in range(config.rounds)]
    served = {name: model for name, model in config.models.items() if isinstance(model, ServedModel)}
    groups = [
        _stand_in(replace(prompt, id=f"{number} {prompt.id}"), config.models.values())
        for number, window in enumerate(windows)
        for prompt in window
    ]
    found = _of_models(served, windows, config.seed, config.limits.unanswered, paid_from)
    if config.health.require:
        labels = None if config.health.labels is None else Path(config.health.labels)
        found += estimates(config.judge, of_check(labels, config.health.limit), paid_from)
    return found + estimates(config.judge, groups, paid_from)


def _of_models(
    models: Mapping[str, ServedModel], windows: Sequence[Sequence[Prompt]], seed: int, unanswered: float,
    paid_from: "Desk",
) -> "list[Estimate]":  # fmt: skip
    from pipeline.calls.estimate import estimate
    from pipeline.sampling.proposals import Proposer

    found = []
    for name, model in models.items():
        requests = [
            request
            for number, window in enumerate(windows)
            for request in Proposer(name, model, paid_from, seed, number, unanswered).requests(window)
        ]
        found.append(estimate(model.endpoints[0], requests, _answered(requests, paid_from)))
    return found


def _answered(requests: "Iterable[Request]", paid_from: "Desk") -> set[str]:
    from pipeline.calls.ledger import opened

    if not Path(paid_from.ledger).exists():  # to open one is to make it
        return set()
    return opened(paid_from.ledger).answered(request.key for request in requests)


def estimates(config: JudgeConfig, groups: Sequence[Group], paid_from: "Desk") -> "list[Estimate]":
    """Calls, tokens and money of judging ``groups``, an entry an endpoint. Empty where no language model is asked.

    Sends nothing, and needs no key.
    """
    from pipeline.calls.estimate import estimate

    if isinstance(config, PanelJudge):
        return [each for member in config.members.values() for each in estimates(member.judge, groups, paid_from)]
    if not isinstance(config, PointwiseJudge | PairwiseJudge):
        return []
    asked: list[list[Request]] = [[] for _ in config.endpoints]
    with closing(_llm_judge(config, paid_from)) as judge:
        for endpoint, request in judge.calls(groups):
            asked[endpoint].append(request)
    answered = _answered((request for requests in asked for request in requests), paid_from)
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
    for name in ("model", "asked", "calls", "in the ledger", "prompt tokens", "reply tokens at most", "cost"):
        table.add_column(name, justify="left" if name in ("model", "asked") else "right")
    for each in estimates:
        cost = "no prices" if each.low is None else f"{each.low:.2f} to {each.high:.2f}"
        way = "by batch" if each.batch else "at once"
        table.add_row(each.model, way, f"{each.calls:,}", f"{each.answered:,}", f"{each.prompt_tokens:,}",
                      f"{each.most_reply_tokens:,}", cost)  # fmt: skip
    if any(each.batch and each.answered < each.calls for each in estimates):
        table.caption, table.caption_justify = BY_BATCH, "left"
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
