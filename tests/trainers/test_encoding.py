import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from tests.tiny import BOS, EOS
from tests.trainers.examples import make_pair
from tests.trainers.tokenizers import ALPHABET, TEMPLATES, TOKENIZERS
from trainers.encoding import Encoder, encode_pairs, pair_rows, special_ids
from trainers.examples import Pair, Row, Single
from trainers.records import REASONS, Unusable, parse_record

A, B = 7, 8
ENDS = frozenset({EOS})


def test_a_pair_becomes_its_own_sampled_ids() -> None:
    pair = make_pair((A, EOS), (B, B), (BOS, A))
    (encoded,) = encode_pairs([pair], (BOS, ENDS), "helpful")
    assert encoded == Pair(Row((BOS, A), (A, EOS)), Row((BOS, A), (B, B)), pair.margin, 1.0, "helpful", "p")
    assert encoded == pair_rows(pair, BOS, ENDS, "helpful")
    assert [len(row) for row in encoded.rows] == [4, 4]


def test_bradley_terry_strengths_say_how_probable_a_label_is() -> None:
    sure, close = (replace(make_pair((A, EOS), (B, B)), score_chosen=score) for score in (40.0, math.log(3)))
    assert [pair.preference for pair in encode_pairs([sure, close], (BOS, ENDS))] == [1.0, 1.0]
    soft = encode_pairs([sure, close], (BOS, ENDS), logits=True)
    assert [pair.preference for pair in soft] == pytest.approx([1.0, 0.75])
    assert [pair.margin for pair in soft] == [40.0, math.log(3)]


