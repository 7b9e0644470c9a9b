"""Argilla 2 records, as ``Dataset.records.to_json`` writes and ``from_json`` reads them.

The dataset it takes: fields ``prompt`` (a text field, or a chat field where a prompt has several turns),
``response_1`` and ``response_2`` (text), a label question ``preference`` with the labels response_1, response_2, tie
and both_bad, and, if wanted, a text question ``comment``. Read back are also a ranking question of that name, and
responses as Argilla's server lists them (a list of ``user_id``, ``status`` and ``values``).
https://docs.argilla.io/latest/how_to_guides/import_export
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from judges.annotation.exchange import (
    Fault,
    Imported,
    Row,
    Shown,
    as_kept,
    as_shown,
    by_task,
    clean,
    first_shown,
    messages_of,
    ordered,
    task_of,
    text_of,
)
from judges.annotation.store import Vote
from judges.annotation.tasks import Side, Task

QUESTION = "preference"
SOURCE = "argilla"
LABELS: Mapping[str, Shown] = {"response_1": "left", "response_2": "right", "tie": "tie", "both_bad": "both_bad"}
SPACE = uuid.UUID("6d0c6d7a-54e2-5f5c-9a1e-0a4f0d1f7a52")
"""Of the ids made from annotators' names; any would do, if it stays the same."""


def user_id(annotator: str) -> str:
    """The id under which an annotator of ours is exported: Argilla takes UUIDs alone."""
    return str(uuid.uuid5(SPACE, annotator))


def to_argilla(tasks: Sequence[Task], votes: Iterable[Vote] = ()) -> list[dict[str, Any]]:
    """A record a task, with the votes as responses; known answers stay here, skips are left out."""
    chat = any(_is_chat(task) for task in tasks)
    given = by_task(vote for vote in votes if vote.verdict != "skip")
    return [_record(task, given.get(task.id, []), chat) for task in tasks]


def _record(task: Task, votes: Sequence[Vote], chat: bool) -> dict[str, Any]:
    one, two = ordered(task)
    label = {shown: name for name, shown in LABELS.items()}
    responses: dict[str, list[dict[str, Any]]] = {}
    for vote in votes:
        value = label[as_shown(vote.verdict, first_shown(task))]
        responses.setdefault(QUESTION, []).append({"value": value, "user_id": user_id(vote.annotator)})
        if vote.comment:
            responses.setdefault("comment", []).append({"value": vote.comment, "user_id": user_id(vote.annotator)})
    return {
        "id": task.id,
        "fields": {
            "prompt": list(task.conversation) if chat else task.conversation[0]["content"],
            "response_1": one,
            "response_2": two,
        },
        "metadata": {"prompt_id": task.prompt_id} if task.prompt_id else {},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
    }


def from_argilla(rows: Iterable[Any], people: Mapping[str, str] | None = None, question: str = QUESTION) -> Imported:
    """Tasks and votes of records. ``people``: names by user id; others keep their id as a name."""
    imported = Imported()
    for number, row in enumerate(rows, 1):
        imported.rows += 1
        try:
            task, left = _task(row)
        except Fault as fault:
            imported.fault(number, fault)
            continue
        imported.tasks.append(task)
        said = {str(each.get("user_id")): each.get("value") for each in _responses(row, "comment")}
        for response in _responses(row, question):
            try:
                person, shown = _response(response)
            except Fault as fault:
                imported.fault(number, fault)
                continue
            name, comment = (people or {}).get(person, person), said.get(person)
            vote = Vote(task.id, clean(name), as_kept(shown, left), left, source=SOURCE)
            imported.votes.append(replace(vote, comment=clean(comment)) if isinstance(comment, str) else vote)
    return imported


def _task(row: Any) -> tuple[Task, Side]:
    """The task, and which candidate of it is the row's first response."""
    fields = row.get("fields") if isinstance(row, Mapping) else None
    if not isinstance(fields, Mapping):
        raise Fault("not_a_record", f"{row!r:.60}")
    prompt, metadata = fields.get("prompt"), row.get("metadata")
    prompt_id = metadata.get("prompt_id") if isinstance(metadata, Mapping) else None
    asked = messages_of(prompt) if isinstance(prompt, list) else text_of(fields, "prompt")
    return task_of(asked, text_of(fields, "response_1"), text_of(fields, "response_2"), prompt_id)


def _responses(row: Row, question: str) -> list[Row]:
    """Responses to ``question`` as ``{"user_id": …, "value": …, "status": …}``, from either form; {} for no object."""
    responses = row.get("responses") or {}
    if isinstance(responses, Mapping):
        listed = responses.get(question) or []
        return [each if isinstance(each, Mapping) else {} for each in (listed if isinstance(listed, list) else [{}])]
    listed = [
        each if isinstance(each, Mapping) else {} for each in (responses if isinstance(responses, list) else [{}])
    ]
    answers = [each.get("values") or {} for each in listed]
    values = [each.get(question) or {} if isinstance(each, Mapping) else {} for each in answers]
    return [
        {**each, **(value if isinstance(value, Mapping) else {})} for each, value in zip(listed, values, strict=True)
    ]


def _response(response: Row) -> tuple[str, Shown]:
    """Whose it is, and what it says."""
    person, status = response.get("user_id"), response.get("status", "submitted")
    if not response:
        raise Fault("bad_response", "no object with user_id and value")
    if not isinstance(person, str) or person in ("", "None"):
        raise Fault("no_annotator", f"user_id is {person!r}")
    if status == "discarded":
        return person, "skip"
    if status != "submitted":
        raise Fault("draft", f"status is {status!r}")
    return person, _shown(response.get("value"))


def _shown(value: Any) -> Shown:
    """Of a label, or of a ranking: values in order, or each with its rank; the same rank is a tie."""
    if value is None:
        raise Fault("no_answer", "value is null")
    if isinstance(value, str) and value in LABELS:
        return LABELS[value]
    ranks = _ranks(value if isinstance(value, list) else [])
    if "response_1" in ranks and "response_2" in ranks:
        one, two = ranks["response_1"], ranks["response_2"]
        return "tie" if one == two else "left" if one < two else "right"
    raise Fault("unknown_answer", f"{value!r:.60}; allowed: {', '.join(LABELS)}, or a ranking of both responses")


def _ranks(ranking: list[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, each in enumerate(ranking):
        value, rank = (each.get("value"), each.get("rank")) if isinstance(each, Mapping) else (each, place)
        if isinstance(value, str) and isinstance(rank, int):
            found[value] = rank
    return found


def _is_chat(task: Task) -> bool:
    return len(task.conversation) > 1 or task.conversation[0]["role"] != "user"
