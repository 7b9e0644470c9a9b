"""The data of a training without rounds: read and encoded, divided by prompt, counted and named by content."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.request import HeldOut, Limits
from flows.sources import Source
from flows.training import SAMPLED, Examples, Material, rows_of
from pipeline.config import TrainerConfig
from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from trainers.encoded import Encoded, RowEncoder
    from trainers.examples import Example

QUANTILES = {"5%": 0.05, "median": 0.5, "95%": 0.95, "longest": 1.0}


@dataclass(frozen=True, slots=True)
class Loaded:
    """All the examples of a training, and what became of each data set's rows."""

    examples: Examples
    parts: tuple[tuple[Source, "Encoded"], ...]
    apart: tuple[tuple[Source, "Encoded"], ...]
    """Data sets of which all is held out."""
    both: int
    """Held-out prompts that are trained on as well: only where the two are data sets of their own."""

    def material(self, trainer: TrainerConfig) -> Material:
        """The examples under names that are digests of what they are."""
        from trainers.examples import digest_examples, digest_rows

        digests = {"examples": digest_examples(self.examples.training, trainer.betas)}
        if self.examples.held_out:
            digests["held_out"] = digest_examples(self.examples.held_out, trainer.betas)
        rows, _ = rows_of(self.examples, trainer)
        return Material({"rows": digest_rows(rows)}, digests, lambda: self.examples)


def make_encoder(folder: Path, limits: Limits) -> "RowEncoder":
    """The encoder of the policy in ``folder``.

    Raises:
        ConfigError: rows longer than the policy takes are asked for.
    """
    from trainers.checkpoints import load_specials, load_tokenizer
    from trainers.encoding import Encoder

    return Encoder(
        load_tokenizer(folder), load_specials(folder), max_prompt_tokens=limits.prompt,
        max_completion_tokens=limits.completion, max_length=_longest(folder, limits),
    )  # fmt: skip


def make_conversation_encoder(folder: Path, limits: Limits) -> "RowEncoder":
    """The encoder of a reward model made of the model in ``folder``. Raises as :func:`make_encoder`."""
    from trainers.checkpoints import load_tokenizer
    from trainers.conversations import ConversationEncoder

    return ConversationEncoder(load_tokenizer(folder), _longest(folder, limits))


def _longest(folder: Path, limits: Limits) -> int | None:
    """Tokens a row may have; None where neither model nor user sets an end."""
    from transformers import AutoConfig

    longest = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", None)
    if longest is not None and limits.length is not None and limits.length > longest:
        raise ConfigError(f"--max-length {limits.length}: the model takes at most {longest} tokens")
    return limits.length or longest


def load(sources: Sequence[Source], held_out: HeldOut, limits: Limits, seed: int, encoder: "RowEncoder") -> Loaded:
    """Every data set, in the order given, and what is held out of them.

    Raises:
        DataError: one cannot be read, or nothing would be left to train on.
        ConfigError: it holds conversations, and the tokenizer has no chat template.
    """
    from trainers.data import split_held_out

    parts = tuple((source, _read(source, limits.split, limits.rows, encoder)) for source in sources)
    apart = tuple((source, _read(source, held_out.split, None, encoder)) for source in held_out.sources)
    training: list[Example] = [example for _, part in parts for example in part.examples]
    aside: list[Example] = [example for _, part in apart for example in part.examples]
    if not apart:
        training, aside = split_held_out(training, held_out.prompts, seed)
    prompts = list(dict.fromkeys(example.rows[0].prompt for example in aside))
    both = len(set(prompts) & {example.rows[0].prompt for example in training})
    return Loaded(Examples(training, aside, prompts[:SAMPLED]), parts, apart, both)


def check_ids(loaded: Loaded, folder: Path) -> None:
    """Raises DataError where an example has an id that the model in ``folder`` has no embedding of: a token that was
    added to the tokenizer alone."""
    from transformers import AutoConfig

    size = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    for source, part in (*loaded.parts, *loaded.apart):
        found = (max(ids) for example in part.examples for row in example.rows for ids in (row.prompt, row.completion))
        if (highest := max(found)) >= size:
            raise DataError(
                f"data set {source.given!r} has the id {highest}, and the model {size} embeddings: its tokenizer has"
                " tokens that the model was not resized for"
            )


