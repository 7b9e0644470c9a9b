"""A stage as a Prefect task: retried where an engine, a model or a judge failed, and never cached by Prefect."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_engine import TaskRunTimeoutError

from flows import environment
from flows.session import Workshop
from pipeline.deadline import overdue, within
from pipeline.errors import JudgeError, SamplingError, UnfitJudgeError

S = TypeVar("S", bound=Workshop)
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


def stage(session: S, name: str, work: Callable[[S, Unpack[Ts]], R], *args: *Ts) -> R:
    """Run one stage of the session's run as a task of the flow that is running.

    Prefect can interrupt what runs in the main thread, whatever that is; in others, waiting for answers ends by itself.

    Raises:
        OverdueError: it takes longer than ``limits.stage_timeout``.
    """
    limits = session.config.limits

    def in_charge(session: S, *args: *Ts) -> R:
        with environment.in_charge(), within(limits.stage_timeout, name):
            return work(session, *args)

    here = threading.current_thread() is threading.main_thread()
    as_task = task(
        name=name, cache_policy=NO_CACHE, persist_result=False, retries=limits.retries,
        retry_delay_seconds=limits.retry_delay, timeout_seconds=limits.stage_timeout if here else None,
        retry_condition_fn=_worth_a_retry,
    )  # fmt: skip
    try:
        return as_task(in_charge)(session, *args)
    except TaskRunTimeoutError:
        raise overdue(name, limits.stage_timeout) from None


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
