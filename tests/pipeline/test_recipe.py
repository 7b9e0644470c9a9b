"""A recipe is read once, with overrides, and a wrong one is refused with one line a reader can act on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.options import RECIPES
from pipeline.config import NllLoss, PretrainedPolicy, RegexRule, RulesJudge, ScratchPolicy, ServedModel
from pipeline.errors import ConfigError
from pipeline.recipe import check_calls, check_endpoints, load_recipe
from pipeline.validation import validate

FOOD = """
title = "food for ${who}"
rounds = 2

[vars]
who = "ravin"
corpus = ""
n = 6

[policy]
type = "scratch"
hidden_size = 64
corpus = { function = "pipeline.functions:source_file", args = { who = "${who}" } }

[prompts]
held_out = 1
source = { type = "file", path = "prompts.jsonl" }

[sampling]
n = "${n}"

[judge]
type = "rules"
[judge.rules]
likes_pizza = { type = "regex", pattern = "pizza", when = "^${who}" }
"""


MIXTURE = "{type='mixture', members={code={source={type='file', path='a'}}, maths={source={type='file', path='b'}}}}"


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    (tmp_path / "food.toml").write_text(FOOD)
    (tmp_path / "chat-rm.toml").write_text(FOOD)
    return tmp_path


def refused(recipes: Path, *overrides: str, recipe: str = "food") -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, recipes, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for noise in ("Value error", "pydantic", "https://", "Input should"):
        assert noise not in message
    return message


def test_recipe_is_found_by_name_and_by_path(recipes: Path) -> None:
    by_name = load_recipe("food", recipes)
    assert by_name.rounds == 2
    assert by_name == load_recipe(str(recipes / "food.toml"), Path("nowhere"))


def test_unknown_recipe_lists_the_known_ones_and_the_other_way(recipes: Path) -> None:
    message = refused(recipes, recipe="fod")
    for part in ("'fod'", "did you mean 'food'", "chat-rm, food", "path to a .toml"):
        assert part in message


def test_missing_recipe_file_is_named(recipes: Path) -> None:
    assert "'gone/x.toml' does not exist" in refused(recipes, recipe="gone/x.toml")


def test_toml_syntax_error_gives_file_and_line(recipes: Path) -> None:
    (recipes / "broken.toml").write_text("rounds = 2\n\nseed 3\n")
    message = refused(recipes, recipe="broken")
    assert "broken.toml" in message
    assert "line 3" in message


def test_text_in_another_encoding_is_refused_by_name(recipes: Path) -> None:
    (recipes / "latin.toml").write_bytes('title = "café"'.encode("latin-1"))
    assert "latin.toml is not TOML" in refused(recipes, recipe="latin")


# ---------------------------------------------------------------------------------------------- overrides
def test_override_values_are_toml_and_anything_else_is_a_string(recipes: Path) -> None:
    config = load_recipe(
        "food",
        recipes,
        [
            "trainer.beta=0.5",
            "sampling.logprobs=false",
            "title=1 = 2",
            'description="quoted"',
            'trainer.loss=[{type = "sigmoid"}, {type = "nll", weight = 0.2}]',
            "prompts.source.path=data/2024.jsonl",
            "prompts.system=2024-01-01",
            'judge.rules."ends well"={type = "regex", pattern = "[.]$"}',
        ],
    )
    assert config.trainer.beta == 0.5
    assert config.sampling.logprobs is False
    assert config.title == "1 = 2"
    assert config.description == "quoted"
    assert config.trainer.loss[1] == NllLoss(type="nll", weight=0.2)
    assert config.prompts.source.path == "data/2024.jsonl"  # type: ignore[union-attr]
    assert config.prompts.system == "2024-01-01"
    assert isinstance(config.judge, RulesJudge)
    assert list(config.judge.rules) == ["likes_pizza", "ends well"]


def test_later_override_of_a_key_wins(recipes: Path) -> None:
    assert load_recipe("food", recipes, ["seed=1", "seed=2"]).seed == 2


def test_a_new_type_starts_its_table_afresh(recipes: Path) -> None:
    config = load_recipe("food", recipes, ["policy.type=pretrained", "policy.path=x"])
    assert config.policy == PretrainedPolicy(type="pretrained", path="x")


def test_the_same_type_keeps_its_table(recipes: Path) -> None:
    config = load_recipe("food", recipes, ["policy.type=scratch"])
    assert isinstance(config.policy, ScratchPolicy)
    assert config.policy.hidden_size == 64


def test_a_key_named_type_among_a_users_arguments_resets_nothing(recipes: Path) -> None:
    args = "policy.corpus.args"
    config = load_recipe("food", recipes, [f"{args}.type=a", f"{args}.type=b"])
    assert config.policy.corpus.args == {"who": "ravin", "type": "b"}  # type: ignore[union-attr]


def test_override_that_a_later_type_would_lose_is_refused(recipes: Path) -> None:
    message = refused(recipes, "policy.path=x", "policy.type=pretrained")
    assert "give it before 'policy.path=x'" in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trainer.beta", ["'trainer.beta'", "key=value"]),
        ("=3", ["'=3'", "dotted key"]),
        ("trainer..beta=3", ["'trainer..beta'", "dotted key"]),
        ("rounds.first=3", ["rounds is 2, not a table", "--set rounds=…"]),
        ("judge.rules.likes_pizza.pattern.x=3", ['judge.rules.likes_pizza.pattern is "pizza", not a table']),
        ("vars.corpsu=x", ["vars.corpsu", "did you mean 'corpus'", "corpus, n, who"]),
        ("vars=3", ["vars: 3", "a table"]),
    ],
)
def test_bad_override_is_refused_and_quoted(recipes: Path, override: str, parts: list[str]) -> None:
    message = refused(recipes, override)
    for part in parts:
        assert part in message


def test_line_break_in_an_override_brings_no_second_key(recipes: Path) -> None:
    assert load_recipe("food", recipes, ["title=1\nseed = 5"]).title == "1\nseed = 5"


# ---------------------------------------------------------------------------------------------- variables
def test_variables_are_replaced_and_a_whole_value_keeps_its_type(recipes: Path) -> None:
    config = load_recipe("food", recipes, ["vars.who=ana", "vars.n=7"])
    assert config.sampling.n == 7
    assert config.title == "food for ana"
    assert config.policy.corpus.args == {"who": "ana"}  # type: ignore[union-attr]
    rule = config.judge.rules["likes_pizza"]  # type: ignore[union-attr]
    assert isinstance(rule, RegexRule)
    assert rule.when == "^ana"


def test_unused_empty_variable_is_no_error(recipes: Path) -> None:
    assert load_recipe("food", recipes).title == "food for ravin"


def test_used_empty_variable_says_how_to_give_it(recipes: Path) -> None:
    message = refused(recipes, "prompts.source.path='${corpus}/prompts.jsonl'")
    for part in ("prompts.source.path", "'corpus' is empty", "--set vars.corpus="):
        assert part in message
    config = load_recipe("food", recipes, ["prompts.source.path=${corpus}/p.jsonl", "vars.corpus=data"])
    assert config.prompts.source.path == "data/p.jsonl"  # type: ignore[union-attr]


def test_unknown_variable_lists_the_known_ones(recipes: Path) -> None:
    message = refused(recipes, "title=${whom}")
    for part in ("title", "'whom'", "did you mean 'who'", "corpus, n, who"):
        assert part in message


# ---------------------------------------------------------------------------------------------- validation
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["trainer.bta=0.5"], ["trainer.bta", "0.5", "did you mean 'beta'", "learning_rate"]),
        (["rouns=4"], ["food: rouns:", "4", "did you mean 'rounds'", "prompts"]),
        (["policy.hiden_size=4"], ["policy.hiden_size:", "4", "did you mean 'hidden_size'", "vocab_size"]),
        (["trainer.beta=0"], ["trainer.beta: 0", "a number > 0"]),
        (["trainer.beta=nan"], ["trainer.beta: NaN", "a number > 0"]),
        (["trainer.beta=inf"], ["trainer.beta: Infinity", "a number > 0"]),
        (["trainer.beta='0.5'"], ['trainer.beta: "0.5"', "a number > 0"]),
        (["sampling.top_p=1.5"], ["sampling.top_p: 1.5", "> 0 and ≤ 1"]),
        (["sampling.n=1"], ["sampling.n: 1", "a whole number ≥ 2 and ≤ 1024"]),
        (["rounds=true"], ["rounds: true", "a whole number ≥ 1"]),
        (["rounds=2.5"], ["rounds: 2.5", "a whole number ≥ 1"]),
        (["rounds=many"], ['rounds: "many"', "a whole number ≥ 1"]),
        (["sampling.logprobs=1"], ["sampling.logprobs: 1", "true or false"]),
        (["title=3"], ["title: 3", "a string, in quotes"]),
        (["sampling.max_model_len=1"], ["sampling.max_model_len: 1", "a whole number ≥ 16"]),
        (["trainer=3"], ["trainer: 3", "a table with the keys", "learning_rate"]),
        (["sampling.engine=sglang"], ["sampling.engine:", '"sglang"', '"auto", "vllm", "transformers"']),
        (["pairing.rule=all"], ["pairing.rule:", '"all"', '"best_worst"']),
        (["policy.type=scrach"], ["policy.type:", '"scrach"', '"pretrained", "scratch"']),
        (["policy=3"], ["policy: 3", 'a table whose type is one of "pretrained", "scratch"']),
        (["policy={path = 'x'}"], ["policy.type: is missing", '"x"', '"pretrained", "scratch"']),
        (["policy.type=pretrained"], ["policy.path: is missing", "a string"]),
        (["evaluation.judge.type=rules"], ["evaluation.judge.rules: is missing", "a table"]),
        (["judge.rules={}"], ["judge.rules: {}", "a table with at least 1 entry"]),
        (
            ["judge.rules.likes_pizza.pattern='('"],
            ["judge.rules.likes_pizza.pattern:", '"("', "is not a regular expression"],
        ),
        (["judge.rules.likes_pizza.scor=1"], ["judge.rules.likes_pizza.scor:", "1", "did you mean 'score'"]),
        (["trainer.loss=[{type = 'ipo'}]"], ["trainer.loss.0.type:", '"ipo"', '"ipo_sum"', '"nll"', '"sigmoid"']),
        (["trainer.loss=[{type = 'nll', weight = 0}]"], ["trainer.loss.0.weight: 0", "a number > 0"]),
        (["trainer.loss=[]"], ["trainer.loss: []", "an array with at least 1 entry"]),
        (["trainer.loss=[{type = 'nll'}]"], ["trainer.loss:", '"nll"', "prefers chosen over rejected"]),
        (["trainer.loss=[{type = 'modpo'}]"], ["trainer.loss: 'modpo' subtracts another objective's", "ratchet train"]),
        (
            ["trainer.loss=[{type = 'sppo', soft_labels = true}]"],
            ["trainer.loss: soft_labels of 'sppo'", "the judge, 'rules', gives none", "'pairwise'", "'all_pairs'"],
        ),
        (["trainer.betas.safe=0.3"], ["trainer.betas.safe: no pair will be of that source", "one source here"]),
        (
            ["trainer.betas.safe=0.3", f"prompts.source={MIXTURE}"],
            ["trainer.betas.safe: no pair", "the members of prompts.source, code, maths"],
        ),
        (["trainer={reference='none', guards={kl=1.0}}"], ["trainer: guards.kl is measured against the reference"]),
        (["trainer={reference='none', guards={displacement=1.0}}"], ["trainer: guards.displacement is measured"]),
        (["policy.corpus.function=make"], ["policy.corpus.function:", '"make"', "'module:function'"]),
        (["policy.hidden_size=100"], ["policy: hidden_size 100", "a multiple of 2 × heads"]),
        (["prompts.held_out=0"], ["food: prompts.held_out: 0", "1 or more"]),
        (["gate.require=['win > 3']"], ["gate.require: 'win > 3'", "win_rate_low"]),
        (
            ["sampling.proposers.other={type='server', n=0, endpoints=[{model='m'}]}"],
            ["sampling.proposers.other.n: 0", "a whole number ≥ 1 and ≤ 1024"],
        ),
        (
            ["sampling.proposers.other={type='server', endpoints=[{model='m'}], endpoint=[]}"],
            ["sampling.proposers.other.endpoint:", "did you mean 'endpoints'", "max_tokens, n, system"],
        ),
        (
            ["sampling.proposers.other={type='server', temperature=0, n=2, endpoints=[{model='m'}]}"],
            ["sampling.proposers.other: temperature: 0 gives one answer 2 times", "above 0, or n = 1"],
        ),
        (
            ["prompts.source={type='mixture', members={a={source={path='x'}}}}"],
            ["prompts.source.members.a.source.type: is missing", '"callable", "file", "hub"'],
        ),
        (
            ["prompts.source={type='mixture', members={a={source={type='fil'}}}}"],
            ["prompts.source.members.a.source.type:", '"fil"', '"callable", "file", "hub"'],
        ),
        (
            ["prompts.source={type='mixture', members={'a b'={source={type='file', path='x'}}}}"],
            ["prompts.source.members:", '"a b" is no name', "[A-Za-z0-9]"],
        ),
    ],
)
def test_wrong_setting_is_refused_with_key_value_and_what_is_allowed(
    recipes: Path, overrides: list[str], parts: list[str]
) -> None:
    message = refused(recipes, *overrides)
    for part in parts:
        assert part in message, message
    assert "more)" not in message


def test_a_served_model_that_is_asked_once_may_say_what_is_likeliest() -> None:
    settings = {"type": "server", "endpoints": [{"model": "m"}], "n": 1, "temperature": 0}
    assert validate(ServedModel, settings, "model").temperature == 0


def test_one_error_is_told_and_the_others_are_counted(recipes: Path) -> None:
    message = refused(recipes, "sampling.n=1", "trainer.beta=0", "policy.type=pretrained", "policy.pth=x")
    assert message == (
        "food: policy.pth: there is no such key (its value is \"x\"); did you mean 'path'? "
        "allowed: dtype, path, revision, type (and 3 more)"
    )


def test_long_values_are_cut(recipes: Path) -> None:
    assert len(refused(recipes, f"sampling.engine={'x' * 5000}")) < 300


# ---------------------------------------------------------------------------------------------- functions
def test_a_function_that_is_there_passes(recipes: Path) -> None:
    check_calls(load_recipe("food", recipes))


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("pipeline.functions:sorce_file", "defines no 'sorce_file'"),
        ("nowhere.at_all:make", "no module or file 'nowhere.at_all'"),
        ("nowhere/make.py:make", "no module or file 'nowhere/make.py'"),
    ],
)
def test_a_function_that_is_not_there_is_refused_with_its_key(recipes: Path, function: str, part: str) -> None:
    config = load_recipe("food", recipes, [f"policy.corpus.function={function}"])
    with pytest.raises(ConfigError, match=f"^policy.corpus: function '{function}'.*{part}"):
        check_calls(config)


def test_functions_are_looked_for_in_every_corner_of_the_config(recipes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(:\n")
    call = f"{{type = 'callable', call = {{function = '{tmp_path}/mine.py:score'}}}}"
    for key in ("prompts.source", "judge", "evaluation.judge"):
        config = load_recipe("food", recipes, [f"{key}={call}"])
        with pytest.raises(ConfigError, match=rf"^{key}.call: .*mine.py is not Python"):
            check_calls(config)


def test_soft_labels_and_betas_by_source_are_taken_where_rounds_have_them(recipes: Path) -> None:
    judge = "judge={type='pairwise', schedule='SCHEDULE', endpoints=[{model='m', base_url='http://127.0.0.1:1/v1'}]}"
    soft = "trainer.loss=[{type='sigmoid', soft_labels=true}]"
    betas = ["trainer.betas.maths=0.3", f"prompts.source={MIXTURE}"]
    evaluation = "evaluation.judge={type='rules', rules={likes={type='regex', pattern='a'}}}"
    config = load_recipe("food", recipes, [judge.replace("SCHEDULE", "all_pairs"), soft, evaluation, *betas])
    assert config.soft_verdicts
    with pytest.raises(ConfigError, match="soft_labels of 'sigmoid' need probabilities, and the judge, 'pairwise'"):
        load_recipe("food", recipes, [judge.replace("SCHEDULE", "knockout"), soft, evaluation])


def test_loading_a_recipe_imports_nothing_heavy(recipes: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.recipe import check_calls, load_recipe;"
        f"check_calls(load_recipe('food', Path({str(recipes)!r}), ['trainer.beta=0.5']));"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'torch', 'vllm', 'transformers', 'prefect', 'datasets', 'pandas', 'numpy', 'pyarrow'}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------- endpoints
LABELLED = 'judge={type="pointwise", endpoints=[{model="m", base_url="https://api.example.com/v1"}]}'


@pytest.mark.parametrize(
    ("key", "overrides", "message"),
    [
        ("", (), "judge.endpoints.0: https://api.example.com/v1 needs a key"),
        ("secret", ("limits.budget=1",), "judge.endpoints.0: 'm' has no prices, which limits.budget 1 needs"),
    ],
)
def test_an_endpoint_that_could_not_be_asked_is_refused_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, overrides: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    config = load_recipe("food", RECIPES, [LABELLED, *overrides])
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_endpoints(config)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ('base_url="http://joe:hunter22@127.0.0.1:1/v1"', "base_url holds a user's name or a secret"),
        ('base_url="http://hunter22@127.0.0.1:1/v1"', "base_url holds a user's name or a secret"),
        ('base_url="https://api.example.com/v1?api_key=hunter22"', "base_url holds a user's name or a secret"),
        ('extra={seed=1, api_key="hunter22"}', "extra.api_key holds what looks like a secret"),
        ('extra={headers={x-api-key="hunter22"}}', "extra.headers holds what looks like a secret"),
        ('extra={note="sk-hunter22hunter22"}', "extra.note holds what looks like a secret"),
    ],
)
def test_a_secret_in_an_endpoint_is_refused_without_being_said(settings: str, told: str) -> None:
    judge = f'judge={{type="pointwise", endpoints=[{{model="m", {settings}}}]}}'
    with pytest.raises(ConfigError, match="allowed: the name of the environment variable.*api_key_env") as refused:
        load_recipe("food", RECIPES, [judge])
    assert f"judge.endpoints.0: {told}" in str(refused.value)
    assert "hunter22" not in str(refused.value)


def test_an_endpoint_with_a_key_and_prices_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    priced = LABELLED.replace("}]", ", price_in=1, price_out=1}]")
    check_endpoints(load_recipe("food", RECIPES, [priced, "limits.budget=1"]))
