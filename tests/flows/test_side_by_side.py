"""Work done side by side: order, errors, threads, and what the terminal shows meanwhile."""

import logging
import threading
from collections.abc import Callable

import pytest

from flows.console import Console
from flows.side_by_side import side_by_side

QUIET = Console(quiet=True)


def meeting(count: int) -> Callable[[], str]:
    """Work that ends only where ``count`` are at it at once; the name of its thread."""
    barrier = threading.Barrier(count, timeout=20)

    def meet() -> str:
        barrier.wait()
        return threading.current_thread().name

    return meet


def test_all_are_under_way_at_once_and_results_are_in_the_order_given() -> None:
    meet = meeting(3)
    made = side_by_side({"c": meet, "a": meet, "b": meet}, QUIET)
    assert list(made) == ["c", "a", "b"]
    assert len(set(made.values())) == 3


def test_what_shares_this_machine_is_done_in_turn_and_here_while_others_wait() -> None:
    started, order = threading.Event(), list[str]()

    def own(name: str) -> Callable[[], str]:
        def do() -> str:
            assert threading.current_thread() is threading.main_thread()
            order.append(name)
            started.set()
            return name

        return do

    def other() -> str:
        assert started.wait(20)
        return "other"

    made = side_by_side(
        {"first": own("first"), "other": other, "second": own("second")}, QUIET, here=["first", "second"]
    )
    assert list(made.items()) == [("first", "first"), ("other", "other"), ("second", "second")]
    assert order == ["first", "second"]


def test_the_first_error_in_order_is_raised_once_all_have_ended(capsys: pytest.CaptureFixture[str]) -> None:
    late, ended = threading.Event(), list[str]()

    def fail(message: str, wait: bool = False) -> str:
        assert not wait or late.wait(20)
        late.set()
        raise ValueError(message)

    def work() -> str:
        assert late.wait(20)
        ended.append("work")
        return "made"

    given = {"slow": lambda: fail("too slow", wait=True), "good": work, "quick": lambda: fail("[too] quick")}
    with pytest.raises(ValueError, match="too slow") as raised:
        side_by_side(given, Console())
    assert raised.value.__notes__ == ["and [too] quick"]
    assert ended == ["work"]
    said = capsys.readouterr().err
    assert said.index("quick: [too] quick; the others go on") < said.index("slow: too slow")  # told as it happened


def test_stages_of_several_threads_each_leave_a_line_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    console, meet = Console(), meeting(2)

    def ask(name: str) -> str:
        with console.stage(name, 3) as progress:
            meet()
            with console.stage("within") as inner:
                inner(1, 3, "halfway")
            progress(3, 3, f"noted by {name}")
        return name

    side_by_side({name: lambda name=name: ask(name) for name in ("one", "two")}, console)  # type: ignore[misc]
    said = sorted(" ".join(line.split()[1:2] + line.split()[-4:]) for line in capsys.readouterr().err.splitlines())
    assert said == ["one 3 noted by one", "two 3 noted by two"]


def test_bars_of_several_threads_share_the_terminals_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    console, meet, shown = Console(), meeting(2), set[int]()
    assert console.terminal.is_terminal

    def ask(name: str) -> None:
        with console.stage(name, 3):
            meet()
            assert console._bars is not None
            shown.add(id(console._bars))
            assert {task.description for task in console._bars.tasks} == {"one", "two"}
            meet()

    side_by_side({name: lambda name=name: ask(name) for name in ("one", "two")}, console)  # type: ignore[misc]
    assert len(shown) == 1 and console._bars is None
    with console.stage("after"):  # a display can be begun again
        assert console._bars is not None


@pytest.mark.parametrize("quiet", [False, True])
def test_warnings_reach_the_terminal_though_prefect_keeps_them_from_it(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    import prefect  # noqa: F401 (takes the root logger)

    log = logging.getLogger("ratchet.sampling")
    with Console(quiet).warnings():
        log.warning("%s is left out: it serves %s", "http://b", "[other]")
    log.warning("nobody listens")
    assert capsys.readouterr().err == "  ! http://b is left out: it serves [other]\n"
