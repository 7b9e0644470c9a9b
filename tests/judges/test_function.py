from pathlib import Path

import pytest

from judges import make_judge
from pipeline.config import Call, CallableJudge
from pipeline.errors import ConfigError, JudgeError
from pipeline.types import Candidate, Group, Judgment, Prompt

GROUP = Group(
    Prompt("p1", "two words", (1,)),
    tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(["a", "bb", "ccc"])),
)


def judge_with(directory: Path, body: str, **args: object) -> list[Judgment]:
    file = directory / "mine.py"
    file.write_text(f"def score(prompt, completions, **args):\n    {body}\n")
    config = CallableJudge(type="callable", call=Call(function=f"{file}:score", args=args))
    return make_judge(config, "mine").judge([GROUP, GROUP])


def test_the_function_gets_prompt_completions_and_args_and_none_abstains(tmp_path: Path) -> None:
    body = "return [len(c) * args['times'] + len(prompt.split()) if c != 'bb' else None for c in completions]"
    judgments = judge_with(tmp_path, body, times=10)
    assert [judgment.scores for judgment in judgments] == [(12.0, None, 32.0)] * 2
    assert {(judgment.prompt_id, judgment.judge) for judgment in judgments} == {("p1", "mine")}


def test_numpy_scores_become_plain_floats(tmp_path: Path) -> None:
    (judgment, _) = judge_with(tmp_path, "import numpy; return numpy.array([1, 2, 3], numpy.float32)")
    assert judgment.scores == (1.0, 2.0, 3.0)
    assert all(type(score) is float for score in judgment.scores)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("return [1.0, 2.0]", r"2 scores for 3 completions"),
        ("return [1.0, float('nan'), 2.0]", r"score nan"),
        ("return [1.0, float('inf'), 2.0]", r"score inf"),
        ("return [1.0, '7', 2.0]", r"score '7'"),
        ("return 'abc'", r"returned 'abc'"),
        ("return None", r"returned None"),
        ("raise KeyError('gone')", r"raised KeyError\('gone'\) on prompt 'p1'"),
    ],
)
def test_anything_but_a_finite_number_or_none_a_completion_is_an_error_that_quotes_it(
    tmp_path: Path, body: str, complaint: str
) -> None:
    with pytest.raises(JudgeError, match=complaint) as caught:
        judge_with(tmp_path, body)
    assert f"{tmp_path / 'mine.py'}:score" in str(caught.value)


def test_a_function_that_is_not_there_is_refused_when_the_judge_is_made() -> None:
    with pytest.raises(ConfigError, match="no_such_module_of_mine"):
        make_judge(CallableJudge(type="callable", call=Call(function="no_such_module_of_mine:score")), "mine")


ASKED = Group(Prompt("p2", "How many?", (1,), ({"role": "user", "content": "How many?"},), "18"), GROUP.candidates)


def scores_with(directory: Path, signature: str, returned: str, of: Group, **args: object) -> tuple[float | None, ...]:
    file = directory / f"mine{len(list(directory.iterdir()))}.py"  # a file is imported once
    file.write_text(f"def score({signature}):\n    return {returned}\n")
    config = CallableJudge(type="callable", call=Call(function=f"{file}:score", args=args))
    return make_judge(config, "mine").judge([of])[0].scores


@pytest.mark.parametrize(
    "signature", ["prompt, completions, answer", "prompt, completions, *, answer=None, messages=()"]
)
def test_a_function_that_names_the_answer_gets_it(tmp_path: Path, signature: str) -> None:
    returned = "[None if answer is None else int(answer) for _ in completions]"
    assert scores_with(tmp_path, signature, returned, ASKED) == (18.0,) * 3
    assert scores_with(tmp_path, signature, returned, GROUP) == (None,) * 3


def test_a_function_that_names_the_messages_gets_its_own_copy_of_the_conversation(tmp_path: Path) -> None:
    returned = "[len(messages.pop()['content']) if messages else -1 for _ in completions]"
    assert scores_with(tmp_path, "p, c, messages", returned.replace("completions", "c"), ASKED) == (9.0, -1.0, -1.0)
    assert ASKED.prompt.messages == ({"role": "user", "content": "How many?"},)
    assert scores_with(tmp_path, "p, c, messages", "[len(messages)] * 3", GROUP) == (0.0,) * 3


def test_args_of_the_recipe_come_before_what_the_prompt_has(tmp_path: Path) -> None:
    assert scores_with(tmp_path, "p, c, answer", "[answer] * 3", ASKED, answer=5) == (5.0,) * 3


def test_a_function_with_any_keywords_is_given_none_it_does_not_name(tmp_path: Path) -> None:
    assert scores_with(tmp_path, "p, c, **args", "[len(args)] * 3", ASKED) == (0.0,) * 3


def test_truth_is_a_score(tmp_path: Path) -> None:
    assert scores_with(tmp_path, "p, c", "[True, False, None]", ASKED) == (1.0, 0.0, None)


@pytest.mark.parametrize(
    ("signature", "args", "complaint"),
    [
        ("prompt", {}, r"cannot be called with \(prompt, completions\) and its args: too many positional arguments"),
        ("prompt, completions, style", {}, "missing a required argument: 'style'"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused_when_the_judge_is_made(
    tmp_path: Path, signature: str, args: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        scores_with(tmp_path, signature, "[]", ASKED, **args)


def test_an_arg_the_function_does_not_take_is_refused_when_the_judge_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine0.py:score.*stlye"):
        scores_with(tmp_path, "p, c, style=1", "[]", ASKED, stlye=2)
