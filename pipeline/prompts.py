"""Prompts: read from their source, rendered once to token ids, and divided between the rounds and evaluation.

Every row of the source ends in exactly one place: ``rounds``, ``held_out`` or a count in ``dropped``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import Call, CallablePrompts, FilePrompts, HubPrompts, MixturePrompts, PromptsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.functions import resolve
from pipeline.store import digest
from pipeline.types import Message, Prompt

BAD_ROWS_NAMED = 3


@dataclass(frozen=True, slots=True)
class PromptSet:
    rounds: list[Prompt]
    """In source order; :func:`round_slice` shuffles."""
    held_out: list[Prompt]
    """For evaluation alone."""
    rows: int
    """Rows read; ``len(rounds) + len(held_out) + sum(dropped.values()) == rows``."""
    dropped: Mapping[str, int]
    """Rows by reason: ``bad``; ``duplicate``; ``in_held_out`` (the text is also a row marked held out); ``too_long``;
    ``surplus_held_out`` (marked held out, but ``held_out`` was full: never trained on)."""
    bad: tuple[str, ...]
    """The first few bad rows: row number, counted from 1, and reason."""


class _Unusable(Exception):
    """Why a row cannot be a prompt."""


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    content: str
    """Digest of what the source says, before a system message is added: equal prompts have equal ones."""
    own_id: str | None
    text: str
    messages: tuple[Message, ...]
    answer: str | None
    held_out: bool


def load_prompts(config: PromptsConfig, tokenizer: Any, seed: int = 0) -> PromptSet:
    """The prompts of a run. ``seed`` decides which unmarked rows are held out.

    A prompt has the row's own ``id``, or a digest of its text (with ``-2``, ``-3`` … for repeats).

    Raises:
        ConfigError: ``template`` is "chat" and the tokenizer has no chat template.
        DataError: the source cannot be read, over 5% of its rows are unusable, or too few prompts are left.
    """
    if config.template == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            f'prompts.template: "chat", but the tokenizer of {tokenizer.name_or_path!r} has no chat template;'
            ' allowed for it: "plain"'
        )
    dropped: Counter[str] = Counter()
    bad: list[str] = []
    rows, rendered, read = [], [], 0
    for number, raw in enumerate(_read(config), start=1):
        read += 1
        try:
            row = _parse(raw, number, config, tokenizer.bos_token)
            rendered.append(_render(row, tokenizer))
            rows.append(row)
        except _Unusable as reason:
            bad.append(f"row {number}: {reason}")
    kept = _deduplicate(rows, dropped) if config.deduplicate != "none" else rows
    ids = _assign_ids(kept, bad)
    _check_bad(bad, read, config.bad_rows)
    dropped["bad"] = len(bad)
    encoded = dict(zip((row.number for row in rows), _encode(rendered, config.template, tokenizer), strict=True))
    fitting = [row for row in kept if row.number in ids and len(encoded[row.number]) <= config.max_tokens]
    dropped["too_long"] = len(ids) - len(fitting)
    prompts = {
        row.number: Prompt(ids[row.number], row.text, encoded[row.number], row.messages, row.answer) for row in fitting
    }
    held_out, rounds = _split(fitting, prompts, config.held_out, seed, dropped)
    assert len(rounds) + len(held_out) + dropped.total() == read, "a row went missing"
    return PromptSet(rounds, held_out, read, dict(+dropped), tuple(bad[:BAD_ROWS_NAMED]))


def peek(config: PromptsConfig, limit: int) -> list[Prompt]:
    """The first ``limit`` usable rows, not rendered to ids: to say what a run would ask of others, without its policy.

    Raises:
        DataError: the source cannot be read, or has no usable row.
    """
    found: list[Prompt] = []
    for number, raw in enumerate(_read(config), start=1):
        try:
            row = _parse(raw, number, config, None)
        except _Unusable:
            continue
        found.append(Prompt(str(number), row.text, (), row.messages, row.answer))
        if len(found) == limit:
            break
    if not found:
        raise DataError("prompts.source: no row is a prompt")
    return found


def render_texts(texts: Sequence[str], config: PromptsConfig, tokenizer: Any) -> list[Prompt]:
    """Texts from elsewhere than the source, a probe's for one, rendered as the run's prompts are; ids from the texts.

    Raises:
        DataError: a text cannot be a prompt.
    """
    plain = config.model_copy(update={"source": CallablePrompts(type="callable", call=Call(function="texts:given"))})
    try:
        rows = [_parse({"prompt": text}, number, plain, tokenizer.bos_token) for number, text in enumerate(texts, 1)]
        encoded = _encode([_render(row, tokenizer) for row in rows], config.template, tokenizer)
    except _Unusable as reason:
        raise DataError(f"one of {list(texts)} {reason}") from None
    return [
        Prompt(f"{row.content[:16]}-{row.number}", row.text, ids, row.messages)
        for row, ids in zip(rows, encoded, strict=True)
    ]


def round_slice(prompts: Sequence[Prompt], round: int, per_round: int, seed: int) -> list[Prompt]:
    """The prompts of round 0, 1, …: successive windows of ``per_round`` over one shuffle after another.

    No prompt comes twice before all have come once, and none twice in a window. A window depends on the set of
    prompts (not their order), on ``per_round``, ``seed`` and ``round``, and not on how many rounds there will be.
    ``per_round`` 0, or more than there are, takes all, in the order given.
    """
    if per_round == 0 or per_round >= len(prompts):
        return list(prompts)
    stream: list[Prompt] = []
    for lap in range((round + 1) * per_round // len(prompts) + 1):
        begun = stream[len(stream) - len(stream) % per_round :]  # the window that this lap's first prompts complete
        shuffled = sorted(prompts, key=lambda prompt: digest([seed, "round", lap, prompt.id]))
        taken = {prompt.id for prompt in begun}
        # Those already in that window go to the end of the lap, so that a window never holds a prompt twice.
        stream += sorted(shuffled, key=lambda prompt: prompt.id in taken)
    return stream[round * per_round : (round + 1) * per_round]


# ---------------------------------------------------------------------------------------------- reading
def _read(config: PromptsConfig) -> Iterable[Any]:
    """Raw rows: mappings, or lines still to be parsed."""
    match config.source:
        case CallablePrompts(call=call):
            function = resolve(call)
            try:
                return list(function())
            except Exception as error:
                raise DataError(f"prompts.source: function {call.function!r} failed: {error!r}") from error
        case FilePrompts(path=path):
            return _lines(path)
        case HubPrompts() as hub:
            return _hub(hub)
        case MixturePrompts():
            raise NotImplementedError


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from (line for line in file if line.strip())
    except OSError as error:
        raise DataError(f"prompts.source.path: {path!r} cannot be read: {error.strerror}") from None


def _hub(source: HubPrompts) -> Iterator[Any]:
    import datasets

    try:
        return iter(datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"prompts.source: data set {source.path!r} cannot be loaded: {reason}") from error


# ---------------------------------------------------------------------------------------------- one row
def _parse(raw: Any, number: int, config: PromptsConfig, bos: str | None) -> _Row:
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw)
        except ValueError as error:
            raise _Unusable(f"is not JSON: {error}") from None
    if not isinstance(raw, Mapping):
        raise _Unusable(f"is a {type(raw).__name__}, not an object with keys")
    column, answer_column = "prompt", "answer"
    if not isinstance(config.source, CallablePrompts | MixturePrompts):
        column, answer_column = config.source.columns.prompt, config.source.columns.answer or ""
        if answer_column and raw.get(answer_column) is None:
            raise _Unusable(f"has no {answer_column!r}; it has {', '.join(map(str, raw))}")
    if raw.get(column) is None:
        raise _Unusable(f"has no {column!r}; it has {', '.join(map(str, raw))}")
    content = raw[column]
    messages = _conversation(content, column, config)
    text = next(turn["content"] for turn in reversed(messages) if turn["role"] == "user") if messages else content
    if bos and not messages:
        text = text.removeprefix(bos)  # it gets its BOS as an id
    if not text.strip():
        raise _Unusable(f"has an empty {column!r}")
    # Read as a token, it would begin the sequence anew in the middle.
    if bos and any(bos in part for part in (text, *(turn["content"] for turn in messages))):
        raise _Unusable(f"has the BOS token {bos!r} in its {column!r}")
    return _Row(
        number, digest(content if isinstance(content, str) else messages), _scalar(raw.get("id"), "id"), text,
        _with_system(messages, config.system), _scalar(raw.get(answer_column), answer_column),
        held_out=raw.get("split") == "held_out",
    )  # fmt: skip


def _conversation(content: Any, column: str, config: PromptsConfig) -> tuple[Message, ...]:
    """The messages of a chat prompt, which must end with the user's turn; none for a plain prompt."""
    if isinstance(content, str):
        return (Message(role="user", content=content),) if config.template == "chat" else ()
    try:
        messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in content)
    except (TypeError, KeyError):
        raise _Unusable(f"{column!r} is neither a string nor a list of messages with role and content") from None
    if not all(isinstance(part, str) for turn in messages for part in (turn["role"], turn["content"])):
        raise _Unusable(f"{column!r} has a message whose role or content is no string")
    if config.template == "plain":
        raise _Unusable(f'{column!r} is a list of messages, which needs prompts.template = "chat"')
    if not messages or messages[-1]["role"] != "user":
        last = messages[-1]["role"] if messages else "nobody"
        raise _Unusable(f"{column!r} ends with a message of {last!r}; allowed: 'user'")
    return messages


