"""What happens around the gradient: sessions that end early, memory that runs out, guards, evaluation, files."""

import json
import logging
import math
import random
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import TrainerConfig
from pipeline.errors import NonFiniteError, StepZeroError, StoreError, TrainingError
from pipeline.policy import weights_digest
from pipeline.types import Policy
from tests.tiny import make_policy, perturb
from tests.trainers.session import go_on, lesson_of, start, steps_done, until
from tests.trainers.trainings import all_lines, config, full_disk, known, lines, make_examples, make_lesson
from trainers.checkpoints import load_model, load_tokenizer
from trainers.dpo import objective_of, train, train_policy
from trainers.examples import Pair
from trainers.lesson import Lesson, Trained
from trainers.loop import Loop
from trainers.memory import halve_budget, is_out_of_memory
from trainers.metrics import Recorder, Sample
from trainers.packed import PackedPolicy
from trainers.step import KnownReference, Step
from trainers.weights import Weights


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def lesson(policy: Policy) -> Lesson:
    return make_lesson(policy, make_examples(policy))


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    """As TensorBoard shows them."""
    board = EventAccumulator(str(directory / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(name)]


# ---------------------------------------------------------------------------------------------- sessions that end
LONG: dict[str, Any] = {"epochs": 8, "checkpoint_steps": 1000, "guards": {"kl": None}, "schedule": "cosine"}
"""40 steps and no state but that of the session's end."""


def test_on_sigterm_and_ctrl_c_the_state_is_saved_and_the_same_call_ends_the_same(
    policy: Policy, tmp_path: Path
) -> None:
    settings = config(**LONG)
    codes = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: -signal.SIGINT}
    sessions = {
        number: start(policy, tmp_path / number.name, settings, "short", end_at=20, by=number) for number in codes
    }
    whole, _ = go_on(policy, tmp_path / "whole", settings, "short")
    assert {number: session.wait() for number, session in sessions.items()} == codes
    for number in sessions:
        out = tmp_path / number.name
        assert steps_done(out) == 20
        assert not (out / "policy").exists()
        steps: list[int] = []
        again, _ = go_on(policy, out, settings, "short", lambda step, total, note: steps.append(step))  # noqa: B023
        assert steps == list(range(21, 41))
        assert again.digest == whole.digest
        assert lines(out) == lines(tmp_path / "whole")


STATEFUL: dict[str, Any] = {
    "loss": [{"type": "bco"}, {"type": "nll", "weight": 0.1}], "dtype": "bfloat16", "epochs": 30, "eval_steps": 7,
    "checkpoint_steps": 3, "guards": {"kl": None}, "token_budget": 60, "schedule": "linear",
}  # fmt: skip
"""A loss with a running figure, rounded copies of the weights, several epochs, evaluation, several packs a batch."""


