"""One optimiser batch: from examples to gradients, whatever the token budget.

An example's rows share a prompt, so its prompt group has all that its loss compares, and the loss's slopes are found
chunk by chunk while the chunk's probabilities are still there. An objective that couples examples across the batch is
different: the whole batch's log-probabilities are taken first, without gradient; the loss is evaluated once, and its
slopes are applied in a second pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from trainers.comparisons import Comparisons, Completions
from trainers.examples import Example, Pair, Row, Single
from trainers.objective import Objective
from trainers.packed import PackedPolicy
from trainers.packing import Pack, group_rows, pack, split_by_budget
from trainers.parallel import ALONE, Share
from trainers.statistics import Slopes, Statistics, join

SlopesOf = Callable[[Sequence[Row], Statistics], Slopes]
"""From some rows and their statistics to the slopes of the sum of the losses."""


@dataclass(frozen=True, slots=True)
class KnownReference:
    """log π_ref of rows: cached, so that epochs, sweeps and resumes share it. Empty: no reference, zeros."""

    logps: Mapping[Row, float] = field(default_factory=dict)
    """Nats, summed over the completion."""
    token_logps: Mapping[Row, Sequence[float]] | None = None
    """Nats a token, for objectives that need "reference_tokens"."""


class Totals:
    """Sums and counts of figures over the parts of a batch; left on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.gap = 0.0
        """Largest difference between a completion's log π and log π_ref, nats."""

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Each [k]: k entries."""
        for name, values in figures.items():
            total = values.detach().double().sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts.get(name, 0) + len(values)

    def means(self, share: Share = ALONE) -> dict[str, float]:
        """Mean of each figure over its own entries, in all processes."""
        mine = {name: (float(total), self.counts[name]) for name, total in self.sums.items()}
        means: dict[str, float] = {}
        everyone = share.gather(mine)
        for name in {name: None for part in everyone for name in part}:
            entries = [part[name] for part in everyone if name in part]
            means[name] = sum(total for total, _ in entries) / sum(count for _, count in entries)
        return means


class Step:
    """Gradients and figures of an objective on batches of examples, ``token_budget`` tokens at a time.

    ``live`` is a reference policy in memory, for objectives that need its whole distribution ("reference_kl");
    ``mismatched`` has each row's prompt with another's completion, for those that need them ("mismatched");
    ``initial`` is log π₀ of rows. Of several processes each runs its ``share`` of the packs, and all run equally many.
    """

    def __init__(
        self,
        policy: PackedPolicy,
        objective: Objective,
        reference: KnownReference,
        token_budget: int,
        live: PackedPolicy | None = None,
        mismatched: Mapping[Row, Row] | None = None,
        initial: Mapping[Row, float] | None = None,
        share: Share = ALONE,
    ) -> None:
        self.policy, self.objective, self.reference, self.token_budget = policy, objective, reference, token_budget
        self.live, self.mismatched, self.initial, self.share = live, mismatched or {}, initial or {}, share
        self.totals = Totals()
        """Of the last batch."""
        self.collision = "collision" in objective.needs

    def backward(self, examples: Sequence[Example]) -> dict[str, float]:
        """Add the gradient of the examples' mean loss to the policy's weights; figures as of before the update."""
        totals = self.totals = Totals()
        slopes = self._known_slopes(examples, totals) if self.objective.coupled else self._slopes(examples, totals)
        scale = self.share.size / len(examples)  # gradients are averaged over processes

        def scaled(number: int, known: Statistics, rows: Sequence[Sequence[Row]], own: bool) -> Slopes:
            return (slopes(rows[number], known) if own else Slopes(torch.zeros_like(known.logps))).times(scale)

        for part, own in self._packs(row for example in examples for row in example.rows):
            rows = [part.rows[completions] for _, completions in self.policy.chunks(part)]
            self.policy.backward(part, partial(scaled, rows=rows, own=own), self.collision, self.live)
        return totals.means(ALONE if self.objective.coupled else self.share)

    def measure(self, examples: Sequence[Example]) -> dict[str, float]:
        """Figures alone, without gradient: of held-out examples."""
        totals = Totals()
        rows, mismatched = self.rows(examples)
        self._evaluate(examples, rows, mismatched, self._statistics(rows), totals)
        return totals.means()

    def free(self) -> None:
        """Give back what is kept from pack to pack."""
        for policy in (self.policy, self.live):
            if policy is not None:
                policy.workspace.clear()

    def _slopes(self, examples: Sequence[Example], totals: Totals) -> "SlopesOf":
        """Slopes of the sum of the losses, found where they are asked for."""
        by_first_row: dict[Row, list[Example]] = {}
        for example in examples:
            by_first_row.setdefault(example.rows[0], []).append(example)

        def slopes(rows: Sequence[Row], known: Statistics) -> Slopes:
            mine = [example for row in rows for example in by_first_row.get(row, ())]
            return self._evaluate(mine, rows, (), known, totals)

        return slopes

    def _known_slopes(self, examples: Sequence[Example], totals: Totals) -> "SlopesOf":
        """Slopes of the sum of the losses, found here, of the whole batch at once."""
        rows, mismatched = self.rows(examples)
        known = self._statistics(rows)
        self.objective.observe(self._completions(rows, known), self._comparisons(examples, rows, mismatched))
        found = self._evaluate(examples, rows, mismatched, known, totals)
        ends = torch.tensor([len(row.completion) for row in rows]).cumsum(0).tolist()
        place = {row: slice(end - len(row.completion), end) for row, end in zip(rows, ends, strict=True)}

        def slopes(rows: Sequence[Row], known: Statistics) -> Slopes:
            return Slopes.join([found.part(place[row]) for row in rows])

        return slopes

    def _evaluate(
        self,
        examples: Sequence[Example],
        rows: Sequence[Row],
        mismatched: Sequence[Row],
        known: Statistics,
        totals: Totals,
    ) -> Slopes:
        """Gradient of the sum of the examples' losses w.r.t. ``rows``' statistics; their figures into ``totals``."""
        logps, kl = known.logps.detach().requires_grad_(), known.reference_kl
        kl = None if kl is None else kl.detach().requires_grad_()
        comparisons = self._comparisons(examples, rows, mismatched)
        with torch.enable_grad():
            completions = self._completions(rows, Statistics(logps, known.collision, kl))
            losses, figures = self.objective(completions, comparisons)
            total = losses.sum()
        totals.add({"loss": losses, **figures, **self._divergences(completions, comparisons, rows, totals)})
        inputs = [logps] if kl is None else [logps, kl]
        return Slopes(*torch.autograd.grad(total, inputs, materialize_grads=True, allow_unused=True))

    def _divergences(
        self, completions: Completions, comparisons: Comparisons, rows: Sequence[Row], totals: Totals
    ) -> dict[str, Tensor]:
        """log π_ref − log π of the examples' completions, nats: KL(π_ref ‖ π) if π_ref sampled them. And that to π₀."""
        mine = torch.cat([comparisons.chosen, comparisons.rejected, comparisons.singles]).unique()
        logps = completions.logps.detach()[mine]
        found = {}
        if self.reference.logps:
            found["kl"] = completions.reference_logps[mine] - logps
            totals.gap = max(totals.gap, float(found["kl"].abs().max()))
        if self.initial:
            initial = [self.initial[rows[number]] for number in mine.tolist()]
            found["kl_initial"] = torch.tensor(initial, dtype=torch.float64, device=logps.device) - logps
        return found

    def _completions(self, rows: Sequence[Row], known: Statistics) -> Completions:
        device = known.logps.device
        lengths = torch.tensor([len(row.completion) for row in rows], device=device)
        sums, tokens = self.reference.logps, self.reference.token_logps
        logps = [sums[row] if sums else 0.0 for row in rows]
        return Completions(
            known.logps,
            torch.repeat_interleave(torch.arange(len(rows), device=device), lengths),
            lengths,
            torch.tensor(logps, dtype=torch.float64, device=device),
            known.collision,
            known.reference_kl,
            None if tokens is None else torch.tensor([logp for row in rows for logp in tokens[row]], device=device),
        )

    def _comparisons(self, examples: Sequence[Example], rows: Sequence[Row], mismatched: Sequence[Row]) -> Comparisons:
        """Pairs and singles as indices into ``rows``."""
        index = {row: number for number, row in enumerate(rows)}
        pairs = [example for example in examples if isinstance(example, Pair)]
        singles = [example for example in examples if isinstance(example, Single)]
        beta = self.objective.beta_of
        device = self.policy.model.device

        def tensor(values: Iterable[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(list(values), dtype=dtype, device=device)

        return Comparisons(
            tensor((index[pair.chosen] for pair in pairs), torch.int64),
            tensor((index[pair.rejected] for pair in pairs), torch.int64),
            tensor((pair.margin for pair in pairs), torch.float64),
            tensor((pair.preference for pair in pairs), torch.float64),
            tensor((beta(pair.source) for pair in pairs), torch.float64),
            tensor((index[single.row] for single in singles), torch.int64),
            tensor((single.desirable for single in singles), torch.bool),
            tensor((beta(single.source) for single in singles), torch.float64),
            tensor((index[row] for row in mismatched), torch.int64),
        )

    def rows(self, examples: Sequence[Example]) -> tuple[list[Row], list[Row]]:
        """The examples' rows and their mismatched ones, each once; and the mismatched ones."""
        rows = [row for example in examples for row in example.rows]
        mismatched = [self.mismatched[row] for row in rows if row in self.mismatched]
        return list(dict.fromkeys([*rows, *mismatched])), mismatched

    def _statistics(self, rows: Sequence[Row]) -> Statistics:
        """Of ``rows`` in their order, whichever process ran them. No gradient."""
        mine: dict[Row, Statistics] = {}
        for part, own in self._packs(rows):
            known = self.policy.statistics(part, self.collision, self.live)
            if own:
                mine |= dict(zip(part.rows, known.split(part.lengths), strict=True))
        found: dict[Row, Statistics] = {}
        for each in self.share.gather(mine):
            found |= each
        return join([found[row] for row in rows]).to(self.policy.model.device)

    def _packs(self, rows: Iterable[Row]) -> Iterator[tuple[Pack, bool]]:
        """This process's packs. False beside one that only keeps step with the other processes."""
        groups = group_rows(rows)
        for part in split_by_budget(groups, self.token_budget, self.share.size)[self.share.rank :: self.share.size]:
            yield pack(part or groups[:1], self.policy.model.device), bool(part)
