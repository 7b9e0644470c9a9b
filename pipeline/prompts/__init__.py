"""Prompts: read from their sources, rendered once to token ids, and divided between the rounds and evaluation.

    sources → row (turns) → rendering → lengths, contamination → duplicates → windows

Rows are read as a stream, and only what is kept stays in memory. Every row ends in exactly one place: ``rounds``,
``held_out`` or a count in ``dropped``, with its reason:

    bad               cannot be a prompt; the first ones are named
    contaminated      shares text with an evaluation set
    too_short         under ``min_tokens``
    too_long          over ``max_tokens``
    in_held_out       the text, or nearly, of a row marked held out
    duplicate         the text of an earlier row
    near_duplicate    nearly the text of an earlier row
    surplus_held_out  marked held out, but ``held_out`` was full: never trained on
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from pipeline.config import MixturePrompts, PromptsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.prompts.contamination import Evaluations, read_evaluations
from pipeline.prompts.duplicates import Gathered, without_near
from pipeline.prompts.rendering import encode, render
from pipeline.prompts.row import Row, parse
from pipeline.prompts.sources import Member, check_sources, columns_of, members, read, settings_of
from pipeline.prompts.tally import Reading, Tally
from pipeline.prompts.turns import Unusable
from pipeline.prompts.windows import interleaved, round_slice, split
from pipeline.types import Prompt

__all__ = [
    "PromptSet", "Reading", "check_sources", "load_prompts", "peek", "render_texts", "round_slice", "settings_of",
]  # fmt: skip

BATCH = 2**19
"""Characters encoded at a time."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    rounds: list[Prompt]
    """In source order; :func:`round_slice` shuffles."""
    held_out: list[Prompt]
    """For evaluation alone."""
    rows: int
    """Rows read; ``len(rounds) + len(held_out) + sum(dropped.values()) == rows``."""
    dropped: Mapping[str, int]
    """Rows by reason."""
    read: tuple[Reading, ...]
    """Of each source, evaluation sets last."""
    by_source: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Of a mixture's members: ``rows``, ``rounds``, ``held_out`` and drops by reason."""

    @property
    def bad(self) -> tuple[str, ...]:
        """The first few bad rows of each source."""
        return tuple(name for each in self.read for name in each.first)


def load_prompts(config: PromptsConfig, tokenizer: Any, seed: int = 0) -> PromptSet:
    """The prompts of a run. ``seed`` decides which unmarked rows are held out.

    A prompt has the row's own id (in a mixture with its source's name before it), or, where it has none, or one that is
    not its own and that nobody asked for, a digest of its text (with ``-2``, ``-3`` … for repeats).

    Args:
        tokenizer: the policy's; or None where no policy reads the prompts: they then have no token ids, and limits in
            tokens do not apply. Other models' chat templates may still refuse a conversation.

    Raises:
        ConfigError: ``template`` is "chat" and the tokenizer has no chat template.
        DataError: a source cannot be read or has more unusable rows than ``bad_rows`` allows, or too few prompts are
            left.
    """
    if config.template == "chat" and tokenizer is not None and not tokenizer.chat_template:
        raise ConfigError(
            f'prompts.template: "chat", but the tokenizer of {tokenizer.name_or_path!r} has no chat template;'
            ' allowed for it: "plain"'
        )
    evaluations, against = read_evaluations(config, config.decontaminate) if config.decontaminate else (None, [])
    tally, gathered, sources = Tally(), Gathered(unique=config.deduplicate != "none"), members(config)
    for member in sources:
        rows = _clean(_usable(member, config, tokenizer, tally), evaluations, tally)
        for row in _fitting(rows, config, tokenizer, tally):
            gathered.add(row)
        tally.check(member.name, member.key, config.bad_rows)
    kept = gathered.rows(tally)
    if config.deduplicate == "near":
        kept = without_near(kept, config.near_threshold, tally)
    prompts, marked = _named(kept, tally)
    read = [tally.check(member.name, member.key, config.bad_rows) for member in sources]
    held_out, rounds = _divided(prompts, marked, config.held_out, seed, tally)
    assert len(rounds) + len(held_out) + sum(tally.total().values()) == tally.rows.total(), "a row went missing"
    by_source = _by_source(rounds, held_out, tally) if isinstance(config.source, MixturePrompts) else {}
    return PromptSet(rounds, held_out, tally.rows.total(), tally.total(), (*read, *against), by_source)


def peek(config: PromptsConfig, limit: int) -> list[Prompt]:
    """The first ``limit`` usable rows, not rendered to ids: to say what a run would ask of others, without its policy.

    Of a mixture each member gives its share.

    Raises:
        DataError: a source cannot be read, or has no usable row.
    """
    found: list[Prompt] = []
    for member in members(config):
        rows = list(islice(_usable(member, config, None, Tally()), limit))
        if not rows:
            raise DataError(f"{member.key}: no row is a prompt")
        found += [_prompt(row, f"{row.source}/{row.number}".lstrip("/")) for row, _ in rows]
    return interleaved(found, config.weights)[:limit]