def _with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    if not messages or system is None or any(turn["role"] == "system" for turn in messages):
        return messages
    return (Message(role="system", content=system), *messages)


def _scalar(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str | int | float):
        raise _Unusable(f"{name!r} is a {type(value).__name__}, not a string or a number")
    return None if value is None else str(value)


# ---------------------------------------------------------------------------------------------- rendering
def _render(row: _Row, tokenizer: Any) -> str:
    if not row.messages:
        return row.text
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, tokenize=False))
    except TemplateError as error:  # templates refuse what they cannot say, e.g. two turns of the user in a row
        raise _Unusable(f"is refused by the chat template: {error}") from None


def _encode(rendered: list[str], template: str, tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids with the BOS the text begins with, or, if plain, the tokenizer's; never a second one."""
    if not rendered:
        return []
    bos = tokenizer.bos_token_id
    batch = tokenizer(rendered, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    encoded = []
    for ids in batch:
        if bos is not None and template == "plain":
            ids = [bos, *ids]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        encoded.append(tuple(ids))
    return encoded


# ---------------------------------------------------------------------------------------------- the set
def _deduplicate(rows: list[_Row], dropped: Counter[str]) -> list[_Row]:
    """The first row of each text, or, where one is marked held out, the first of those."""
    marked = {row.content for row in rows if row.held_out}
    seen: set[str] = set()
    kept = []
    for row in rows:
        if not row.held_out and row.content in marked:
            dropped["in_held_out"] += 1
        elif row.content in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(row.content)
            kept.append(row)
    return kept


def _assign_ids(rows: list[_Row], bad: list[str]) -> dict[int, str]:
    """Ids by row number. A row whose own id another has is bad: an id names one prompt in seeds and lineage."""
    ids: dict[int, str] = {}
    owner: dict[str, int] = {}
    occurrences: Counter[str] = Counter()
    for row in rows:
        name = row.own_id
        if name is None:
            occurrences[row.content] += 1
            count = occurrences[row.content]
            name = row.content[:16] + (f"-{count}" if count > 1 else "")
        if name in owner:
            bad.append(f"row {row.number}: has the id {name!r} of row {owner[name]}")
            continue
        owner[name] = row.number
        ids[row.number] = name
    return ids


def _check_bad(bad: list[str], read: int, allowed: float) -> None:
    if read == 0:
        raise DataError("prompts.source: it has no rows")
    if len(bad) > allowed * read:
        raise DataError(
            f"prompts.source: {len(bad)} of {read} rows are unusable; allowed: {allowed:.0%};"
            f" {'; '.join(bad[:BAD_ROWS_NAMED])}"
        )


def _split(
    rows: list[_Row], prompts: Mapping[int, Prompt], held_out: int, seed: int, dropped: Counter[str]
) -> tuple[list[Prompt], list[Prompt]]:
    """(held out, rounds): marked rows are held out first, then others in an order that only ids and ``seed`` decide."""
    if len(rows) < held_out + 1:
        raise DataError(
            f"prompts.held_out: {held_out} and at least one prompt for the rounds were asked of {len(rows)} prompts"
            f" (dropped: {', '.join(f'{count} {reason}' for reason, count in (+dropped).items()) or 'none'})"
        )
    order = sorted(rows, key=lambda row: (not row.held_out, digest([seed, "held_out", prompts[row.number].id])))
    taken = {row.number for row in order[:held_out]}
    rounds = [prompts[row.number] for row in rows if row.number not in taken and not row.held_out]
    dropped["surplus_held_out"] = len(rows) - len(taken) - len(rounds)
    if not rounds:
        raise DataError(f"prompts.source: all {len(rows)} usable rows are held out; none is left for the rounds")
    return [prompts[row.number] for row in rows if row.number in taken], rounds
