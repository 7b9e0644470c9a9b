"""Candidates of models that are not trained: asked for, and put into one group a prompt with all the others'.

Each model's answers are an artifact of their own, so that another model costs its own calls only; the groups that are
judged are put together from them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from flows.ahead import ahead
from flows.judging import AT_ONCE, BATCHES_AT_ONCE, desk
from flows.session import Session, Workshop
from flows.side_by_side import side_by_side
from flows.summary import PROPOSALS
from pipeline.candidates import SHARD, asked_digest, group_shards, shards, write_asked
from pipeline.config import ServedModel
from pipeline.errors import DataError
from pipeline.figures import missing_text
from pipeline.sampling.proposals import Missing, Proposed, Proposer, counted, identity
from pipeline.store import Artifact, Draft, Spec, write_json
from pipeline.tables import candidates_table
from pipeline.types import Candidate, Group, Policy, Prompt

LEFT_OUT = "left-out-{:05d}.json"
"""Beside a shard of proposals: the candidates it has not, and why. Written before it."""
TOO_FEW = "too_few"
"""Why a candidate is left out whose prompt has too few: it would be judged for nothing."""

Fit = Callable[[Prompt, Candidate], Candidate | str]
"""A candidate as the groups are to have it, its index aside; or why it is left out."""


@dataclass(frozen=True, slots=True)
class Source:
    """One model's candidates, in prompt order; where it has none for a prompt, that prompt is not there."""

    name: str
    artifact: Artifact
    fit: Fit
    absent: Mapping[str, int] = field(default_factory=dict)
    """Candidates that were never asked for, by reason."""


# ---------------------------------------------------------------------------------------------- one model
def propose(session: Workshop, name: str, model: ServedModel, prompts: Sequence[Prompt], round: int) -> Artifact:
    """What a served model answers: a candidates table without token ids, indices from 0 in each group.

    Raises:
        SamplingError: as :meth:`Proposer.propose` does.
    """
    config = session.config
    settings = {"name": name, "seed": config.seed, "round": round, "prompts": asked_digest(prompts)}
    spec = Spec("proposals", 1, {**settings, "model": identity(model)})

    def build(draft: Draft) -> Artifact:
        write_asked(draft, prompts)
        proposer = Proposer(name, model, desk(session), config.seed, round, config.limits.unanswered)
        at_once = BATCHES_AT_ONCE if model.endpoints[0].batch else AT_ONCE
        done, missing = 0, dict[str, list[Missing]](given_up=[], unusable=[])
        with session.console.stage(f"ask {name}", len(prompts)) as progress, closing(proposer):
            for number, shard, proposed in ahead(proposer.propose, enumerate(shards(prompts)), draft, at_once):
                if proposed is not None:
                    _commit(draft, number, proposed)
                for kind, found in _left_out(draft, number).items():
                    missing[kind] += found
                done += len(shard)
                progress(done, len(prompts), _note([*missing["given_up"], *missing["unusable"]]))
        failed, dropped = (Counter(each.reason for each in missing[kind]) for kind in ("given_up", "unusable"))
        return draft.finish({"model": name}, rows_in=model.n * len(prompts), dropped=dropped, failed=failed)

    return session.store.make(spec, build)


def _commit(draft: Draft, number: int, proposed: Proposed) -> None:
    left_out = {
        kind: [asdict(each) for each in missing]
        for kind, missing in (("given_up", proposed.given_up), ("unusable", proposed.unusable))
    }
    write_json(draft.path / LEFT_OUT.format(number), left_out)
    draft.commit_shard(number, candidates_table(proposed.groups))


def _left_out(draft: Draft, number: int) -> dict[str, list[Missing]]:
    found = json.loads((draft.path / LEFT_OUT.format(number)).read_text())
    return {kind: [Missing(**each) for each in missing] for kind, missing in found.items()}


def _note(missing: Sequence[Missing]) -> str:
    return f"{len(missing)} candidates missing: {counted(missing)}" if missing else ""


