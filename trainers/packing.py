"""Prompt groups in packed rows: every prompt once, then each of its completions once.

    [prompt | y1 | y2 | prompt' | y1' | …]

A prompt attends itself causally; a completion attends its prompt and itself, its positions going on where the prompt
ends. A completion's last token is never needed as input, and the first token of every completion is predicted at the
prompt's last position: a group of prompt P and completions C costs P + Σ(C − 1) tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.examples import Row
from trainers.rounding import up_finely

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt with its different completions, in the order they came."""

    prompt: Tokens
    completions: tuple[Tokens, ...]

    @property
    def tokens(self) -> int:
        """Input tokens of the group in a pack."""
        return len(self.prompt) + sum(len(completion) - 1 for completion in self.completions)

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(Row(self.prompt, completion) for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a group lies in a packed row."""

    start: int
    prompt: int
    """Tokens of the prompt."""
    branches: tuple[tuple[int, int], ...]
    """Start and input length of every completion; the length is 0 for a completion of one token."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Some prompt groups as one row of T tokens, predicting N tokens of n completions."""

    groups: tuple[PromptGroup, ...]
    spans: tuple[Span, ...]
    input_ids: Tensor
    """[1, T]"""
    position_ids: Tensor
    """[1, T]: positions within prompt + completion."""
    predictors: Tensor
    """[N] place in the row whose hidden state predicts each target."""
    targets: Tensor
    """[N] the completions' tokens, one completion after another."""
    lengths: tuple[int, ...]
    """[n] tokens of each completion."""

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]

    def chunks(self, limit: int) -> list[tuple[slice, slice]]:
        """Runs of whole groups, as slices of their targets and of their completions, of at most ``limit`` targets.

        A group of more targets is a chunk of its own: what is compared stays together.
        """
        runs: list[tuple[slice, slice]] = []
        token = row = 0
        for group in self.groups:
            size = sum(map(len, group.completions))
            end = (token + size, row + len(group.completions))
            if runs and end[0] - runs[-1][0].start <= limit:
                runs[-1] = (slice(runs[-1][0].start, end[0]), slice(runs[-1][1].start, end[1]))
            else:
                runs.append((slice(token, end[0]), slice(row, end[1])))
            token, row = end
        return runs


def group_rows(rows: Iterable[Row]) -> list[PromptGroup]:
    """The rows by prompt, equal ones once, prompts and completions in the order of their first appearance."""
    by_prompt: dict[Tokens, dict[Tokens, None]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, {})[row.completion] = None
    return [PromptGroup(prompt, tuple(completions)) for prompt, completions in by_prompt.items()]


def pack(groups: Sequence[PromptGroup], device: torch.device | str = "cpu") -> Pack:
    """The groups one after another in one row; on a CPU a few tokens of no group round its length up."""
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    spans: list[Span] = []
    for group in groups:
        start, prompt = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(prompt)
        branches = []
        for completion in group.completions:
            first, length = len(ids), len(completion) - 1
            branches.append((first, length))
            ids += completion[:-1]
            positions += range(prompt, prompt + length)
            predictors += [start + prompt - 1, *range(first, first + length)]
        spans.append(Span(start, prompt, tuple(branches)))
    filling = up_finely(len(ids)) - len(ids) if torch.device(device).type == "cpu" else 0
    ids += [0] * filling
    positions += [0] * filling
    completions = [completion for group in groups for completion in group.completions]
    return Pack(
        groups=tuple(groups),
        spans=tuple(spans),
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        predictors=torch.tensor(predictors, device=device),
        targets=torch.tensor([token for completion in completions for token in completion], device=device),
        lengths=tuple(map(len, completions)),
    )


def split_by_budget(groups: Sequence[PromptGroup], budget: int, multiple: int = 1) -> list[list[PromptGroup]]:
    """The groups in lists of at most ``budget`` tokens and about equal size, their number a multiple of ``multiple``.

    A group longer than the budget gets a list of its own; lists are empty only where the groups are too few for a
    ``multiple``. Used inside one optimiser batch only: what is forwarded together changes memory and speed, never the
    result.
    """
    largest_first = sorted(groups, key=lambda group: -group.tokens)  # stable: equal sizes keep their order
    bins = max(1, min(-(-sum(group.tokens for group in groups) // budget), len(groups)))
    while True:
        bins = -(-bins // multiple) * multiple
        lists: list[list[PromptGroup]] = [[] for _ in range(bins)]
        loads = [0] * bins
        for group in largest_first:
            lightest = loads.index(min(loads))
            lists[lightest].append(group)
            loads[lightest] += group.tokens
        if all(load <= budget or len(items) == 1 for load, items in zip(loads, lists, strict=True)):
            return lists
        bins += 1
