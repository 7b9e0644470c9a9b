"""A frozen policy that gives log-probabilities: the reference of a loss, and both sides of a KL estimate."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.config.trainer import LoraConfig
from pipeline.errors import DataError
from pipeline.protocols import Progress, silent
from pipeline.types import Policy
from trainers.checkpoints import load_model
from trainers.examples import Example, Row
from trainers.memory import enough_for, halve_budget, is_out_of_memory
from trainers.packed import PackedPolicy, prove
from trainers.packing import Pack, group_rows, pack, split_by_budget
from trainers.weights import DTYPES


class Reference:
    """One policy, loaded once. ``dtype``, ``token_budget`` and ``lora`` are those of
    :class:`pipeline.config.TrainerConfig`: what is quantised is compared with its like.

    Raises:
        ConfigError: ``lora`` asks for 4 bits, and they are impossible here.
        TrainingError: the model cannot run on packed prompts, or memory is too small for it.
    """

    @enough_for("loading the reference", 'it needs half as much with trainer.dtype = "bfloat16"')
    def __init__(self, policy: Policy, dtype: str, token_budget: int, lora: LoraConfig | None = None) -> None:
        if lora is not None and lora.quantise is not None:
            from trainers.adapters import load_base  # peft takes a second to import

            model = load_base(policy.path, lora, DTYPES[dtype])
        else:
            model = load_model(policy.path, DTYPES[dtype])
        prove(model)
        self.policy = PackedPolicy(model)
        self.token_budget = token_budget

    def token_logps(self, rows: Sequence[Row], progress: Progress = silent) -> list[list[float]]:
        """log π(y_t | x, y_<t) of each row's completion, in nats. Equal rows and equal prompts run once.

        Where memory runs out, what is missing runs with half the token budget, and so does all that comes after.

        Raises:
            TrainingError: one prompt and its completions are too much.
        """
        found: dict[Row, list[float]] = {}
        while missing := [row for row in rows if row not in found]:
            try:
                for packed in self._packs(missing):
                    logps = self.policy.statistics(packed).logps.split(packed.lengths)
                    found |= {row: values.tolist() for row, values in zip(packed.rows, logps, strict=True)}
                    progress(len(found), len(rows), "")
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                lack = error.with_traceback(None)  # its frames hold tensors
            self.policy.workspace.clear()
            self.token_budget = halve_budget(self.token_budget, missing, lack)
        return [found[row] for row in rows]

    def _packs(self, rows: Sequence[Row]) -> Iterator[Pack]:
        for groups in split_by_budget(group_rows(rows), self.token_budget):
            yield pack(groups, self.policy.model.device)

    def logps(self, rows: Sequence[Row]) -> list[float]:
        """log π(completion | prompt) of each row, in nats, summed over the completion's tokens."""
        return list(map(sum, self.token_logps(rows)))


def reference_rows(examples: Sequence[Example], mismatched: Mapping[Row, Row]) -> list[Row]:
    """The rows whose log-probabilities a training on ``examples`` asks a reference for, each once, prompt by prompt.

    Sorted, so that the order of a data set, and which of it is held out, leave them as they are; but for the mismatched
    ones, which hang on the latter.
    """
    rows = {row for example in examples for row in example.rows} | set(mismatched.values())
    return sorted(rows, key=lambda row: (row.prompt, row.completion))


def mismatches(training: Sequence[Example], held_out: Sequence[Example] = ()) -> dict[Row, Row]:
    """Each row's prompt with the completion of the next training row of another prompt, for KTO's KL.

    Fixed for a data set, whatever the batches, so that the reference's log-probabilities of them are found once. What
    is held out gives no completion: it would come into the training's loss.

    Raises:
        DataError: there are training rows of one prompt only.
    """
    donors = {row for example in training for row in example.rows}
    if len({row.prompt for row in donors}) == 1:
        raise DataError("all examples have one prompt; KTO's KL needs completions of other prompts: use another loss")
    rows = sorted(
        donors | {row for example in held_out for row in example.rows}, key=lambda row: (row.prompt, row.completion)
    )
    partners: dict[Row, Row] = {}
    following = other = rows[0]
    for row in reversed(rows * 2):  # the second time round, the last rows find the first ones
        other = following if following.prompt != row.prompt else other
        following = row if row in donors else following
        partners[row] = Row(row.prompt, other.completion)
    return partners
