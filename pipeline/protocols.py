"""The three parts a round is made of. Anything with these methods can take part."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.types import Group, Judgment, Policy, Prompt

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, note)`` while a stage works; ``note`` is a short live figure, or empty."""


def silent(done: int, total: int, note: str) -> None:
    """The progress of someone who is not looking."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    prompt: Prompt
    seeds: tuple[int, ...]
    """One a candidate, so that a candidate's draw depends on nothing but its own seed."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How candidates are drawn from the policy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    logprobs: bool = True
    """Record each candidate's cumulative log-probability."""


class Sampler(Protocol):
    """Draws candidates from one policy at a time."""

    def load(self, policy: Policy) -> None:
        """Serve ``policy`` from now on, in place of any other, and prove it with the policy's probe.

        Raises:
            WeightSyncError: the engine's log-probabilities are not the policy's.
        """

    def sample(self, requests: Iterable[SampleRequest], decoding: Decoding) -> Iterator[Group]:
        """Groups as they finish, in any order; candidates within a group in seed order."""

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability (nats) of every token given those before it; a sequence of k ids gives k − 1."""

    def sleep(self) -> float:
        """Give the device's memory back until the next ``load`` or ``sample``; GiB given back (0 on CPU)."""

    def close(self) -> None: ...


class Judge(Protocol):
    """Scores the candidates of a group against each other or one by one."""

    @property
    def name(self) -> str: ...

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        """One judgment a group, in order, each with a score (or None) a candidate.

        A candidate that cannot be judged is an abstention (None), never a low score.

        Raises:
            JudgeError: the judge cannot work at all.
        """

    def close(self) -> None:
        """Give back connections and processes. Nothing is asked after it."""
