import re
import tomllib
from pathlib import Path

import pytest

from flows import recipes
from flows.recipes import reviews
from judges import make_judge
from pipeline.config import CallableJudge, CallablePrompts, RewardModelJudge, ScratchPolicy
from pipeline.errors import DataError
from pipeline.recipe import check_calls, load_recipe
from pipeline.types import Candidate, Group, Prompt

FOLDER = Path(recipes.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.toml"))


def overrides(name: str) -> list[str]:
    """Something for each variable that a user has to give."""
    variables = tomllib.loads((FOLDER / f"{name}.toml").read_text()).get("vars", {})
    return [f"vars.{key}=somewhere" for key, value in variables.items() if value == ""]


def test_the_recipes_are_where_the_command_looks() -> None:
    assert {"chat-rm", "reviews"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_its_functions_exist(name: str) -> None:
    config = load_recipe(name, FOLDER, overrides(name))
    check_calls(config)
    assert config.title
    assert config.description


@pytest.mark.parametrize("name", NAMES)
def test_no_recipe_lets_the_labelling_judge_evaluate_unless_it_is_made_of_rules(name: str) -> None:
    config = load_recipe(name, FOLDER, overrides(name))
    if config.judge.type != "rules":
        assert config.evaluation.judge is not None
        assert config.evaluation.judge != config.judge


def test_chat_rm_becomes_a_local_run_by_overrides_alone(tmp_path: Path) -> None:
    config = load_recipe(
        "chat-rm",
        FOLDER,
        [
            f"policy.path={tmp_path}", "prompts.source.type=file", f"prompts.source.path={tmp_path}/prompts.jsonl",
            f"judge.path={tmp_path}/rm", f"evaluation.judge.path={tmp_path}/other", "prompts.per_round=8",
        ],
    )  # fmt: skip
    assert isinstance(config.judge, RewardModelJudge)
    assert config.judge.path == f"{tmp_path}/rm"
    assert config.prompts.template == "chat"


# ---------------------------------------------------------------------------------------------- reviews
@pytest.fixture(scope="module")
def corpora(shared_data: Path) -> str:
    folder = shared_data / "corpora"
    if not (folder / reviews.POSITIVE).is_file():
        pytest.skip(f"no review sentences: {folder} holds no {reviews.POSITIVE}")
    return str(folder)


def test_held_out_sentences_are_not_in_the_corpus_and_open_the_prompts(corpora: str) -> None:
    corpus = reviews.corpus(corpora)
    rows = reviews.prompts(corpora)
    assert len(corpus) == 10_662 - 512
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 512
    assert all(len(row["prompt"].split()) == 4 for row in rows)
    assert sum(row["split"] == "held_out" for row in rows) == 128
    held_out = [sentence for sentence, _ in reviews._sentences(corpora)[0]]
    assert not set(held_out) & set(corpus)
    assert [row["prompt"] for row in rows] == [" ".join(sentence.split()[:4]) for sentence in held_out]


@pytest.mark.parametrize("half", [0, 1])
def test_the_judge_tells_unseen_positive_sentences_from_negative_ones(corpora: str, half: int) -> None:
    sentences = reviews._sentences(corpora)[0]
    scores = reviews.score("", [sentence for sentence, _ in sentences], corpora, half)
    right = [(score > 0) == positive for score, (_, positive) in zip(scores, sentences, strict=True)]
    assert len(right) == 512
    assert sum(right) / len(right) > 0.7


def test_the_two_judges_learnt_from_different_sentences(corpora: str) -> None:
    first, second = (reviews.log_odds(corpora, half) for half in (0, 1))
    assert first.keys() != second.keys()
    assert first["wonderful"] > 0 > first["dull"]
    assert second["wonderful"] > 0 > second["dull"]
    assert first["wonderful"] != second["wonderful"]


def test_length_is_not_the_reward(corpora: str) -> None:
    once, thrice, short, nothing = reviews.score(
        "", ["a warm film " * 4, "a warm film " * 12, "warm", " . "], corpora, 0
    )
    assert once == pytest.approx(thrice)
    assert 0 < short < reviews.log_odds(corpora, 0)["warm"] / 2  # one happy word is no perfect review
    assert nothing == 0.0


def test_the_recipe_s_judge_scores_candidates(corpora: str) -> None:
    config = load_recipe("reviews", FOLDER, [f"vars.corpus={corpora}"])
    assert isinstance(config.judge, CallableJudge)
    assert isinstance(config.policy, ScratchPolicy)
    assert isinstance(config.prompts.source, CallablePrompts)
    texts = [" is a moving and wonderful film .", " is a dull , badly written mess ."]
    candidates = tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(texts))
    (judgment,) = make_judge(config.judge, "words").judge([Group(Prompt("p", "this one", (1,)), candidates)])
    good, bad = judgment.scores
    assert good is not None
    assert bad is not None
    assert good > 0 > bad


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_either_encoding_of_the_sentences_reads_the_same(tmp_path: Path, encoding: str) -> None:
    (tmp_path / reviews.POSITIVE).write_text("un cliché très doux\n", encoding=encoding)
    (tmp_path / reviews.NEGATIVE).write_text("a naïve mess\n", encoding=encoding)
    assert sorted(reviews.corpus(str(tmp_path))) == ["a naïve mess", "un cliché très doux"]
    assert reviews.words("Un cliché : isn't it ?") == ["un", "cliché", "isn't", "it"]


def test_a_folder_without_the_sentences_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{str(tmp_path)!r} holds no rt-polarity.pos")):
        reviews.corpus(str(tmp_path))
