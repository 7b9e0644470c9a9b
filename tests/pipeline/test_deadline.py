"""How long a stage may take: whoever waits for it knows, and nobody else."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import pytest

from pipeline.deadline import wait, within
from pipeline.errors import OverdueError


def test_waiting_ends_with_the_stages_time_in_threads_that_have_its_context_too() -> None:
    never = Future[int]()
    with ThreadPoolExecutor(1) as pool:
        with within(0.01, "judge"), pytest.raises(OverdueError, match=r"'judge' .* limits\.stage_timeout = 0\.01 "):
            wait(never)
        with within(0.01, "judge"):
            elsewhere = pool.submit(copy_context().run, wait, never)
        with pytest.raises(OverdueError):
            elsewhere.result()


def test_an_inner_stage_has_its_own_time_and_outside_there_is_none() -> None:
    done, never = Future[int](), Future[int]()
    done.set_result(7)
    with within(0.0, "outer"):
        assert wait(done) == 7  # what is there costs no time
        with within(0.01, "inner"), pytest.raises(OverdueError, match="'inner'"):
            wait(never)
        with pytest.raises(OverdueError, match="'outer'"):
            wait(never)
    assert wait(done) == 7


def test_a_timeout_of_the_work_itself_is_another_error() -> None:
    failed = Future[int]()
    failed.set_exception(TimeoutError("the server's"))
    with within(600.0, "judge"), pytest.raises(TimeoutError, match="the server's"):
        wait(failed)
