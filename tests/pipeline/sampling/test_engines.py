"""Claims that hold for every engine, made on the real ones, each in its own process."""

import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.errors import SamplingError, WeightSyncError
from pipeline.protocols import Decoding, Sampler, SampleRequest
from pipeline.types import Candidate, Policy
from tests.tiny import BOS, EOS, naive_logprobs, naive_next, token_ids

from .conftest import Pair, ask, decoded, draw, engine_process

TEXTS = ["", "a", "ravin likes", "who eats pizza?", "i am not a very long prompt, but longer than the others", "zz"]
DECODING = Decoding(max_tokens=24)


@pytest.fixture(autouse=True)
def _loaded(sampler: Sampler, untied: Pair) -> None:
    sampler.load(untied.first)


Groups = dict[str, tuple[Candidate, ...]]


def ids(groups: Groups) -> dict[str, list[tuple[int, ...]]]:
    return {name: [candidate.token_ids for candidate in candidates] for name, candidates in groups.items()}


def test_candidates_record_what_was_drawn(sampler: Sampler, untied: Pair) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untied.first.path)
    requests = ask(TEXTS, n=8)
    groups = draw(sampler, requests, DECODING)
    reasons = set()
    for request in requests:
        for index, (seed, candidate) in enumerate(zip(request.seeds, groups[request.prompt.id], strict=True)):
            reasons.add(candidate.finish_reason)
            assert (candidate.index, candidate.seed) == (index, seed)
            assert candidate.text == tokenizer.decode(candidate.token_ids, skip_special_tokens=True)
            if candidate.finish_reason == "stop":
                assert candidate.token_ids[-1] == EOS
                assert candidate.token_ids.count(EOS) == 1
            else:
                assert EOS not in candidate.token_ids
                assert len(candidate.token_ids) == DECODING.max_tokens
    assert reasons == {"stop", "length"}


def test_a_candidate_depends_on_its_own_seed_alone(sampler: Sampler) -> None:
    together = ids(draw(sampler, ask(TEXTS), DECODING))
    assert ids(draw(sampler, ask(TEXTS[::-1]), DECODING)) == together
    assert ids(draw(sampler, ask(TEXTS[2:3]), DECODING)) == {TEXTS[2]: together[TEXTS[2]]}
    (request,) = ask(TEXTS[3:4])
    last = SampleRequest(request.prompt, request.seeds[-1:])
    assert ids(draw(sampler, [last], DECODING))[TEXTS[3]] == together[TEXTS[3]][-1:]
    assert len({drawn for group in together.values() for drawn in group}) > 0.9 * 4 * len(TEXTS)


def check_logprobs(requests: list[SampleRequest], groups: Groups, policy: Policy) -> None:
    """Every candidate's log-probability is what ``policy`` gives it in transformers."""
    for request in requests:
        prompt, candidates = request.prompt.token_ids, groups[request.prompt.id]
        rows = naive_logprobs(policy, [[*prompt, *candidate.token_ids] for candidate in candidates])
        expected = [sum(row[len(prompt) - 1 :]) for row in rows]
        assert [candidate.cumulative_logprob for candidate in candidates] == pytest.approx(expected, abs=1e-3)


def test_log_probabilities_are_the_policys(sampler: Sampler, untied: Pair) -> None:
    requests = ask(TEXTS)
    groups = draw(sampler, requests, Decoding(max_tokens=24, temperature=0.7, top_k=9))
    check_logprobs(requests, groups, untied.first)
    sequences = [[BOS, *range(start, 34, 2)] for start in range(4, 30)]
    for scored, expected in zip(sampler.logprobs(sequences), naive_logprobs(untied.first, sequences), strict=True):
        assert scored == pytest.approx(expected, abs=1e-4)