def test_a_training_killed_at_random_moments_ends_with_the_same_weights_figures_and_samples(
    policy: Policy, tmp_path: Path
) -> None:
    settings, out = config(**STATEFUL), tmp_path / "killed"
    draw = random.Random()
    session = start(policy, out, settings, "short")
    whole, outcome = go_on(policy, tmp_path / "whole", settings, "short")
    moment = draw.randrange(4, 100)
    until(lambda: steps_done(out) >= moment, session)
    session.kill()
    assert session.wait() == -signal.SIGKILL
    assert not (out / "policy").exists()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 900, "lo')  # torn
    with open(out / "samples.jsonl", "a") as file:
        file.write('{"step": 900, "prompt": "not yet", "completion": ""}\n')

    steps: list[int] = []
    again, found = go_on(policy, out, settings, "short", lambda step, total, note: steps.append(step))
    assert steps[0] % 3 == 1  # it went on from a state
    assert steps[0] > moment - 3
    assert again.digest == whole.digest
    assert lines(out) == lines(tmp_path / "whole")
    assert (out / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    assert [step for step, _ in scalars(out, "loss")] == list(range(1, 151))  # none twice
    assert found.metrics.keys() == outcome.metrics.keys()

    # Killed between the policy and what the caller does next: the policy is there, and so may be a state.
    (out / "state").mkdir()
    assert go_on(policy, out, settings, "short", lambda *_: pytest.fail("a step")) == (again, found)
    assert not (out / "state").exists()


def test_a_training_killed_after_its_last_step_only_saves(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    guarded = config(checkpoint_steps=7, guards={"margin": 1e-9})  # it ends at its second step
    for name, settings in (("plain", config(checkpoint_steps=7)), ("guarded", guarded)):
        whole, _ = train_policy(policy, lesson, settings, tmp_path / name / "whole")
        last = train(load_model(policy.path), lesson, settings, tmp_path / name / "out")
        again, found = train_policy(policy, lesson, settings, tmp_path / name / "out", lambda *_: pytest.fail("a step"))
        assert again.digest == whole.digest
        assert found == last
        assert (found.stopped is None) == (name == "plain")


def test_a_disk_that_is_full_is_one_clear_error_and_costs_nothing_that_was_saved(
    policy: Policy, lesson: Lesson, tmp_path: Path
) -> None:
    settings, out = config(checkpoint_steps=2), tmp_path / "out"
    whole, _ = train_policy(policy, lesson, settings, tmp_path / "whole")
    with (
        ExitStack() as later,
        pytest.raises(StoreError, match=r"state\.pt cannot be written \(.*MiB free; what is fin"),
    ):
        train_policy(
            policy, lesson, settings, out, lambda done, *_: later.enter_context(full_disk()) if done == 3 else None
        )
    steps: list[int] = []
    train(load_model(policy.path), lesson, settings, out, lambda done, *_: steps.append(done))
    assert steps == list(range(3, 11))
    with full_disk(), pytest.raises(StoreError, match=r"policy\.part cannot be written \(.*File too large"):
        train_policy(policy, lesson, settings, out)
    assert train_policy(policy, lesson, settings, out, lambda *_: pytest.fail("a step"))[0].digest == whole.digest
    assert lines(out) == lines(tmp_path / "whole")


def test_signals_that_somebody_else_handles_are_left_to_them(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    """As a flow does; the training goes on to its end."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        train(
            load_model(policy.path), lesson, config(epochs=1), tmp_path,
            lambda done, total, note: signal.raise_signal(signal.SIGTERM) if done == 2 else None,
        )  # fmt: skip
        assert len(seen) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps_done(tmp_path) == 5
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


# ---------------------------------------------------------------------------------------------- memory
MEMORY = 80 << 20
"""More than half a batch of the long lesson takes, and less than a whole one."""


def test_out_of_memory_halves_the_token_budget_for_good_and_changes_rounding_alone(
    policy: Policy, tmp_path: Path
) -> None:
    """From the step that did not fit on it is, bit for bit, the training with half the budget; and so it stays for who
    resumes, whatever the memory then. Of as many threads each: rounding depends on them, and on nothing else here."""
    settings = config(batch_size=64, epochs=3, token_budget=20_000, checkpoint_steps=50, guards={"kl": None})
    sessions = {
        "limited": start(policy, tmp_path / "limited", settings, "long", memory=MEMORY),
        "killed": start(policy, tmp_path / "killed", settings, "long", memory=MEMORY, end_at=2),
    }
    go_on(policy, tmp_path / "ample", settings, "long")
    with pytest.raises(SystemExit):
        go_on(policy, tmp_path / "half", settings, "long", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert steps_done(tmp_path / "half") == 1
    half, _ = go_on(policy, tmp_path / "half", settings.model_copy(update={"token_budget": 9536}), "long")
    assert {name: session.wait() for name, session in sessions.items()} == {"limited": 0, "killed": -signal.SIGKILL}
    for name in sessions:
        said = (tmp_path / f"{name}.err").read_text().splitlines()
        assert said == ["out of memory on 19072 tokens at once; the token budget is now 9536"]

    notes: list[str] = []
    again, _ = go_on(policy, tmp_path / "killed", settings, "long", lambda done, total, note: notes.append(note))
    assert len(notes) == 2
    assert all(note.endswith("token budget 9536") for note in notes)  # though there is memory again
    assert weights_digest(tmp_path / "limited" / "policy") == again.digest == half.digest
    assert lines(tmp_path / "limited") == lines(tmp_path / "killed") == lines(tmp_path / "half")
    for ours, whole in zip(lines(tmp_path / "limited"), lines(tmp_path / "ample"), strict=True):
        assert ours["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


def test_a_prompt_group_that_does_not_fit_is_one_clear_error(policy: Policy, lesson: Lesson) -> None:
    model = load_model(policy.path)
    step = Step(PackedPolicy(model, Weights(model, "float32")), objective_of(config()), lesson.reference, 1000)
    some, one = lesson.examples[:4], lesson.examples[:1]
    sizes = [len(row.prompt) + sum(len(row.completion) - 1 for row in one[0].rows) for row in one[0].rows[:1]]
    budgets, lack = [], MemoryError("no memory left")
    with pytest.raises(TrainingError, match=r"no memory left.*set trainer.recompute = true, or take shorter rows"):
        while True:
            step.token_budget = halve_budget(step.token_budget, step.rows(some)[0], lack)
            budgets.append(step.token_budget)
    assert budgets == sorted(set(budgets), reverse=True)
    with pytest.raises(TrainingError, match=rf"out of memory on a prompt and its completions of {sizes[0]} tokens"):
        halve_budget(1000, step.rows(one)[0], lack)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_a_running_figure_moves_once_however_often_a_step_is_tried(
    policy: Policy, lesson: Lesson, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A coupled loss observes its batch before the gradient that memory does not suffice for."""

    class Failing(Step):
        failures = 2

        def backward(self, examples: Any) -> dict[str, float]:
            figures = super().backward(examples)
            if self.failures:
                self.failures -= 1
                raise error
            return figures

    settings = config(**STATEFUL | {"dtype": "float32", "epochs": 1, "token_budget": 10_000, "batch_size": 22})
    states, gradients = [], []
    for kind in (Step, Failing):
        model = load_model(policy.path)
        weights = Weights(model, "float32")
        step = kind(PackedPolicy(model, weights), objective_of(settings), lesson.reference, settings.token_budget)
        loop = Loop(step, weights, lesson, settings, tmp_path / kind.__name__)
        with caplog.at_level(logging.ERROR, "ratchet.trainers"):
            next(loop.remaining())
            loop.step(0)
        states.append(step.objective.state)
        gradients.append(loop.last["grad_norm"])
    assert states[0] == pytest.approx(states[1], rel=1e-6)
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
    ],
)
def test_any_other_error_is_no_lack_of_memory(error: Exception, lacks: bool) -> None:
    assert is_out_of_memory(error) is lacks


@pytest.mark.parametrize("place", ["trainers.dpo.load_model", "trainers.dpo.prove", "torch.optim.AdamW.step"])
def test_memory_that_no_smaller_budget_mends_is_one_clear_error(
    policy: Policy, lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more")

    with (
        monkeypatch.context() as patch,
        pytest.raises(TrainingError, match=r"^out of memory while training \(.* GiB\);"),
    ):
        patch.setattr(place, fail)
        train_policy(policy, lesson, config(), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="out of memory loading the reference"):
        patch.setattr("trainers.reference.load_model", fail)
        known(policy, lesson.examples)


def test_before_memory_for_the_optimiser_is_taken_the_gradients_give_back_theirs(
    policy: Policy, lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    free = Step.free
    monkeypatch.setattr(Step, "free", lambda self: (freed.append(True), free(self)))
    train_policy(policy, lesson, config(epochs=1), tmp_path)
    assert len(freed) == 1  # and not at each step: what is kept is kept to be used again


# ---------------------------------------------------------------------------------------------- guards and checks
def test_a_guard_ends_the_training_before_the_update_of_its_step_and_says_why(
    policy: Policy, lesson: Lesson, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"epochs": 6, "eval_steps": 50}
    train_policy(policy, lesson, config(**settings), tmp_path / "whole")
    whole = lines(tmp_path / "whole")
    limit = whole[12]["rewards/margins"]
    first = next(line for line in whole if line["rewards/margins"] > limit)
    guarded = config(**settings, guards={"margin": limit})
    notes: list[str] = []
    trained, outcome = train_policy(
        policy, lesson, guarded, tmp_path / "out", lambda done, total, note: notes.append(note)
    )
    assert outcome.metrics["step"] == first["step"] < 30
    assert f"; trainer.guards.margin allows {limit:g}" in str(outcome.stopped)
    assert notes[-1].endswith(" ended early")
    assert [*lines(tmp_path / "out")[:-1]] == whole[: int(first["step"]) - 1]
    assert lines(tmp_path / "out")[-1] == {**first, "stopped": outcome.stopped}
    # What is saved has the weights whose figures were too much, and the next call finds it, reason and all.
    after = known(trained, lesson.examples).logps
    batch = _batch(policy, lesson, guarded, int(first["step"]) - 1, tmp_path)
    chosen = sum(after[pair.chosen] for pair in batch) / len(batch)
    assert chosen == pytest.approx(first["logps/chosen"], abs=1e-3)
    assert train_policy(policy, lesson, guarded, tmp_path / "out") == (trained, outcome)


def _batch(policy: Policy, lesson: Lesson, settings: TrainerConfig, number: int, tmp_path: Path) -> list[Pair]:
    model = load_model(policy.path)
    weights = Weights(model, "float32")
    step = Step(PackedPolicy(model, weights), objective_of(settings), lesson.reference, 1000)
    indices = Loop(step, weights, lesson, settings, tmp_path).batches[number][1]
    return [pair for index in indices if isinstance(pair := lesson.examples[index], Pair)]


def test_a_reference_of_other_weights_is_refused_before_the_first_update(
    policy: Policy, lesson: Lesson, tmp_path: Path
) -> None:
    other = perturb(policy, tmp_path / "other", seed=1)
    with pytest.raises(StepZeroError, match=r"nats a completion away .* allowed: 0\.01.* other weights"):
        train_policy(other, lesson, config(guards={"kl": None}), tmp_path / "out")
    assert lines(tmp_path / "out") == []
    meant = make_lesson(policy, lesson.examples, reference=lesson.reference, starts_at_reference=False)
    trained = train_policy(other, meant, config(epochs=1, guards={"kl": None}), tmp_path / "out")[1]
    assert trained.metrics["step"] == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_leaves_the_last_state(
    policy: Policy, lesson: Lesson, tmp_path: Path, bad: float
) -> None:
    settings = config(checkpoint_steps=1)
    batch = _batch(policy, lesson, settings, 3, tmp_path)
    poisoned = KnownReference({**lesson.reference.logps, batch[0].chosen: bad})
    ill = make_lesson(policy, lesson.examples, reference=poisoned)
    with pytest.raises(NonFiniteError, match=r"step 3: loss (nan|inf) and gradient norm .* must be finite"):
        train(load_model(policy.path), ill, settings, tmp_path / "out")
    assert [line["step"] for line in lines(tmp_path / "out")] == [1, 2, 3]
    train(load_model(policy.path), lesson, settings, tmp_path / "whole")
    train(load_model(policy.path), lesson, settings, tmp_path / "out")  # mended, it goes on
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------- files
def test_held_out_pairs_are_measured_after_the_update_and_change_nothing(policy: Policy, tmp_path: Path) -> None:
    settings = config(**STATEFUL | {"dtype": "float32", "epochs": 2})
    watched = lesson_of(policy, settings, "short")
    blind = make_lesson(policy, watched.examples, reference=watched.reference)
    whole, outcome = train_policy(policy, watched, settings, tmp_path / "watched")
    unseen, _ = train_policy(policy, blind, settings, tmp_path / "blind")
    assert unseen.digest == whole.digest
    rows = lines(tmp_path / "watched")
    assert [row["step"] for row in rows if "eval/loss" in row] == [7, 10]  # every seven, and at the end
    without = [{name: each for name, each in row.items() if "eval/" not in name} for row in rows]
    assert without == lines(tmp_path / "blind")

    after = known(whole, watched.held_out).logps
    pairs = [pair for pair in watched.held_out if isinstance(pair, Pair)]
    before = watched.reference.logps
    margins = [after[p.chosen] - before[p.chosen] - after[p.rejected] + before[p.rejected] for p in pairs]
    mean = settings.beta * sum(margins) / len(margins)
    assert outcome.metrics["eval/rewards/margins"] == pytest.approx(mean, abs=1e-5)
    assert [step for step, _ in scalars(tmp_path / "watched", "eval/loss")] == [7, 10]


TOKEN_DPO: Mapping[str, Any] = {"loss": [{"type": "tdpo2"}, {"type": "bco", "weight": 0.1}], "epochs": 1}


def test_losses_that_need_the_references_whole_distribution_are_measured_and_coupled_too(
    policy: Policy, tmp_path: Path
) -> None:
    examples = make_examples(policy, 30)
    watched = make_lesson(policy, examples[:22], held_out=examples[22:], live=policy)
    figures = train(load_model(policy.path), watched, config(**TOKEN_DPO), tmp_path).metrics
    first = lines(tmp_path)[0]
    assert first["loss/tdpo2"] == pytest.approx(math.log(2), abs=1e-5)
    assert figures["eval/loss/tdpo2"] > 0


def test_sample_completions_are_what_the_model_itself_generates(policy: Policy, tmp_path: Path) -> None:
    settings = config(dtype="bfloat16", recompute=True, eval_steps=4, checkpoint_steps=4)
    watched = lesson_of(policy, settings, "short")
    trained, _ = train_policy(policy, watched, settings, tmp_path)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(policy.path)
    prompts = [tokenizer.decode(prompt) for prompt in watched.sample_prompts]
    assert len(prompts) == 3
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [(s, p) for s in (4, 8, 10) for p in prompts]
    model = load_model(trained.path, torch.bfloat16)
    for prompt, sample in zip(watched.sample_prompts, samples[-3:], strict=True):
        drawn = model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, len(prompt) :]
        assert sample["completion"] == tokenizer.decode(drawn, skip_special_tokens=True)


def test_figures_are_on_the_board_as_in_the_file(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    cut = {row for example in lesson.examples for row in example.rows if row.completion[-1] != 2}
    known_cuts = make_lesson(policy, lesson.examples, reference=lesson.reference, truncated=cut)
    train(load_model(policy.path), known_cuts, config(), tmp_path)
    written = all_lines(tmp_path)
    assert {
        "loss", "rewards/margins", "logps/chosen", "lengths/rejected", "kl", "grad_norm", "learning_rate", "tokens",
        "tokens_per_second", "pairs_per_second", "memory/process_gib", "truncated",
    } <= written[0].keys()  # fmt: skip
    for name in ("loss", "tokens", "truncated", "memory/process_gib"):
        wanted = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in written]
        assert scalars(tmp_path, name) == wanted
    assert all(0 < line["memory/process_gib"] < 64 for line in written)
    tokens = sum(line["tokens"] for line in written[:5])
    assert tokens <= sum(len(row) for example in lesson.examples for row in example.rows)
    assert sum(line["truncated"] for line in written) > 0


def test_an_interrupted_recorder_goes_on_without_a_step_twice(tmp_path: Path) -> None:
    for first, end in ((0, 7), (4, 9)):
        recorder = Recorder(tmp_path, first)
        for step in range(first + 1, end + 1):
            recorder.write({"step": step, "loss": float(step + first)})
            recorder.write_samples(step, [Sample("a\nb", "c — d")])
        recorder.sync()
        recorder.close()
    assert [line["loss"] for line in all_lines(tmp_path)] == [1, 2, 3, 4, 9, 10, 11, 12, 13]
    assert scalars(tmp_path, "loss") == [(line["step"], line["loss"]) for line in all_lines(tmp_path)]
    assert (tmp_path / "samples.jsonl").read_text().count("c — d") == 9


def test_what_is_known_at_the_end_is_in_the_outcome(policy: Policy, lesson: Lesson, tmp_path: Path) -> None:
    notes: list[str] = []
    outcome = train(load_model(policy.path), lesson, config(), tmp_path, lambda done, total, note: notes.append(note))
    assert outcome == Trained(all_lines(tmp_path)[-1], None)
    last = outcome.metrics
    assert notes[-1] == (
        f"loss {last['loss']:.3f} margin {last['rewards/margins']:.2f} {last['pairs_per_second']:.1f} pairs/s"
    )
