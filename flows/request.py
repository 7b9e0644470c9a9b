"""What ``ratchet train`` was asked for, checked as far as it can be without reading anything large."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.sources import Source, find_policy, find_source
from pipeline.config import PretrainedPolicy, TrainerConfig
from pipeline.errors import ConfigError
from pipeline.runs import NAME, RESULT
from pipeline.types import Policy


@dataclass(frozen=True, slots=True)
class Limits:
    """What is read of a data set, and how long its rows may be, in tokens."""

    split: str | None = None
    rows: int | None = None
    """Of each data set."""
    length: int | None = None
    """Of prompt and completion; None is what the policy takes."""
    prompt: int | None = None
    completion: int | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is never trained on: a number of prompts, or a share of them, or data sets of their own."""

    prompts: int | float = 0
    sources: tuple[Source, ...] = ()
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the command."""

    sources: tuple[Source, ...]
    policy: Policy | PretrainedPolicy
    trainer: TrainerConfig
    workspace: Path
    reference: Policy | PretrainedPolicy | None = None
    """In place of the policy itself."""
    held_out: HeldOut = field(default_factory=HeldOut)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    name: str | None = None
    out: Path | None = None


def ask(
    pairs: Sequence[str], policy: str, trainer: TrainerConfig, workspace: Path, *,
    reference_policy: str | None = None, held_out: str | None = None, held_out_split: str | None = None,
    limits: Limits | None = None, seed: int = 0, name: str | None = None, out: Path | None = None,
) -> Request:  # fmt: skip
    """The request of a command line.

    Raises:
        ConfigError: something leads nowhere, or does not go with something else.
    """
    if trainer.reference == "ema":
        raise ConfigError(
            'reference: "ema" is an average over rounds, and there are none here; allowed: "previous", "initial",'
            ' "lora_base", "none"'
        )
    if reference_policy is not None and trainer.reference not in ("previous", "initial"):
        raise ConfigError(
            f'--reference-policy {reference_policy!r}: reference is "{trainer.reference}"; allowed with it:'
            ' "previous", "initial"'
        )
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: allowed are letters and digits of ASCII, and after them '-', '_' and '.'")
    check_out(out)
    return Request(
        tuple(find_source(given, workspace) for given in pairs),
        find_policy(policy, workspace),
        trainer,
        workspace,
        None if reference_policy is None else find_policy(reference_policy, workspace, "--reference-policy"),
        held_out_of(held_out, held_out_split, workspace),
        limits or Limits(),
        seed,
        name,
        out,
    )


def check_out(out: Path | None) -> None:
    """Raises ConfigError where ``--out`` is a folder of somebody else's."""
    if out is not None and out.exists() and not (out / RESULT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {str(out)!r} is there already and not empty; allowed: a new or an empty folder")


def held_out_of(given: str | None, split: str | None, workspace: Path) -> HeldOut:
    """What ``--held-out`` says. Raises ConfigError where it is neither a number nor a data set, and only that has a
    split."""
    try:
        number = 0.0 if given is None else float(given)
    except ValueError:
        return HeldOut(sources=(find_source(str(given), workspace, "--held-out"),), split=split)
    if split is not None:
        raise ConfigError(
            f"--held-out-split {split!r}: --held-out is {'not given' if given is None else given}; allowed with it:"
            " a folder or a Hub data set"
        )
    if number >= 1 and number == int(number):
        return HeldOut(int(number))
    if 0 <= number < 1:
        return HeldOut(number)
    raise ConfigError(
        f"--held-out {given!r}: allowed: a share of the prompts below 1, a number of prompts, or a data set"
    )