def check_sources(loaded: Loaded, trainer: TrainerConfig) -> None:
    """Raises ConfigError where a β is given for a source that no example has."""
    there = {example.source for example in loaded.examples.all}
    for name in trainer.betas.keys() - there:
        raise ConfigError(f"betas.{name}: no example is of that source; sources: {', '.join(sorted(there))}")


def _read(source: Source, split: str | None, limit: int | None, encoder: "RowEncoder") -> "Encoded":
    """All the places of a source as one."""
    from trainers.data import load_examples
    from trainers.encoded import Encoded

    examples: list[Example] = []
    rows, dropped, altered = 0, Counter[str](), Counter[str]()
    first: dict[str, str] = {}
    for place in source.places:
        if limit is not None and rows >= limit:
            break
        left = None if limit is None else limit - rows
        part = load_examples(place, encoder, split=split, limit=left, name=source.name)
        examples += part.examples
        rows += part.rows
        dropped.update(part.dropped)
        altered.update(part.altered)
        first = {**part.first, **first}
    return Encoded(examples, rows, dict(dropped), dict(altered), first)


# ---------------------------------------------------------------------------------------------- what there is
def counts(loaded: Loaded) -> list[dict[str, Any]]:
    """What became of each data set's rows, JSON-serialisable; ``pairs_of`` are the keys of its pairs' artifacts."""
    return [
        {
            "name": source.name, "given": source.given, "rows": part.rows, "examples": len(part.examples),
            "pairs_of": list(source.pairs), **kinds(part.examples), "dropped": dict(part.dropped),
            "altered": dict(part.altered), "notes": part.lines, "held_out": held_out,
        }
        for held_out, parts in ((False, loaded.parts), (True, loaded.apart))
        for source, part in parts
    ]  # fmt: skip


def kinds(examples: "Sequence[Example]") -> dict[str, int]:
    from trainers.examples import Pair

    pairs = sum(isinstance(example, Pair) for example in examples)
    return {
        "pairs": pairs, "singles": len(examples) - pairs,
        "prompts": len({example.rows[0].prompt for example in examples}),
    }  # fmt: skip


def lengths(examples: "Sequence[Example]") -> dict[str, dict[str, int]]:
    """Quantiles of tokens: of prompts and completions, each counted once."""
    rows = {row for example in examples for row in example.rows}
    found = {
        "prompt": sorted(map(len, {row.prompt for row in rows})),
        "completion": sorted(len(row.completion) for row in rows),
        "together": sorted(map(len, rows)),
    }
    return {
        name: {label: sizes[round(share * (len(sizes) - 1))] for label, share in QUANTILES.items()}
        for name, sizes in found.items()
    }


def work(examples: Examples, trainer: TrainerConfig, seed: int) -> dict[str, int]:
    """What a training will do: its steps, the packs they take, and tokens with each prompt of a batch once."""
    from trainers.batches import batches_of_epoch
    from trainers.packing import group_rows, split_by_budget

    training = examples.training
    epochs = [
        batches_of_epoch(training, epoch, seed, trainer.batch_size, trainer.batch_tokens)
        for epoch in range(trainer.epochs)
    ]
    tokens = alone = packs = 0
    for batch in epochs[0]:
        rows = [row for index in batch for row in training[index].rows]
        groups = group_rows(rows)
        tokens += sum(group.tokens for group in groups)
        alone += sum(map(len, rows))
        packs += len(split_by_budget(groups, trainer.token_budget))
    return {
        "steps": sum(map(len, epochs)), "epochs": trainer.epochs, "packs": trainer.epochs * packs,
        "tokens": trainer.epochs * tokens, "tokens_row_by_row": trainer.epochs * alone,
        "reference_rows": 0 if trainer.reference == "none" else len(rows_of(examples, trainer)[0]),
    }  # fmt: skip
