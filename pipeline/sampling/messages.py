"""What a proxy and its engine say to each other over their socket. Light: the parent imports no engine."""

from dataclasses import dataclass
from typing import Any

from pipeline.protocols import Decoding, SampleRequest
from pipeline.types import Group, Policy


# From the parent.
@dataclass(frozen=True, slots=True)
class Load:
    policy: Policy


@dataclass(frozen=True, slots=True)
class Sample:
    decoding: Decoding


@dataclass(frozen=True, slots=True)
class Requests:
    """The answer to Want; no items: there are no more."""

    items: list[SampleRequest]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop sampling; End follows, after whatever had been sent already."""


@dataclass(frozen=True, slots=True)
class Score:
    sequences: list[list[int]]


@dataclass(frozen=True, slots=True)
class Sleep:
    pass


Command = Load | Sample | Requests | Cancel | Score | Sleep


# From the engine.
@dataclass(frozen=True, slots=True)
class Done:
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    error: Exception


@dataclass(frozen=True, slots=True)
class Stale:
    """Only a new engine could do this."""


@dataclass(frozen=True, slots=True)
class Want:
    """More requests, please."""


@dataclass(frozen=True, slots=True)
class Sampled:
    group: Group


@dataclass(frozen=True, slots=True)
class End:
    """No more groups; every reply after it belongs to the next command."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Still at work."""


Reply = Done | Failed | Stale | Want | Sampled | End | Alive