def test_log_probabilities_are_left_out_where_not_asked_for(sampler: Sampler) -> None:
    (candidates,) = draw(sampler, ask(["a"]), Decoding(max_tokens=4, logprobs=False)).values()
    assert [candidate.cumulative_logprob for candidate in candidates] == [None] * 4


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(1),
        Decoding(1, temperature=0.5),
        Decoding(1, temperature=1.5, top_p=0.7),
        Decoding(1, top_k=5),
        Decoding(1, top_k=8, top_p=0.8),
    ],
    ids=str,
)
def test_first_tokens_follow_the_decoding_distribution(sampler: Sampler, untied: Pair, decoding: Decoding) -> None:
    n = 2048
    (candidates,) = draw(sampler, ask(["ravin likes"], n), decoding).values()
    seen = torch.bincount(torch.tensor([candidate.token_ids[0] for candidate in candidates]), minlength=34)
    expected = n * decoded(naive_next(untied.first, token_ids("ravin likes")), decoding)
    assert seen[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


def test_weights_put_in_place_sample_like_a_fresh_engine(sampler: Sampler, untied: Pair, tied: Pair) -> None:
    texts = [*TEXTS, "a prompt longer than a block of the prefix cache " * 4]
    requests = ask(texts)
    for pair in (tied, untied):
        sampler.load(pair.second)  # the other architecture was served until now: this makes a new engine
        engine = engine_process()
        fresh = ids(draw(sampler, requests, DECODING))
        sampler.load(pair.first)
        between = draw(sampler, requests, DECODING)
        check_logprobs(requests, between, pair.first)
        sampler.load(pair.second)
        again = draw(sampler, requests, DECODING)
        check_logprobs(requests, again, pair.second)
        assert ids(again) == fresh != ids(between)
        assert engine_process() == engine


def test_a_policy_that_fails_its_probe_is_refused(sampler: Sampler, untied: Pair, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(untied.second.path, wrong)
    shutil.copy(untied.first.path / "probe.json", wrong)
    before = ids(draw(sampler, ask(TEXTS), DECODING))
    with pytest.raises(WeightSyncError, match=f"does not serve policy {untied.second.digest[:12]}"):
        sampler.load(Policy(untied.second.digest, wrong))
    with pytest.raises(SamplingError, match="load one first"):
        draw(sampler, ask(TEXTS), DECODING)
    sampler.load(untied.first)
    assert ids(draw(sampler, ask(TEXTS), DECODING)) == before


def test_every_end_of_sequence_id_ends_a_completion(sampler: Sampler, untied: Pair, tmp_path: Path) -> None:
    several = tmp_path / "several"
    shutil.copytree(untied.second.path, several)
    settings = json.loads((several / "generation_config.json").read_text())
    (several / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [EOS, 4]}))
    sampler.load(Policy(untied.second.digest, several))
    candidates = [c for group in draw(sampler, ask(TEXTS, n=16), DECODING).values() for c in group]
    assert {c.token_ids[-1] for c in candidates if c.finish_reason == "stop"} == {EOS, 4}
    assert all(4 not in c.token_ids[:-1] for c in candidates)


def test_requests_are_taken_as_they_are_needed_and_stopping_early_is_fine(sampler: Sampler, untied: Pair) -> None:
    expected = ids(draw(sampler, ask(TEXTS), DECODING))
    taken = 0

    def endless() -> Iterator[SampleRequest]:
        nonlocal taken
        for taken in count(1):  # noqa: B007
            yield ask(["abc"])[0]

    groups = sampler.sample(endless(), DECODING)
    for _ in range(100):
        next(groups)
    groups.close()  # type: ignore[attr-defined]
    assert taken < 300
    assert ids(draw(sampler, ask(TEXTS), DECODING)) == expected

    groups = sampler.sample(endless(), DECODING)
    next(groups)
    sampler.load(untied.second)  # while the generator is still open
    with pytest.raises(SamplingError, match="ended by a later call"):
        list(groups)
    sampler.load(untied.first)
    assert ids(draw(sampler, ask(TEXTS), DECODING)) == expected


def test_an_error_among_the_requests_reaches_the_caller(sampler: Sampler) -> None:
    def failing() -> Iterator[SampleRequest]:
        yield from ask(TEXTS)
        raise ZeroDivisionError

    expected = ids(draw(sampler, ask(TEXTS), DECODING))
    with pytest.raises(ZeroDivisionError):
        list(sampler.sample(failing(), DECODING))
    assert ids(draw(sampler, ask(TEXTS), DECODING)) == expected


def test_a_prompt_without_room_is_named_and_one_with_little_is_cut_short(sampler: Sampler) -> None:
    with pytest.raises(SamplingError, match=r"'a{300}' has 301 tokens; allowed: 1 to 254"):
        draw(sampler, ask(["a", "a" * 300]), DECODING)
    (candidates,) = draw(sampler, ask(["a" * 250], n=16), DECODING).values()
    assert max(len(candidate.token_ids) for candidate in candidates) == 256 - 1 - 251
    full = [[*token_ids("a" * 250), *candidate.token_ids] for candidate in candidates]
    assert [len(row) for row in sampler.logprobs(full)] == [len(sequence) - 1 for sequence in full]


def test_sleeping_on_cpu_gives_nothing_back_and_changes_nothing(sampler: Sampler) -> None:
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    expected = ids(draw(sampler, ask(TEXTS), DECODING))
    assert sampler.sleep() == 0.0
    assert ids(draw(sampler, ask(TEXTS), DECODING)) == expected
