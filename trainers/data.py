"""Where examples come from: our own pairs, a file or folder of rows, or a data set on the Hub.

Formats are recognised by the columns of the first row. Our own pairs (``pipeline.tables.PAIRS``) hold the ids that were
sampled, and keep them; everything else, and our own pairs of models that no policy is of, is text, and is encoded once:
see ``trainers.records`` for its columns.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import DataError, StoreError
from pipeline.rows import SUFFIXES, read_rows, read_tables
from pipeline.store import MANIFEST, Artifact, digest
from pipeline.tables import PAIRS, read_pairs
from pipeline.types import PreferencePair, Prompt
from trainers.encoded import Encoded, RowEncoder
from trainers.examples import Example
from trainers.records import HUB_NAME, PAIR, UNPAIRED

PAIRS_OF_EXPORT = Path("data", "default")
"""Where an exported data set has its pairs, beside other things that are no pairs."""
PROMPTS_ELSEWHERE = ("question", "instruction", "input", "query")
"""What others call the column of prompts."""
FORMATS = (
    "chosen, rejected (and prompt, where it is not their common beginning); prompt, completion, label;"
    " or all of Ratchet's own pairs"
)


def load_examples(
    source: str | Path, encoder: RowEncoder, *, split: str | None = None, limit: int | None = None, name: str = ""
) -> Encoded:
    """The examples of a data set.

    Args:
        source: a file (.jsonl, .json, .csv, each also .gz, or .parquet), a folder of such files, an artifact's folder,
            a data set as ``ratchet export`` writes it (its pairs are read), or a Hub name: ``owner/name`` or
            ``owner/name:config``, each also with ``@revision``.
        split: of a Hub data set; of a folder, the files whose names begin with it. None is "train", or, in a folder
            without files of that name, all of it.
        limit: rows read, from the start.
        name: the ``source`` of examples whose row names none.

    Raises:
        DataError: the source cannot be read, has columns of no known format, or no row of it is left.
        ConfigError: its rows are conversations, and the tokenizer has no chat template.
    """
    title = f"data set {str(source)!r}"
    with _unreadable(title):
        rows = islice(_rows(str(source), split), limit)
        head: list[Any] = []
        for row in rows:  # a broken row at the top is counted later, like any other
            head.append(row)
            if isinstance(row, PreferencePair | Mapping):
                break
        match head[-1:]:
            case []:
                raise DataError(f"{title} has no rows")
            case [PreferencePair(prompt=Prompt(token_ids=()))]:  # no policy sampled: nobody has given it ids yet
                return encoder.encode(map(text_row, chain(head, rows)), title, name)
            case [PreferencePair()]:
                return encoder.own_pairs(chain(head, rows), title, name)
            case [Mapping() as row] if row.keys() >= PAIR or row.keys() >= UNPAIRED:
                _refuse_lost_prompt(row, title)
                return encoder.encode(chain(head, rows), title, name)
            case [Mapping() as row]:
                raise DataError(f"{title} has the columns {', '.join(map(str, row))}; allowed: {FORMATS}")
            case _:
                raise DataError(f"{title}: its first row is {repr(head[0])[:80]}; allowed: objects with {FORMATS}")


def _refuse_lost_prompt(row: Mapping[str, Any], title: str) -> None:
    """Raises DataError where the prompt has another name: the common beginning of two answers would be taken for it."""
    chosen = row.get("chosen")
    lost = [name for name in PROMPTS_ELSEWHERE if isinstance(row.get(name), str) and row[name].strip()]
    if "prompt" not in row and lost and isinstance(chosen, str) and row[lost[0]].strip() not in chosen:
        raise DataError(
            f"{title} has no column prompt, and its answers do not repeat {lost[0]!r}, which is"
            f" {row[lost[0]][:40]!r} in its first row; rename it to prompt"
        )


def text_row(pair: PreferencePair) -> dict[str, Any]:
    """A pair of ours as a row of text, in a format of :mod:`trainers.records`."""
    turns, texts = pair.prompt.messages, (pair.chosen.text, pair.rejected.text)
    chosen, rejected = ([{"role": "assistant", "content": text}] if turns else text for text in texts)
    return {
        "prompt": list(turns) if turns else pair.prompt.text, "chosen": chosen, "rejected": rejected,
        "margin": pair.margin, "prompt_id": pair.prompt.id, "source": pair.prompt.source,
    }  # fmt: skip


def split_held_out(
    examples: Sequence[Example], held_out: int | float, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """(training, held out), both in the given order, divided by prompt: none is on both sides.

    Which prompts are held out depends on the set of prompts and ``seed`` alone.

    Args:
        held_out: how many prompts, or, as a float, which share of them (at least one, unless it is 0).

    Raises:
        DataError: no prompt would be left for training.
    """
    prompts = sorted(
        {example.rows[0].prompt for example in examples}, key=lambda prompt: digest([seed, "held_out", prompt])
    )
    count = held_out if isinstance(held_out, int) else max(round(held_out * len(prompts)), held_out > 0)
    if held_out < 0 or not 0 <= count < max(len(prompts), 1):
        raise DataError(
            f"held_out: {held_out} of {len(prompts)} prompts; allowed: a number of prompts, or as a float a share of"
            " them, that leaves some to train on"
        )
    apart = set(prompts[:count])
    training = [example for example in examples if example.rows[0].prompt not in apart]
    return training, [example for example in examples if example.rows[0].prompt in apart]


# ---------------------------------------------------------------------------------------------- reading
@contextmanager
def _unreadable(title: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, pa.ArrowException, StoreError) as error:
        raise DataError(f"{title} cannot be read: {(str(error).splitlines() or [repr(error)])[0]}") from error


def _rows(source: str, split: str | None) -> Iterator[Any]:
    """Rows: our own pairs, mappings, or whatever else a line of JSON holds."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, split)
    if path.exists():
        if split is not None:
            raise DataError(
                f"split: {split!r} is asked of the one file {source!r}; only folders and the Hub have splits"
            )
        return _file(path)
    if source.endswith(SUFFIXES) or not (hub := HUB_NAME.fullmatch(source)):
        raise DataError(
            f"data set {source!r} is no file or folder here; allowed beside those: a Hub name like 'owner/name',"
            " 'owner/name:config' or 'owner/name@revision'"
        )
    return _hub(hub["path"], hub["config"], hub["revision"], split or "train")


