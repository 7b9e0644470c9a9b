"""A stage as a Prefect task: retried where an engine, a model or a judge failed, and never cached by Prefect."""

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows import environment
from flows.session import Workshop
from pipeline.errors import JudgeError, SamplingError, UnfitJudgeError

S = TypeVar("S", bound=Workshop)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def stage(session: S, name: str, work: Callable[[S, Unpack[Ts]], R], *args: *Ts) -> R:
    """Run one stage of the session's run as a task of the flow that is running."""
    limits = session.config.limits

    def in_charge(session: S, *args: *Ts) -> R:
        with environment.in_charge():
            return work(session, *args)

    as_task = task(
        name=name, cache_policy=NO_CACHE, persist_result=False, retries=limits.retries,
        retry_delay_seconds=limits.retry_delay, timeout_seconds=limits.stage_timeout, retry_condition_fn=_worth_a_retry,
    )  # fmt: skip
    return as_task(in_charge)(session, *args)


def _worth_a_retry(task: Any, run: Any, state: Any) -> bool:
    """A dead engine or a judge that does not answer may work next time; a wrong config or a NaN will not."""
    try:
        state.result()
    except UnfitJudgeError:
        return False
    except (SamplingError, JudgeError):
        return True
    except Exception:
        return False
    return False
