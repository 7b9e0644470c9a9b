"""Which candidates become a preference pair."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, Strict

MarginUnit = Literal["score", "sigma"]


class ReplayConfig(Strict):
    """Pairs of earlier rounds, trained on again beside the round's own: against forgetting."""

    share: float = Field(0.0, ge=0.0, lt=1.0)
    """Of the pairs trained on. Drawn from all earlier rounds alike; fewer where there are not so many."""
    offline: str | None = None
    """Further pairs to draw from: another run (``RUN`` or ``RUN:ROUND``) of the same tokenizer."""

    @model_validator(mode="after")
    def _something_is_drawn(self) -> Self:
        if self.offline is not None and not self.share:
            raise ValueError(f"offline: {self.offline!r} has no effect with share 0; allowed: a share above 0")
        return self


class PairingConfig(Strict):
    """Scores in, pairs out. Lengths are in tokens where the policy's own engine sampled, else in words."""

    rule: Literal["best_worst", "best_mu_minus_2sigma", "best_random", "all_pairs", "threshold"] = "best_worst"
    """Which candidates are compared. ``best_worst``: all, widest margin first, so the best with the worst. The best
    with the one nearest to two standard deviations below the mean of its group, for large n (arXiv 2502.16825), or
    with a random lower one. ``all_pairs``: any two with different scores, in random order. ``threshold``: one at or
    above ``threshold`` with one below it, as verifiers give them, in random order."""
    threshold: float = 0.5
    """For the rule of that name."""
    pairs_per_prompt: int = Field(1, ge=1)
    """At most so many of each prompt: the first of its rule's comparisons that pass every filter. Whether a prompt
    gives a pair at all does not depend on it."""

    margin: float = Field(0.0, ge=0.0)
    """Pairs whose score difference is smaller are dropped. Two that the judge scored alike are never paired."""
    margin_unit: MarginUnit = "score"
    """``sigma`` measures the margin in standard deviations of all the round's scores."""
    keep: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the round's prompts to keep, of those with a pair after every other filter: where the first pair's
    margin is widest. Further pairs must be as wide as the last one kept."""
    min_score_chosen: float | None = None
    """Floor on the chosen candidate's score."""
    drop_truncated: bool = False
    """Never choose a candidate that stopped at the token limit."""
    max_similarity: Fraction | None = None
    """Drop pairs whose texts are more alike than this: 1 − (insertions + deletions that make one the other) / (both
    lengths together), in characters. Identical ones are always dropped."""
    drop_same_words: bool = False
    """Drop pairs whose texts are the same words in the same order, and so differ in white space alone."""
    max_length_ratio: float | None = Field(None, ge=1.0)
    """Drop pairs where one completion is more than so many times as long as the other."""

    length_penalty: float = Field(0.0, ge=0.0)
    """Taken off a score for every 100 tokens of the completion, after ``length_regression``."""
    length_regression: bool = False
    """Take the part of the score that length explains out: a line fitted on all the round's scores. The scores of
    pairs, and so margins and floors, are those after length control; the judge's stay in the judgments."""

    replay: ReplayConfig = ReplayConfig()

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> Self:
        default = type(self).model_fields["threshold"].default  # as a run's own record of its settings has it
        if self.rule != "threshold" and self.threshold != default:
            raise ValueError(f"threshold: {self.threshold} has no effect with rule {self.rule!r}; allowed: 'threshold'")
        return self
