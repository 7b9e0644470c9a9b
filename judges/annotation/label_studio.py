"""Label Studio tasks and its JSON export, for the template "Human preference collection for RLHF".

``CONFIG`` is that template with two additions: a choice for ties and "both bad", and a comment. Its plain form, without
them, is read as well. In a pairwise result ``left`` is the first text that the tag names: ``answer1``.
https://labelstud.io/guide/export, https://labelstud.io/tags/pairwise.html, https://labelstud.io/guide/task_format
"""

from collections.abc import Iterable, Mapping, Sequence
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

SOURCE = "label_studio"
CONFIG = """\
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="comparison" toName="answer1,answer2"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">
    <Text name="answer1" value="$answer1"/>
    <Text name="answer2" value="$answer2"/>
  </View>
  <Choices name="neither" toName="prompt" choice="single" showInline="true">
    <Choice value="tie"/>
    <Choice value="both_bad"/>
  </Choices>
  <TextArea name="comment" toName="prompt" placeholder="Comment"/>
</View>
"""
"""The labelling interface that :func:`to_label_studio` writes tasks for."""
SELECTED: Mapping[str, Shown] = {"left": "left", "right": "right", "answer1": "left", "answer2": "right"}
CHOICES: Mapping[str, Shown] = {"tie": "tie", "both_bad": "both_bad"}


def to_label_studio(tasks: Sequence[Task], votes: Iterable[Vote] = ()) -> list[dict[str, Any]]:
    """A task each, with the votes as annotations; known answers stay here.

    Of a conversation ``prompt`` is a transcript to read, and ``conversation`` the turns.
    """
    given = by_task(votes)
    return [_row(task, given.get(task.id, [])) for task in tasks]


def _row(task: Task, votes: Sequence[Vote]) -> dict[str, Any]:
    turns = list(task.conversation)
    transcript = "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)
    plain = len(turns) == 1 and turns[0]["role"] == "user"
    one, two = ordered(task)
    data: dict[str, Any] = {"prompt": turns[0]["content"] if plain else transcript, "answer1": one, "answer2": two}
    data |= {} if plain else {"conversation": turns}
    data |= {"prompt_id": task.prompt_id} if task.prompt_id else {}
    return {"data": data, "annotations": [_annotation(vote, first_shown(task)) for vote in votes]}


def _annotation(vote: Vote, left: Side) -> dict[str, Any]:
    shown, result = as_shown(vote.verdict, left), []
    if shown in ("left", "right"):
        tag = {"from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise"}
        result.append({**tag, "value": {"selected": shown}})
    elif shown != "skip":
        tag = {"from_name": "neither", "to_name": "prompt", "type": "choices"}
        result.append({**tag, "value": {"choices": [shown]}})
    if vote.comment:
        tag = {"from_name": "comment", "to_name": "prompt", "type": "textarea"}
        result.append({**tag, "value": {"text": [vote.comment]}})
    return {
        "completed_by": {"email": vote.annotator},
        "result": result,
        "was_cancelled": shown == "skip",
        "ground_truth": False,
        "lead_time": vote.seconds,
    }


def from_label_studio(rows: Iterable[Any], people: Mapping[str, str] | None = None) -> Imported:
    """Tasks and votes of an export; predictions are not people's and are left.

    ``people``: names by user id or e-mail address; others keep that as a name.
    """
    imported = Imported()
    for number, row in enumerate(rows, 1):
        imported.rows += 1
        try:
            task, left = _task(row)
        except Fault as fault:
            imported.fault(number, fault)
            continue
        imported.tasks.append(task)
        annotations = row.get("annotations") or []
        for annotation in annotations if isinstance(annotations, list) else [annotations]:
            try:
                imported.votes.append(_vote(annotation, task, left, people or {}))
            except Fault as fault:
                imported.fault(number, fault)
    return imported


def _task(row: Any) -> tuple[Task, Side]:
    data = row.get("data") if isinstance(row, Mapping) else None
    if not isinstance(data, Mapping):
        raise Fault("not_a_record", f"{row!r:.60}")
    asked = messages_of(data["conversation"]) if data.get("conversation") else text_of(data, "prompt")
    return task_of(asked, text_of(data, "answer1"), text_of(data, "answer2"), data.get("prompt_id"))


def _vote(annotation: Any, task: Task, left: Side, people: Mapping[str, str]) -> Vote:
    if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
        raise Fault("bad_response", f"{annotation!r:.60}")
    results = [each for each in annotation["result"] if isinstance(each, Mapping)]
    person = _person(annotation.get("completed_by"))
    shown: Shown = "skip" if annotation.get("was_cancelled") else _shown(results)
    seconds = annotation.get("lead_time")
    return Vote(
        task.id, people.get(person, person), as_kept(shown, left), left,
        float(seconds) if isinstance(seconds, (int, float)) else None, _comment(results),
        clean(str(annotation.get("updated_at") or annotation.get("created_at") or "")), SOURCE,
    )  # fmt: skip


def _person(completed_by: Any) -> str:
    """A user's id, or what an export with users' details says: their e-mail address before their id."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    if isinstance(completed_by, bool) or not isinstance(completed_by, (int, str)) or completed_by == "":
        raise Fault("no_annotator", f"completed_by is {completed_by!r:.60}")
    return clean(str(completed_by))


def _shown(results: Sequence[Row]) -> Shown:
    said: set[Shown] = set()
    for each in results:
        value = each.get("value")
        values = value if isinstance(value, Mapping) else {}
        if each.get("type") == "pairwise":
            said.add(_known(values.get("selected"), SELECTED))
        elif each.get("type") == "choices":
            chosen = values.get("choices")
            said |= {_known(choice, CHOICES) for choice in (chosen if isinstance(chosen, list) else [chosen])}
    if not said:
        raise Fault("no_answer", f"{list(results)!r:.60}")
    if len(said) > 1:
        raise Fault("contradictory", " and ".join(sorted(said)))
    return said.pop()


def _known(value: Any, answers: Mapping[str, Shown]) -> Shown:
    if not isinstance(value, str) or value not in answers:
        raise Fault("unknown_answer", f"{value!r:.60}; allowed: {', '.join(answers)}")
    return answers[value]


def _comment(results: Sequence[Row]) -> str:
    values = [each.get("value") for each in results if each.get("type") == "textarea"]
    texts = [value.get("text") for value in values if isinstance(value, Mapping)]
    lines = [line for text in texts for line in (text if isinstance(text, list) else [text])]
    return clean("\n".join(line for line in lines if isinstance(line, str)))
