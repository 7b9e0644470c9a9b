"""Pairs of some prompts are measured in every round and trained on in none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flows.console import round_rows
from pipeline.errors import TrainingError
from pipeline.pairing.held_out import is_held_out
from pipeline.policy import read_policy
from pipeline.store import Artifact
from pipeline.tables import read_pairs
from pipeline.types import PreferencePair
from tests.tiny import naive_logprobs
from trainers import launch
from trainers.lesson import Lesson

from .conftest import ENOUGH, RunSmall
from .small import store_of

SHARE = 0.3
HELD_OUT = (f"evaluation.pairs={SHARE}", "pairing.replay.share=0.4", "trainer.eval_steps=3")


@pytest.fixture(scope="module")
def seen(run_small: RunSmall) -> Iterator[tuple[dict[str, Any], list[Lesson]]]:
    """A run's status, and what its trainings were given."""
    lessons: list[Lesson] = []
    train = launch.train_policy

    def noting(policy: Any, lesson: Lesson, *rest: Any) -> Any:
        lessons.append(lesson)
        return train(policy, lesson, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "train_policy", noting)
        yield run_small("held-out", *HELD_OUT), lessons


def artifact(status: dict[str, Any], number: int, *stages: str) -> Artifact:
    """The first of these that the round has."""
    keys = status["rounds"][number]["artifacts"]
    name = next(stage for stage in stages if stage in keys)
    return store_of(status).get(name, keys[name])


def pairs_of(status: dict[str, Any], number: int) -> list[PreferencePair]:
    return list(read_pairs(artifact(status, number, "replay", "pairs").table()))


def test_no_prompt_is_on_both_sides_in_any_round_though_pairs_are_replayed(
    seen: tuple[dict[str, Any], list[Lesson]],
) -> None:
    status, lessons = seen
    assert len(lessons) == 2
    assert "replay" in status["rounds"][1]["artifacts"]
    for number, lesson in enumerate(lessons):
        pairs = pairs_of(status, number)
        assert len(lesson.examples) + len(lesson.held_out) == len(pairs)
        assert status["rounds"][number]["training"]["held_out"] == len(lesson.held_out) > 0
    trained, apart = (
        {row for lesson in lessons for example in side(lesson) for row in example.rows}
        for side in (lambda lesson: lesson.examples, lambda lesson: lesson.held_out)
    )
    assert trained and not {row.prompt for row in trained} & {row.prompt for row in apart}
    assert all(is_held_out(row.prompt, SHARE) for row in apart)


def test_figures_of_held_out_pairs_are_those_of_the_policies_themselves(
    seen: tuple[dict[str, Any], list[Lesson]],
) -> None:
    status, _ = seen
    links = Path(status["directory"]) / "links"
    policies = [links / "initial-policy", *(links / f"round-{number:03d}" / "train" / "policy" for number in (0, 1))]
    for number in (0, 1):
        apart = [pair for pair in pairs_of(status, number) if is_held_out(pair.prompt.token_ids, SHARE)]
        sequences = [[*p.prompt.token_ids, *side.token_ids] for p in apart for side in (p.chosen, p.rejected)]
        starts = [len(p.prompt.token_ids) - 1 for p in apart for _ in range(2)]
        before, after = (
            [sum(logps[at:]) for logps, at in zip(naive_logprobs(read_policy(path), sequences), starts, strict=True)]
            for path in policies[number : number + 2]
        )
        moved = [new - old for new, old in zip(after, before, strict=True)]
        margins = [0.5 * (chosen - rejected) for chosen, rejected in zip(moved[::2], moved[1::2], strict=True)]
        training = status["rounds"][number]["training"]
        assert training["eval/rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
        assert training["eval/rewards/accuracies"] == sum(margin > 0 for margin in margins) / len(margins)


def test_figures_of_held_out_pairs_are_where_people_look(seen: tuple[dict[str, Any], list[Lesson]]) -> None:
    status, _ = seen
    for number, entry in enumerate(status["rounds"]):
        folder, training = artifact(status, number, "train").path, entry["training"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = [line["step"] for line in lines if "eval/loss" in line]
        assert measured == sorted({*range(3, len(lines) + 1, 3), len(lines)})
        board = EventAccumulator(str(folder / "tensorboard"))
        board.Reload()
        assert [event.step for event in board.Scalars("eval/loss")] == measured
        assert dict(round_rows(entry))["held out"] == (
            f"{training['held_out']} pairs: loss {training['eval/loss']:.3f},"
            f" accuracy {training['eval/rewards/accuracies']:.3f}, margin {training['eval/rewards/margins']:.3f}"
        )
    page = (Path(status["directory"]) / "report.html").read_text()
    assert all(words in page for words in ("Held-out pairs", "Held out: loss", "held out"))


def test_what_is_held_out_costs_no_second_reference(
    seen: tuple[dict[str, Any], list[Lesson]], run_small: RunSmall
) -> None:
    status, _ = seen
    rows = {(p.prompt.token_ids, side.token_ids) for p in pairs_of(status, 0) for side in (p.chosen, p.rejected)}
    assert artifact(status, 0, "reference").manifest["rows"] == len(rows)
    other = run_small("nothing-held-out", "evaluation.pairs=0", "rounds=1")
    assert "held out" not in dict(round_rows(other["rounds"][0]))
    keys = [found["rounds"][0]["artifacts"] for found in (status, other)]
    same = {name for name in keys[0] if keys[0][name] == keys[1].get(name)}
    assert {"candidates", "pairs", "reference"} <= same and "train" not in same


def test_what_kto_borrows_is_of_prompts_that_are_trained_on(
    seen: tuple[dict[str, Any], list[Lesson]], run_small: RunSmall, lessons: list[Lesson]
) -> None:
    """And the reference knows it: which rows it scores hangs on what is held out."""
    for number, share in enumerate((SHARE, 0.5)):
        with pytest.raises(TrainingError, match=ENOUGH):
            run_small(f"kto-{number}", f"evaluation.pairs={share}", 'trainer.loss=[{type="kto"}]', "rounds=1")
    for lesson in lessons:
        trained = {row.completion for example in lesson.examples for row in example.rows}
        assert {row.completion for row in lesson.mismatched.values()} <= trained
        rows = {row for example in (*lesson.examples, *lesson.held_out) for row in example.rows}
        assert lesson.reference.logps.keys() == rows | set(lesson.mismatched.values())


def test_a_round_whose_pairs_are_all_held_out_ends_the_run_with_that_reason(run_small: RunSmall) -> None:
    status = run_small("all-held-out", "evaluation.pairs=0.9999999999")
    (entry,) = status["rounds"]
    assert entry["pairs"] > 0 and entry["policy_out"] == entry["policy_in"]
    assert status["state"] == "stopped"
    assert f"evaluation.pairs holds out the round's pairs, all {entry['pairs']} of them" in status["reason"]
