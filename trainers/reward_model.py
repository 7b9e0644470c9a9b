"""A reward model's training: preference pairs in, a sequence classifier with one logit out.

What a step does depends on nothing but the weights, the optimiser, the pairs, the config, the seed and the step number
(there is no dropout). So a run that is killed and goes on from its last state ends with the same weights: bit for bit
on a CPU, for a given number of threads; on a GPU but for the order in which its kernels add.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from pipeline.classifiers import longest_row
from pipeline.config import RewardTrainerConfig
from pipeline.errors import TrainingError
from pipeline.protocols import Progress, silent
from pipeline.store import write_json
from trainers.checkpoints import STATE, load_tokenizer
from trainers.examples import Pair
from trainers.interruption import noticed
from trainers.memory import enough_for
from trainers.reward_base import load_base, save_reward_model
from trainers.reward_loop import RewardLoop, RewardOutcome
from trainers.rewards import ids_of

MODEL, OUTCOME = "model", "outcome.json"


@enough_for("while training", 'less is needed with dtype = "bfloat16", or by a smaller base')
def train_reward_model(
    base: Path,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    config: RewardTrainerConfig,
    seed: int,
    directory: Path,
    progress: Progress = silent,
) -> RewardOutcome:
    """Train a reward model and save it as ``directory/model``, in the precision it computes in.

    ``base`` is a checkpoint of any model that transformers can make a classifier of; a causal one gets a new head.
    ``directory``, this training's own, also gets ``metrics.jsonl``, a line a step, the same for TensorBoard, and
    meanwhile the state to go on from. Called again after a kill, goes on; called again after the end, returns what is
    there. On SIGTERM and Ctrl-C, where nobody else handles them, the step ends, the state is saved, and the process
    leaves (SystemExit, KeyboardInterrupt).

    Raises:
        DataError: no reward model can be made of ``base``.
        TrainingError: there is nothing to train on, or a row is too long for the model, or for the memory.
        NonFiniteError: a loss or gradient is NaN or infinite; the last state on disk is from before it.
    """
    if (directory / MODEL).exists():  # it appears whole, and last
        shutil.rmtree(directory / STATE, ignore_errors=True)
        return RewardOutcome(**json.loads((directory / OUTCOME).read_text()))
    if not pairs:
        raise TrainingError("there is nothing to train on: no pair is left")
    tokenizer = load_tokenizer(base)
    rows = [row for pair in (*pairs, *held_out) for row in pair.rows]
    model = load_base(base, seed, tokenizer, {ids_of(row)[-1] for row in rows})
    _check_fits(model, max(map(len, rows)))
    loop = RewardLoop(model, pairs, held_out, config, seed, directory)
    with noticed() as interruption, closing(loop.recorder):
        for step in range(loop.first, loop.steps):
            if loop.stopped is not None:
                break
            loop.step(step)
            progress(step + 1, loop.steps, loop.note)
            ended = loop.stopped is not None or step + 1 == loop.steps
            if ended or interruption.number is not None or (step + 1) % config.checkpoint_steps == 0:
                loop.save(step + 1)
            if interruption.number is not None:
                interruption.leave(interruption.number)
    outcome = loop.finish()
    write_json(directory / OUTCOME, asdict(outcome))
    save_reward_model(model, tokenizer, directory / MODEL, config.dtype)
    shutil.rmtree(directory / STATE, ignore_errors=True)
    return outcome


def _check_fits(model: PreTrainedModel, longest: int) -> None:
    positions = longest_row(model)
    if positions is not None and longest > positions:
        raise TrainingError(
            f"a row has {longest} tokens, and the model takes {positions}; give --max-length {positions}"
        )
