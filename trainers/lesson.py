"""What goes into a training, and what it came to."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from pipeline.types import Policy
from trainers.examples import Example, Row
from trainers.step import KnownReference


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one training learns from, and how fast."""

    examples: Sequence[Example]
    reference: KnownReference
    learning_rate: float
    seed: int
    starts_at_reference: bool
    """The reference is the policy itself as given; checked on the first batch."""
    mismatched: Mapping[Row, Row] = field(default_factory=dict)
    """Each row's prompt with another's completion, where the objective needs "mismatched"."""
    initial_logps: Mapping[Row, float] = field(default_factory=dict)
    """log π₀ of the rows, nats, for a KL to the very first policy; may be empty."""
    live: Policy | None = None
    """The reference, to hold in memory beside the policy where the objective needs "reference_kl"."""
    held_out: Sequence[Example] = ()
    """Examples of other prompts, never trained on; their rows are in ``reference`` (and ``mismatched``) too."""
    sample_prompts: Sequence[tuple[int, ...]] = ()
    """Prompts, as token ids, whose likeliest completions are written down beside each evaluation."""
    truncated: Set[Row] | None = None
    """Rows whose completion was cut at a length limit, for a figure; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training came to."""

    metrics: dict[str, float]
    """The last step's figures."""
    stopped: str | None
    """What the guard said that ended it; None where it took all its steps."""