def _folder(path: Path, split: str | None) -> Iterator[Any]:
    if (path / MANIFEST).exists():
        artifact = Artifact(path, json.loads((path / MANIFEST).read_text()))
        return chain.from_iterable(map(_table_rows, artifact.tables()))
    if (path / ".lock").exists():
        raise DataError(f"data set {str(path)!r} is an artifact that is not complete: it has no {MANIFEST}")
    if (path / PAIRS_OF_EXPORT).is_dir():
        path = path / PAIRS_OF_EXPORT
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    of_split = [file for file in files if re.match(rf"{re.escape(split or 'train')}(?![a-zA-Z0-9])", file.name)]
    if not (chosen := of_split if of_split or split else files):
        wanted = f"whose name begins with {split!r}" if files else f"that ends in {', '.join(SUFFIXES)}"
        there = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
        raise DataError(f"folder {str(path)!r} has no file {wanted}; it has {there}")
    return chain.from_iterable(map(_file, chosen))


def _file(path: Path) -> Iterator[Any]:
    if path.name.endswith(".parquet"):
        return chain.from_iterable(map(_table_rows, read_tables(path)))
    return read_rows(path)


def _table_rows(table: pa.Table) -> Iterable[Any]:
    return read_pairs(table) if set(PAIRS.names) <= set(table.column_names) else table.to_pylist()


def _hub(path: str, config: str | None, revision: str | None, split: str) -> Iterator[Any]:
    import datasets

    try:
        return iter(datasets.load_dataset(path, config, split=split, revision=revision))
    except Exception as error:
        # Further lines list configs and splits.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"data set {path!r}, split {split!r}, cannot be loaded from the Hub: {reason}") from error
