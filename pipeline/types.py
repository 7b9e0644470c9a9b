"""The records that stages pass on. Frozen and slotted; a line under each field says what it holds.

A :class:`Prompt` gets n :class:`Candidate` s: a :class:`Group`. A judge gives one :class:`Judgment` a group.
Pairing turns both into :class:`PreferencePair` s, one or several a group, and a trainer turns those into the next
:class:`Policy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One turn of a conversation, as chat templates read it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    """Names the prompt in seeds, shards and lineage. Unique within a prompt set."""
    text: str
    """What people and text judges read: the plain prompt, or the last user turn of a chat."""
    token_ids: tuple[int, ...]
    """The prompt as the policy sees it, rendered once; engines and trainers use these ids and no others."""
    messages: tuple[Message, ...] = ()
    """The conversation behind a chat prompt; empty for a plain one."""
    answer: str | None = None
    """Reference answer for verifiers, where the source has one."""
    source: str = ""
    """Name of the source it came from, where there are several."""


@dataclass(frozen=True, slots=True)
class Candidate:
    index: int
    """Position in its group, 0 … n − 1."""
    token_ids: tuple[int, ...]
    """Exactly the ids the engine produced, the end-of-sequence id included when ``finish_reason`` is stop. Another
    model's text is written in the policy's ids once; where there is no policy, there are none."""
    text: str
    """``token_ids`` decoded without special tokens: for judges and people, never tokenised again."""
    finish_reason: FinishReason
    """``stop`` at an end-of-sequence id, ``length`` at the token limit."""
    seed: int
    """Seed of this candidate's own request."""
    cumulative_logprob: float | None = None
    """Sum of the log-probabilities (nats) under the raw sampling policy; None where not asked for."""
    model: str = ""
    """Who wrote it, where that was not the policy: a proposer's name."""


@dataclass(frozen=True, slots=True)
class Group:
    prompt: Prompt
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Judgment:
    prompt_id: str
    judge: str
    """Name of the judge, as in the config."""
    scores: tuple[float | None, ...]
    """One a candidate, in candidate order; None where the judge abstained. Higher is better."""
    votes: tuple[Mapping[str, Any], ...] = ()
    """The evidence, JSON-serialisable: rules that fired, raw replies, both orders. Never needed by pairing."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    id: str
    """Digest of prompt, both candidates and their upstream keys: names the pair for ever."""
    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    score_chosen: float
    score_rejected: float
    round: int
    candidates_key: str
    """Artifact that holds both candidates (and names the policy and sampler settings)."""
    judgments_key: str
    """Artifact that holds the scores (and names the judge)."""

    @property
    def margin(self) -> float:
        return self.score_chosen - self.score_rejected


@dataclass(frozen=True, slots=True)
class Policy:
    digest: str
    """SHA-256 over the weights: the policy's only identity. Never a path or a time."""
    path: Path
    """Directory with an ordinary ``transformers`` checkpoint, its tokenizer, and ``probe.json``."""


@dataclass(frozen=True, slots=True)
class GateCheck:
    condition: str
    """As in the config, e.g. ``kl <= 10``."""
    value: float | None
    """None where it could not be measured: no sample was judged."""
    passed: bool


@dataclass(frozen=True, slots=True)
class GateDecision:
    decision: Literal["promote", "stop", "rollback", "none"]
    """``none`` where no policy is trained."""
    reason: str
    """One sentence for people."""
    checks: tuple[GateCheck, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundState:
    """What one round made: written to ``runs/<name>/round-NNN.json`` when its gate has decided."""

    round: int
    """0, 1, …; −1 is the initial policy, which has an evaluation only."""
    policy_in: str
    """Digest of the policy that sampled; empty where there is none."""
    policy_out: str
    """Digest of the policy that was trained (promoted or not); ``policy_in`` where there was no pair, or no policy."""
    pairs: int
    """``paired`` of them, or more where a prompt may give several."""
    groups: int
    paired: int
    """Groups that gave a pair."""
    dropped: Mapping[str, int]
    """Groups that gave none, by reason; ``paired + sum(dropped) == groups``."""
    margin: Mapping[str, float]
    """Mean, median and standard deviation of the kept pairs' margins, in the judge's units; empty without pairs."""
    scores: Mapping[str, float | None]
    """Mean and standard deviation of all the round's scores (None where all abstained), and the abstention share."""
    training: Mapping[str, Any]
    """The last step's metrics, those of held-out pairs as ``eval/…``; ``held_out``, the number of these, if any; and
    ``stopped``, where a guard ended it early, why. Empty without pairs to train on."""
    evaluation: Mapping[str, Any]
    """Win rates with intervals, KL, lengths, scores, probes; empty where there is no policy."""
    gate: GateDecision
    seconds: Mapping[str, float]
    """Wall-clock seconds by stage; a reused artifact reports what it cost when it was made."""
    artifacts: Mapping[str, str]
    """Artifact keys by stage: the way to everything upstream."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Device memory the engine gave back while others worked, in GiB; empty on CPU."""
    left_out: int = 0
    """Prompts that are in no group: of several models together, too few candidates came."""
    missing: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Candidates that no group has, by model (the policy's name is empty) and reason; only where several answer."""