# ---------------------------------------------------------------------------------------------- all together
def merge(
    session: Workshop, prompts: Sequence[Prompt], sources: Sequence[Source], settings: Mapping[str, Any], least: int = 1
) -> Artifact:
    """A candidates artifact with the groups of all ``sources``, in their order.

    Prompts with fewer than ``least`` candidates are left out, and counted in its info.

    Args:
        settings: what the sources' ``fit`` depends on beside the artifacts, JSON-serialisable.
    """
    inputs = {f"candidates {source.name}".rstrip(): source.artifact.key for source in sources}
    config = {**settings, "order": [source.name for source in sources], "least": least}
    spec = Spec("candidates", 4, {**config, "prompts": asked_digest(prompts)}, inputs)

    def build(draft: Draft) -> Artifact:
        dropped: dict[str, Counter[str]] = {source.name: Counter() for source in sources}
        kept: list[Prompt] = []
        waiting: list[Group] = []
        with session.console.stage("candidates", len(prompts)) as progress:
            for group in _merged(prompts, sources, dropped, least):
                kept.append(group.prompt)
                waiting.append(group)
                if len(waiting) == SHARD:
                    _write(draft, len(kept), waiting)
                    waiting = []
            if waiting:
                _write(draft, len(kept), waiting)
            lost = missing(sources, dropped)
            if not kept:
                raise DataError(f"no prompt of {len(prompts)} has {least} candidates ({missing_text(lost)})")
            write_asked(draft, kept)
            left_out = len(prompts) - len(kept)
            notes = [f"{left_out} prompts left out: fewer than {least} candidates"] if left_out else []
            notes += [f"missing: {missing_text(lost)}"] if lost else []
            progress(len(kept), len(prompts), "; ".join(notes))
        sampled = [source.artifact.info["policy"] for source in sources if not source.name]
        info = {"prompts_left_out": left_out, "missing": lost, **({"policy": sampled[0]} if sampled else {})}
        rows = sum(int(source.artifact.manifest["rows"]) for source in sources)
        return draft.finish(info, rows_in=rows, dropped=sum(dropped.values(), Counter[str]()))

    return session.store.make(spec, build)


def missing(sources: Sequence[Source], dropped: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """By model: candidates that no group has, by reason, whoever left them out."""
    found = {
        source.name: Counter(source.artifact.manifest["failed"]) + Counter(source.artifact.manifest["dropped"])
        + Counter(dropped[source.name]) + Counter(source.absent)
        for source in sources
    }  # fmt: skip
    return {name: dict(reasons) for name, reasons in found.items() if reasons}


def _write(draft: Draft, until: int, groups: Sequence[Group]) -> None:
    """The shard that ends with the group number ``until``."""
    number = (until - 1) // SHARD
    if not draft.has_shard(number):
        draft.commit_shard(number, candidates_table(groups))


def _merged(
    prompts: Sequence[Prompt], sources: Sequence[Source], dropped: Mapping[str, Counter[str]], least: int
) -> Iterator[Group]:
    streams = [(source, _Stream(source.artifact)) for source in sources]
    for prompt in prompts:
        candidates: list[Candidate] = []
        for source, stream in streams:
            for candidate in stream.of(prompt):
                fitted = source.fit(prompt, candidate)
                if isinstance(fitted, str):
                    dropped[source.name][fitted] += 1
                else:
                    candidates.append(replace(fitted, index=len(candidates)))
        if len(candidates) >= least:
            yield Group(prompt, tuple(candidates))
        else:
            for candidate in candidates:
                dropped[candidate.model][TOO_FEW] += 1


class _Stream:
    """The groups of an artifact, taken in prompt order, a shard in memory at a time."""

    def __init__(self, artifact: Artifact) -> None:
        self._groups = (group for shard in group_shards(artifact) for group in shard)
        self._next = next(self._groups, None)

    def of(self, prompt: Prompt) -> tuple[Candidate, ...]:
        """The prompt's candidates; none where the artifact has none."""
        if self._next is None or self._next.prompt.id != prompt.id:
            return ()
        found, self._next = self._next.candidates, next(self._groups, None)
        return found


# ---------------------------------------------------------------------------------------------- in a round
def propose_round(
    session: Session, policy: Policy, sampled: Artifact, prompts: Sequence[Prompt], round: int
) -> dict[str, Artifact]:
    """The policy's candidates and behind them the proposers', by stage; ``candidates`` are both together. The proposers
    are asked side by side.

    What others wrote is given the policy's token ids here, and nowhere again.
    """
    proposers = session.config.sampling.proposers
    asking = {name: partial(propose, session, name, model, prompts, round) for name, model in proposers.items()}
    made = {f"{PROPOSALS}{name}": made for name, made in side_by_side(asking, session.console).items()}
    fit = _in_ids_of(session, policy)
    sources = [Source("", sampled, lambda prompt, candidate: candidate)]
    sources += [Source(name, made[f"{PROPOSALS}{name}"], fit) for name in proposers]
    longest = longest_of(session, policy)
    return {"sampled": sampled, **made, "candidates": merge(session, prompts, sources, {"longest": longest})}


def longest_of(session: Workshop, policy: Policy) -> int:
    """Tokens that a prompt and its completion may have together; one place stays free to score the last."""
    from transformers import AutoConfig

    longest = int(AutoConfig.from_pretrained(policy.path).get_text_config().max_position_embeddings)
    return min(longest, session.config.sampling.max_model_len or longest) - 1


def _in_ids_of(session: Session, policy: Policy) -> Fit:
    from pipeline.sampling.proposals import in_ids
    from trainers.checkpoints import load_specials

    tokenizer, longest = session.tokenizer(policy), longest_of(session, policy)
    _, ends = load_specials(policy.path)
    return lambda prompt, candidate: in_ids(prompt, candidate, tokenizer, ends, longest)