def render_texts(texts: Sequence[str], config: PromptsConfig, tokenizer: Any) -> list[Prompt]:
    """Texts from elsewhere than the sources, a probe's for one, rendered as the run's prompts are; ids from the texts.

    Raises:
        DataError: a text cannot be a prompt.
    """
    bos = tokenizer.bos_token
    try:
        rows = [parse({"prompt": text}, number, "", None, config, bos) for number, text in enumerate(texts, 1)]
        encoded = encode([render(row, tokenizer) for row in rows], config.template, tokenizer)
    except Unusable as reason:
        raise DataError(f"one of {list(texts)} {reason}") from None
    return [
        _prompt(replace(row, token_ids=ids), f"{row.content[:16]}-{row.number}")
        for row, ids in zip(rows, encoded, strict=True)
    ]


# ---------------------------------------------------------------------------------------------- a source's rows
def _usable(member: Member, config: PromptsConfig, tokenizer: Any, tally: Tally) -> Iterator[tuple[Row, str]]:
    """Rows that are prompts, with the text to be encoded."""
    columns, bos = columns_of(member.source), None if tokenizer is None else tokenizer.bos_token
    for raw in read(member.source, member.key):
        number = tally.read(member.name)
        try:
            row = parse(raw, number, member.name, columns, config, bos)
            rendered = render(row, tokenizer)
        except Unusable as reason:
            tally.unusable(member.name, number, str(reason))
            tally.check_beginning(member.name, member.key, config.bad_rows)
            continue
        yield row, rendered


def _clean(rows: Iterable[tuple[Row, str]], evaluations: Evaluations | None, tally: Tally) -> Iterator[tuple[Row, str]]:
    for row, rendered in rows:
        if evaluations is not None and not row.held_out and evaluations.share_text_with(row.said()):
            tally.drop(row.source, "contaminated")
            continue
        yield row, rendered


def _fitting(rows: Iterator[tuple[Row, str]], config: PromptsConfig, tokenizer: Any, tally: Tally) -> Iterator[Row]:
    """Rows with their token ids, of which there are neither too few nor too many; all, where nothing reads tokens."""
    if tokenizer is None:
        yield from (row for row, _ in rows)
        return
    for batch in _batches(rows):
        encoded = encode([rendered for _, rendered in batch], config.template, tokenizer)
        for (row, _), ids in zip(batch, encoded, strict=True):
            if len(ids) < config.min_tokens:
                tally.drop(row.source, "too_short")
            elif len(ids) > config.max_tokens:
                tally.drop(row.source, "too_long")
            else:
                yield replace(row, token_ids=ids)


def _batches(rows: Iterable[tuple[Row, str]]) -> Iterator[list[tuple[Row, str]]]:
    batch, size = [], 0
    for row, rendered in rows:
        batch.append((row, rendered))
        size += len(rendered)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------------- the set
def _named(rows: Sequence[Row], tally: Tally) -> tuple[list[Prompt], frozenset[str]]:
    """The prompts, and the ids of those marked held out. An id names one prompt in seeds and lineage: one that several
    rows have is none where nobody asked for it, and bad from the second row on where somebody did."""
    owner: dict[str, Row] = {}
    occurrences: Counter[str] = Counter()
    having = Counter((row.source, row.own_id) for row in rows)
    for row in rows:
        if row.own_id is None or (having[row.source, row.own_id] > 1 and not row.id_asked_for):
            occurrences[row.content] += 1
            count = occurrences[row.content]
            name = row.content[:16] + (f"-{count}" if count > 1 else "")
        else:
            name = f"{row.source}/{row.own_id}" if row.source else row.own_id
        if name in owner:
            tally.unusable(row.source, row.number, f"has the id {name!r} of row {owner[name].number}")
        else:
            owner[name] = row
    prompts = [_prompt(row, name) for name, row in owner.items()]
    return prompts, frozenset(name for name, row in owner.items() if row.held_out)


def _prompt(row: Row, name: str) -> Prompt:
    return Prompt(name, row.text, row.token_ids, row.messages, row.answer, row.source)


def _divided(
    prompts: Sequence[Prompt], marked: frozenset[str], count: int, seed: int, tally: Tally
) -> tuple[list[Prompt], list[Prompt]]:
    """(held out, for the rounds)."""
    if len(prompts) < count + 1:
        raise DataError(
            f"prompts.held_out: {count} and at least one prompt for the rounds were asked of {len(prompts)} prompts"
            f" (dropped: {tally})"
        )
    held_out, rounds, surplus = split(prompts, marked, count, seed)
    if not rounds:
        raise DataError(f"prompts.source: all {len(prompts)} usable rows are held out; none is left for the rounds")
    for prompt in surplus:
        tally.drop(prompt.source, "surplus_held_out")
    return held_out, rounds


def _by_source(rounds: Sequence[Prompt], held_out: Sequence[Prompt], tally: Tally) -> dict[str, dict[str, int]]:
    kept, apart = (Counter(prompt.source for prompt in some) for some in (rounds, held_out))
    return {
        name: {"rows": rows, "rounds": kept[name], "held_out": apart[name], **tally.dropped.get(name, {})}
        for name, rows in tally.rows.items()
    }