def test_a_pair_is_of_its_prompts_source_which_selects_its_beta() -> None:
    pair = make_pair((A, EOS), (B, B))
    member = replace(pair, prompt=replace(pair.prompt, source="maths"))
    assert [each.source for each in encode_pairs([pair, member], (BOS, ENDS), "run")] == ["run", "maths"]
    assert [each.source for each in encode_pairs([pair, member], (BOS, ENDS))] == ["", "maths"]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "complaint"),
    [
        ((BOS, BOS, A), (A,), (B,), r"pair p: prompt \(1, 1, 7\)… must be .* one BOS \(1\) at most"),
        ((), (A,), (B,), r"pair p: prompt \(\)… must be non-empty"),
        ((BOS,), (), (B,), "pair p: chosen completion .* must be non-empty"),
        ((BOS,), (A,), (), "pair p: rejected completion .* must be non-empty"),
        ((BOS,), (A, EOS, A), (B,), r"chosen completion \(7, 2, 7\)… .* EOS \(2\) nowhere but at its end"),
        ((BOS,), (A,), (EOS, EOS), r"rejected completion \(2, 2\)… .* nowhere but at its end"),
    ],
)
def test_ids_that_no_policy_can_have_seen_are_refused(
    prompt: tuple[int, ...], chosen: tuple[int, ...], rejected: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        pair_rows(make_pair(chosen, rejected, prompt), BOS, ENDS)


@pytest.mark.parametrize(
    ("prompt", "bos"),
    [
        ((BOS, A, EOS, BOS, A), BOS),  # a template that begins every turn with a BOS and ends it with an EOS
        ((A,), BOS),  # a template without BOS
        ((A, A), None),  # a tokenizer without BOS
    ],
)
def test_what_chat_templates_really_render_is_accepted(prompt: tuple[int, ...], bos: int | None) -> None:
    rows = pair_rows(make_pair((EOS,), (A,), prompt), bos, ENDS).rows
    assert rows == (Row(prompt, (EOS,)), Row(prompt, (A,)))


@pytest.mark.parametrize(
    ("of_tokenizer", "of_generation", "found"),
    [
        ({"bos_token_id": 1, "eos_token_id": 2}, {"eos_token_id": [2, 5]}, (1, {2, 5})),
        ({"bos_token_id": None, "eos_token_id": 2}, {"eos_token_id": 5}, (None, {2, 5})),
        ({"bos_token_id": 1, "eos_token_id": None}, {"eos_token_id": None}, (1, set())),
        ({"bos_token_id": 1, "eos_token_id": 2}, None, (1, {2})),
    ],
)
def test_every_id_that_ends_a_completion_is_known(of_tokenizer: Any, of_generation: Any, found: Any) -> None:
    generation = of_generation and SimpleNamespace(**of_generation)
    tokenizer: Any = SimpleNamespace(**of_tokenizer)
    model: Any = SimpleNamespace(generation_config=generation)
    assert special_ids(tokenizer, model) == found


# ---------------------------------------------------------------------------------------------- text
@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def encoder(tokenizer: Any, **limits: int) -> Encoder:
    return Encoder(tokenizer, special_ids(tokenizer), **limits)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def answer(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


texts = st.text(ALPHABET, min_size=1, max_size=30).filter(str.strip)
rows_of_text = st.tuples(texts, texts, texts).filter(lambda row: row[1] != row[2])


def assert_well_formed(row: Row, tokenizer: Any, bos_wanted: bool) -> None:
    """One BOS exactly, or none, and one EOS exactly, at the end."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert row.completion[-1] == eos
    assert eos not in row.completion[:-1]
    if bos is not None and bos != eos:
        assert (row.prompt + row.completion).count(bos) == int(bos_wanted)
        assert (row.prompt[0] == bos) == bos_wanted


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_of_text)
def test_plain_text_gets_the_tokenizers_own_bos_and_one_eos_and_nothing_else(
    tokenizer: Any, texts: tuple[str, str, str]
) -> None:
    prompt, chosen, rejected = texts
    (pair,) = encoder(tokenizer).encode([{"prompt": prompt, "chosen": chosen, "rejected": rejected}]).examples
    adds_bos = tokenizer.bos_token is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    for row, response in zip(pair.rows, (chosen, rejected), strict=True):
        assert_well_formed(row, tokenizer, adds_bos)
        said = tokenizer.decode([*row.prompt[int(adds_bos) :], *row.completion[:-1]])
        assert said.lstrip(" ") == (prompt + response).lstrip(" ")  # Llama 2's kind forgets a first space
        assert row.prompt[int(adds_bos) :] == tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_of_text)
def test_a_conversation_gets_the_templates_bos_and_one_eos_and_the_prompt_a_sampler_would_be_given(
    tokenizer: Any, template: str, texts: tuple[str, str, str]
) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    question, chosen, rejected = texts
    row = {"prompt": [user(question)], "chosen": [answer(chosen)], "rejected": [answer(rejected)]}
    (pair,) = encoder(tokenizer).encode([row]).examples
    sampled = tokenizer.apply_chat_template([user(question)], add_generation_prompt=True)["input_ids"]
    for encoded, response in zip(pair.rows, (chosen, rejected), strict=True):
        assert encoded.prompt == tuple(sampled)
        assert_well_formed(encoded, tokenizer, template.startswith("BOS"))
        whole = tokenizer.apply_chat_template([user(question), answer(response)], tokenize=False)
        said = tokenizer.decode([*encoded.prompt, *encoded.completion[:-1]])
        assert whole.startswith(said)
        assert said.rstrip().endswith(response.rstrip())


def test_a_bos_or_eos_already_written_in_the_text_is_not_given_twice(tokenizer: Any) -> None:
    bos = tokenizer.bos_token or ""
    written = {"prompt": f"{bos}what is it?", "chosen": " ice</s>", "rejected": " cream</s>\n"}
    plain = {"prompt": "what is it?", "chosen": " ice", "rejected": " cream"}
    both = encoder(tokenizer).encode([written, plain]).examples
    assert both[0] == both[1]


def test_ids_equal_trls_where_trl_gives_one_bos_and_one_eos() -> None:
    pytest.importorskip("trl", reason="TRL is a peer, not a dependency")
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.dpo_trainer import DPOTrainer

    disable_progress_bars()
    turns = [user("what is it?")]
    formats: list[dict[str, Any]] = [
        {"prompt": "the sky is", "chosen": " blue.", "rejected": " ice cream."},
        {"chosen": "the sky is blue.", "rejected": "the sky is ice cream."},
        {"prompt": turns, "chosen": [answer("ice cream")], "rejected": [answer("the sky")]},
        {"chosen": [*turns, answer("ice cream")], "rejected": [*turns, answer("the sky")]},
    ]
    arguments: Any = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    for name in ("adds BOS", "adds none", "has no BOS", "puts a space"):
        tokenizer = TOKENIZERS[name]()
        tokenizer.chat_template = TEMPLATES["no BOS, EOS and a line end"]
        eos = tokenizer.eos_token_id
        trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
        for row in formats:
            prepared = DPOTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tokenizer, arguments, "train")[0]
            (pair,) = encoder(tokenizer).encode([row]).examples
            theirs = [prepared[key] for key in ("chosen_ids", "rejected_ids")]
            # TRL trains on the line end that the template puts after the EOS, which no sampler gets to.
            until_eos = [tuple(ids[: ids.index(eos) + 1]) for ids in theirs]
            assert [pair.chosen.completion, pair.rejected.completion] == until_eos
            assert pair.chosen.prompt == pair.rejected.prompt == tuple(prepared["prompt_ids"])


def test_a_completion_is_encoded_apart_where_a_token_would_reach_across_the_prompts_end() -> None:
    for name in ("adds none", "puts a space"):
        tokenizer = TOKENIZERS[name]()
        encoded = encoder(tokenizer).encode([{"prompt": "the sk", "chosen": "y is blue", "rejected": "irt"}])
        assert set(encoded.altered) == {"encoded_apart"}
        (pair,) = encoded.examples
        said = [tokenizer.decode(row.prompt + row.completion, skip_special_tokens=True) for row in pair.rows]
        assert [text.strip() for text in said] == ["the sky is blue", "the skirt"]
        alone = tokenizer("the sk", add_special_tokens=False)["input_ids"]
        assert list(pair.rows[0].prompt[-len(alone) :]) == alone


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("the sky is blue", "the sky is bleak", "the sky is"),  # not in a word
        ("the sky is blue", "the sky is", None),  # nothing left of the rejected
        ("Q: why?\nA: I am", "Q: why?\nA: I will", "Q: why?\nA: I"),
        ("why?\n\nBecause", "why?\n\nNever", "why?\n\n"),
        ("天空是蓝色", "天空是绿色", "天空是"),  # no spaces: between any two signs
        ("blue", "black", None),  # no word in common
        ("\n\nHuman: hi\n\nAssistant: I am", "\n\nHuman: hi\n\nAssistant: I will", "\n\nHuman: hi\n\nAssistant:"),
    ],
)
def test_an_implicit_prompt_ends_where_the_answers_begin(chosen: str, rejected: str, prompt: str | None) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    if prompt is None:
        with pytest.raises(Unusable, match=r"empty_(prompt|completion)"):
            parse_record(row)
    else:
        record = parse_record(row)
        assert record.prompt == prompt
        assert record.responses == (chosen.removeprefix(prompt), rejected.removeprefix(prompt))


def test_all_ways_to_write_one_conversation_give_the_same_ids() -> None:
    tokenizer = TOKENIZERS["adds BOS"]()
    tokenizer.chat_template = TEMPLATES["BOS, no EOS"]
    question, good, bad = user("what is it?"), answer("ice cream"), answer("the sky")
    rows: list[dict[str, Any]] = [
        {"prompt": [question], "chosen": [good], "rejected": [bad]},
        {"prompt": [question], "chosen": "ice cream", "rejected": "the sky"},
        {"prompt": "what is it?", "chosen": [good], "rejected": [bad]},
        {"prompt": "what is it?", "chosen": [question, good], "rejected": [question, bad]},
        {"chosen": [question, good], "rejected": [question, bad]},
        {"prompt": [question | {"tool_calls": None}], "chosen": [good | {"x": None}], "rejected": [bad], "tools": []},
    ]
    examples = encoder(tokenizer).encode(rows).examples
    assert len(examples) == len(rows)
    assert set(examples) == {examples[0]}
    (single,) = encoder(tokenizer).encode([{"prompt": [question], "completion": [good], "label": False}]).examples
    assert isinstance(examples[0], Pair)
    assert single == Single(examples[0].chosen, desirable=False)


def test_tools_and_template_keywords_reach_the_template() -> None:
    tokenizer = TOKENIZERS["adds none"]()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools[0]['name'] }} {% endif %}{{ mood }}"
        "{% for m in messages %} {{ m['content'] }}{% endfor %}"
    )
    row = {"prompt": [user("what")], "chosen": [answer("ice")], "rejected": [answer("cream")],
           "chat_template_kwargs": {"mood": "sky", "other": None}}  # fmt: skip
    for tools in (json.dumps([{"name": "look"}]), [{"name": "look", "default": None}]):
        (pair,) = encoder(tokenizer).encode([row | {"tools": tools}]).examples
        assert tokenizer.decode(pair.rows[0].prompt) == "look sky what"
    everywhere = Encoder(tokenizer, special_ids(tokenizer), chat_template_kwargs={"mood": "blue"})
    rows = [row | {"chat_template_kwargs": None}, row]
    prompts = [tokenizer.decode(example.rows[0].prompt) for example in everywhere.encode(rows).examples]
    assert prompts == ["blue what", "sky what"]


def test_margin_preference_and_source_come_from_their_columns() -> None:
    row: dict[str, Any] = {"prompt": "what?", "chosen": " a", "rejected": " b"}
    extras: list[dict[str, Any]] = [
        {"margin": 0.5}, {"score_chosen": 3, "score_rejected": 1.5}, {"margin": "", "score_chosen": None},
        {"preference": 0.75, "source": "given"}, {"preference": 0.25, "margin": -2.0}, {"label": True},
        {"label": False, "margin": 1}, {"margin": -1}, {"label": 0}, {"label": "0"}, {"label": 1}, {"label": "chosen"},
        {"label": False, "preference": 0.1}, {"label": False, "preference": 0.5},
    ]  # fmt: skip
    encoded = encoder(TOKENIZERS["adds none"]()).encode([row | extra for extra in extras], source="named")
    pairs = [example for example in encoded.examples if isinstance(example, Pair)]
    assert [pair.margin for pair in pairs] == [0.5, 1.5, 0, 0, 2.0, 0, -1, -1, *[0] * 6]
    assert [pair.preference for pair in pairs] == [1, 1, 1, 0.75, 0.75, 1, 1, 1, 1, 1, 1, 1, 0.9, 0.5]
    assert [pair.source for pair in pairs] == ["named"] * 3 + ["given"] + ["named"] * 10
    swapped = [pair.chosen == pairs[0].rejected for pair in pairs]
    assert swapped == [False] * 4 + [True, False, True, False, True, True, False, False, True, False]
    assert encoded.altered == {"swapped": 5, "contradicted": 2}


BAD: list[tuple[str, Any]] = [
    ("not_a_record", b"{torn"), ("not_a_record", ["a"]), ("missing", {"prompt": "a", "chosen": "b", "rejected": None}),
    ("missing", {"prompt": "a", "completion": "b"}),
    ("not_text", {"prompt": "a", "chosen": True, "rejected": "b"}),
    ("not_text", {"chosen": "ab", "rejected": False}),
    ("not_text", {"prompt": [{"content": "a"}], "chosen": "c", "rejected": "b"}),
    ("not_text", {"prompt": [{"role": "user", "content": 3}], "chosen": "c", "rejected": "b"}),
    ("bad_value", {"prompt": "a", "completion": "b", "label": "good"}),
    ("bad_value", {"prompt": "a", "completion": "b", "label": 1.0}),
    ("bad_value", {"prompt": "a", "chosen": "b", "rejected": "c", "preference": 1.5}),
    ("bad_value", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}),
    ("bad_value", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}),
    ("bad_value", {"prompt": "a", "chosen": "b", "rejected": "c", "tools": "look"}),
    ("prompt_mismatch", {"chosen": [user("a"), answer("b")], "rejected": [user("c"), answer("d")]}),
    ("prompt_mismatch", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}),
    ("not_one_turn", {"prompt": [user("a")], "chosen": [answer("b"), user("c"), answer("d")], "rejected": "e"}),
    ("bad_value", {"prompt": "a", "chosen": "b", "rejected": "c", "preference": 0.9, "label": False}),
    ("bad_value", {"prompt": "a", "chosen": "b", "rejected": "c", "preference": 0.1, "label": 1}),
    ("not_one_turn", {"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]}),
    ("empty_prompt", {"prompt": " \n", "chosen": "b", "rejected": "c"}),
    ("empty_prompt", {"prompt": [], "chosen": [answer("b")], "rejected": [answer("c")]}),
    ("empty_completion", {"prompt": "a", "chosen": "b", "rejected": " \n"}),
    ("empty_completion", {"prompt": "a", "completion": "</s>", "label": True}),
    ("empty_completion", {"prompt": [user("a")], "completion": [answer("")], "label": True}),
    ("identical", {"prompt": "a", "chosen": "b", "rejected": "b"}),
    ("identical", {"prompt": "a", "chosen": "b", "rejected": "b</s>"}),
    ("identical", {"prompt": "a", "chosen": "bbbb cccc dddd eeee xyz", "rejected": "bbbb cccc dddd eeee zyx"}),
    ("refused_by_template", {"prompt": [user("a"), user("b")], "chosen": "c", "rejected": "d"}),
    ("special_inside", {"prompt": "a<s>b", "chosen": "c", "rejected": "d"}),
    ("special_inside", {"prompt": "a", "chosen": "c</s>d", "rejected": "d"}),
    ("special_inside", {"prompt": "a", "chosen": "c<s>d", "rejected": "d"}),
    ("special_inside", {"prompt": [user("a<s>")], "chosen": "c", "rejected": "d"}),
    ("special_inside", {"prompt": [user("a")], "chosen": "c</s>d", "rejected": "d"}),
    ("too_long", {"prompt": "x y z " * 20, "chosen": "c", "rejected": "d"}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row"), BAD)
def test_a_malformed_row_is_dropped_under_its_name_and_quoted(reason: str, row: Any) -> None:
    tokenizer = TOKENIZERS["adds BOS"]()
    tokenizer.chat_template = (
        "{% if messages|length > 1 and messages[1]['role'] == 'user' %}{{ raise_exception('two') }}{% endif %}"
        + TEMPLATES["no BOS, EOS and a line end"]
    )
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    encoded = encoder(tokenizer, max_length=40, max_completion_tokens=12).encode([good, row, row])
    assert (len(encoded.examples), encoded.rows, dict(encoded.dropped)) == (1, 3, {reason: 2})
    assert encoded.first[reason].startswith("row 2: ")
    (line,) = [line for line in encoded.lines if reason in line]
    assert line.startswith(f"2 of 3 rows dropped, {reason}: {REASONS[reason]}; first row 2: ")
    with pytest.raises(DataError, match=f"rows: nothing is left to train on; 1 of 1 rows dropped, {reason}"):
        encoder(tokenizer, max_length=40, max_completion_tokens=12).encode([row])


def test_every_reason_has_a_row_that_shows_it() -> None:
    assert {reason for reason, _ in BAD} == set(REASONS)


def test_truncation_keeps_the_prompts_end_and_bos_and_the_completions_start_and_is_counted() -> None:
    tokenizer = TOKENIZERS["adds BOS"]()
    row = {"prompt": "what is the sky?", "chosen": " blue blue blue blue", "rejected": " ice"}
    (whole,) = encoder(tokenizer).encode([row]).examples
    encoded = encoder(tokenizer, max_prompt_tokens=4, max_completion_tokens=3).encode([row])
    (cut,) = encoded.examples
    assert cut.rows[0].prompt == (tokenizer.bos_token_id, *whole.rows[0].prompt[-3:])
    assert cut.rows[0].completion == whole.rows[0].completion[:3]
    assert cut.rows[1].completion == whole.rows[1].completion
    assert encoded.altered == {"truncated_prompt": 1, "truncated_completion": 1}
    assert encoded.first["truncated_prompt"] == f"row 1: '{len(whole.rows[0].prompt)} tokens'"
    assert any("has lost its EOS" in line for line in encoded.lines)


def test_the_end_of_a_turn_is_the_end_of_a_completion_where_the_policy_stops_there() -> None:
    tokenizer = TOKENIZERS["adds none"]()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|turn|>\n</s>' }}{% endfor %}"
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    row = {"prompt": [user("a")], "chosen": [answer("b")], "rejected": [answer("c")]}
    (pair,) = Encoder(tokenizer, (None, frozenset({turn, tokenizer.eos_token_id}))).encode([row]).examples
    assert tokenizer.decode(pair.rows[0].completion) == "b<|turn|>"


def test_a_tokenizer_without_eos_has_that_said() -> None:
    tokenizer = TOKENIZERS["adds none"]()
    tokenizer.eos_token = None
    encoded = encoder(tokenizer).encode([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert encoded.altered == {"without_eos": 1}


def test_a_template_that_renders_the_prompt_otherwise_before_an_answer_is_refused_by_row() -> None:
    tokenizer = TOKENIZERS["adds none"]()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ '<think>' * add_generation_prompt }}"
    )
    with pytest.raises(DataError, match=r"rows: row 1: the chat template renders the prompt otherwise .* 'a<think>'"):
        encoder(tokenizer).encode([{"prompt": [user("a")], "chosen": "b", "rejected": "c"}])


def test_an_answer_that_the_template_leaves_out_is_not_trained_on() -> None:
    tokenizer = TOKENIZERS["adds none"]()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{{ m['content'][0]['text'] }}</s>{% endfor %}"
    row = {"prompt": [user("a")], "completion": [answer("b")], "label": True}
    with pytest.raises(DataError, match="leaves out the answer; first row 1: 'assistant</s>'"):
        encoder(tokenizer).encode([row])
    blocks = answer("b") | {"content": [{"type": "text", "text": "b"}]}
    assert len(encoder(tokenizer).encode([row | {"completion": [blocks]}]).examples) == 1


def test_conversations_need_a_chat_template() -> None:
    with pytest.raises(ConfigError, match="rows: row 1 is a conversation, but the tokenizer .* no chat template"):
        encoder(TOKENIZERS["adds none"]()).encode([{"prompt": [user("a")], "chosen": "b", "rejected": "c"}])
