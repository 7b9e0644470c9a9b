"""A frozen policy that gives log-probabilities: the reference of a loss, and both sides of a KL estimate."""

from collections.abc import Sequence

from pipeline.types import Policy, PreferencePair
from trainers.checkpoints import load_model, load_tokenizer
from trainers.encoding import encode_pairs, special_ids
from trainers.examples import Row
from trainers.logprobs import sequence_logprobs


class Reference:
    """One policy, loaded once. ``dtype`` and ``token_budget`` are those of :class:`pipeline.config.TrainerConfig`."""

    def __init__(self, policy: Policy, dtype: str, token_budget: int) -> None:
        self.model = load_model(policy.path)
        self.specials = special_ids(load_tokenizer(policy.path), self.model)
        self.dtype, self.token_budget = dtype, token_budget

    def logps(self, rows: Sequence[Row]) -> list[float]:
        """log π(completion | prompt) of each row, in nats, summed over the completion's tokens."""
        return sequence_logprobs(self.model, rows, self.token_budget, self.dtype)

    def pair_logps(self, pairs: Sequence[PreferencePair]) -> list[tuple[float, float]]:
        """log π_ref of each pair's chosen and rejected completion. Raises DataError for ids no policy can have seen."""
        rows = [row for pair in encode_pairs(pairs, self.specials) for row in pair.rows]
        logps = self.logps(rows)
        return list(zip(logps[0::2], logps[1::2], strict=True))
