"""The policy served over HTTP: by a fake with faults, and by a real ``vllm serve`` beside the engine in process."""

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.calls.limits import Waits
from pipeline.config import Endpoint, SamplingConfig
from pipeline.errors import SamplingError, WeightSyncError
from pipeline.policy import read_probe
from pipeline.protocols import Decoding, Sampler
from pipeline.sampling import engine_name, engine_settings, start_sampler
from pipeline.sampling.server import ServerSampler
from pipeline.types import Policy
from tests import vllm_server
from tests.tiny import BOS, EOS, make_policy, naive_logprobs, perturb
from tests.vllm_fake import VllmFake

from .conftest import Pair, ask, draw

TEXTS = ["", "a", "ravin likes", "who eats pizza?", "zz"]
DECODING = Decoding(max_tokens=12)
SEQUENCES = [[BOS, *range(start, 34, 2)] for start in range(4, 30)]
Make = Callable[..., ServerSampler]


@pytest.fixture
def sampler_of() -> Iterator[Make]:
    made: list[ServerSampler] = []

    def make(*servers: VllmFake, waits: Waits | None = None, **more: Any) -> ServerSampler:
        endpoints = tuple(
            Endpoint(**{"model": "policy", "base_url": each.base_url, "timeout": 20.0} | more) for each in servers
        )
        config = SamplingConfig(engine="server", endpoints=endpoints, max_model_len=200)
        made.append(ServerSampler(config, waits or Waits(back_off=0.001, longest_back_off=0.01)))
        return made[-1]

    yield make
    for each in made:
        each.close()


# --------------------------------------------------------------------------------------------------- weights
def test_a_policy_is_loaded_in_place_on_every_server_and_proved(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first) as one, VllmFake(untied.first) as other:
        sampler = sampler_of(one, other)
        for policy in (untied.second, untied.first):
            sampler.load(policy)
            for each in (one, other):
                assert each.policy.path == policy.path
                assert not each.paused
            for scored, expected in zip(sampler.logprobs(SEQUENCES), naive_logprobs(policy, SEQUENCES), strict=True):
                assert scored == pytest.approx(expected, abs=1e-5)
        steps = [path for path in one.asked if not path.startswith("/v1/")]
        assert steps == ["/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"] * 2


def test_a_server_without_the_extension_is_loaded_by_vllms_own_method(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, extension=False) as server:
        sampler_of(server).load(untied.second)
        assert server.policy.path == untied.second.path


def test_a_server_without_development_mode_will_do_where_it_serves_the_policy(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, development=False) as server:
        sampler = sampler_of(server)
        sampler.load(untied.first)
        assert len(draw(sampler, ask(TEXTS), DECODING)) == len(TEXTS)
        with pytest.raises(WeightSyncError, match="VLLM_SERVER_DEV_MODE=1"):
            sampler.load(untied.second)
        with pytest.raises(WeightSyncError, match="takes no weights"):
            sampler_of(server).load(untied.second)


def test_a_server_that_loads_something_else_is_refused(sampler_of: Make, untied: Pair, tmp_path: Path) -> None:
    with VllmFake(untied.first) as server:
        sampler = sampler_of(server)
        server.call = lambda body: (200, {"results": [None]})  # type: ignore[method-assign]  # it keeps what it has
        with pytest.raises(WeightSyncError, match="does not serve policy"):
            sampler.load(untied.second)
        with pytest.raises(SamplingError, match="load one first"):
            next(iter(sampler.sample(ask(TEXTS), DECODING)))


def test_a_folder_that_the_server_cannot_read_is_named(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first) as server:
        server.call = lambda body: (500, {"error": {"message": "no such folder"}})  # type: ignore[method-assign]
        with pytest.raises(WeightSyncError, match=f"could not load {untied.second.path} and is left paused: .*no such"):
            sampler_of(server).load(untied.second)
        assert server.paused


def test_a_server_that_keeps_its_prefix_cache_is_refused(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, keeps_cache=True) as server, pytest.raises(WeightSyncError, match="prefix cache"):
        sampler_of(server).load(untied.first)


def test_a_wrong_name_or_too_short_a_context_is_said_before_anything_is_loaded(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, longest=100) as server:
        with pytest.raises(SamplingError, match=r"sampling.max_model_len: 200.*allowed: 100 or fewer"):
            sampler_of(server).load(untied.first)
        with pytest.raises(SamplingError, match="has no model 'other'; it has policy"):
            sampler_of(server, model="other").load(untied.first)
        assert "/collective_rpc" not in server.asked


def test_where_no_server_can_be_reached_the_error_names_one(sampler_of: Make, untied: Pair) -> None:
    gone = VllmFake(untied.first)
    gone.start()
    gone.stop()
    with pytest.raises(SamplingError, match=f"no server of the policy can be reached.*{gone.port}"):
        sampler_of(gone).load(untied.first)


# --------------------------------------------------------------------------------------------------- samples
def test_servers_share_the_candidates_and_each_has_no_more_in_hand_than_it_takes(
    sampler_of: Make, untied: Pair
) -> None:
    with VllmFake(untied.first, latency=0.01) as one, VllmFake(untied.first, latency=0.01) as other:
        sampler = sampler_of(one, other, concurrency=3)
        sampler.load(untied.first)
        requests = ask([*TEXTS, "b", "c", "d"], n=8)
        groups = draw(sampler, requests, DECODING)
        assert len(one.completions) + len(other.completions) == 64
        assert min(len(one.completions), len(other.completions)) > 10
        assert max(one.most_busy, other.most_busy) <= 3
    for request in requests:
        candidates = groups[request.prompt.id]
        assert [(each.index, each.seed) for each in candidates] == list(enumerate(request.seeds))
        for each in candidates:
            assert each.finish_reason == ("stop" if each.token_ids[-1] == EOS else "length")
            assert each.cumulative_logprob is not None and each.cumulative_logprob < 0
            assert each.model == ""


def test_a_candidate_depends_on_its_own_seed_alone_whoever_drew_it(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first) as one, VllmFake(untied.first) as other:
        alone, both = sampler_of(one), sampler_of(one, other)
        alone.load(untied.first)
        both.load(untied.first)
        assert draw(alone, ask(TEXTS), DECODING) == draw(both, ask(TEXTS[::-1]), DECODING)


def test_nothing_of_the_checkpoints_own_decoding_is_left_to_the_server(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first) as server:
        sampler = sampler_of(server, extra={"priority": 3})
        sampler.load(untied.first)
        draw(sampler, ask(TEXTS[2:3], n=1), Decoding(7, temperature=0.5, top_p=0.8, top_k=4, logprobs=False))
        (body,) = server.completions
    said = {"temperature": 0.5, "top_p": 0.8, "top_k": 4, "max_tokens": 7, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True, "priority": 3}  # fmt: skip
    assert said.items() <= body.items()
    assert "logprobs" not in body
    assert EOS in body["stop_token_ids"]


def test_servers_asked_with_further_fields_draw_otherwise_and_none_of_them_is_the_recipes() -> None:
    def config(*extras: dict[str, Any]) -> SamplingConfig:
        return SamplingConfig(engine="server", endpoints=tuple(Endpoint(model="m", extra=extra) for extra in extras))

    assert engine_settings(config({}, {})) == {"engine": "server"}
    assert engine_settings(config({"bad_words": ["a"]})) == {"engine": "server", "extra": {"bad_words": ["a"]}}
    with pytest.raises(ValidationError, match="allowed: the same for all"):
        config({"bad_words": ["a"]}, {})
    with pytest.raises(ValidationError, match="extra.temperature is 0.1; allowed: none"):
        config({"temperature": 0.1})


def test_faults_are_tried_again_and_a_call_given_up_is_an_error(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, script=[500, None, 429, 503, None, 500]) as server:
        sampler = sampler_of(server, tries=4)
        sampler.load(untied.first)
        assert len(draw(sampler, ask(TEXTS), DECODING)) == len(TEXTS)
        server.script.extend([500] * 100)
        with pytest.raises(SamplingError, match="server_error: 500: a fault"):
            draw(sampler, ask(TEXTS), DECODING)
        server.script.clear()
        server.script.append(400)
        with pytest.raises(SamplingError, match="bad_request"):
            draw(sampler, ask(TEXTS[:1], n=1), DECODING)


def test_half_a_completion_is_none(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, script=["abort", None, "error"]) as server:
        sampler = sampler_of(server)
        sampler.load(untied.first)
        with_faults = draw(sampler, ask(TEXTS), DECODING)
        assert not server.script
        assert draw(sampler, ask(TEXTS), DECODING) == with_faults


def test_a_server_that_goes_down_leaves_its_share_to_the_others(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, latency=0.01) as stays:
        goes = VllmFake(untied.first, latency=0.01)
        goes.start()
        sampler = sampler_of(stays, goes, concurrency=2)
        sampler.load(untied.first)
        requests = ask([chr(ord("a") + letter) for letter in range(20)])
        groups = {}
        for group in sampler.sample(requests, DECODING):
            groups[group.prompt.id] = group.candidates
            if len(groups) == 5:
                goes.stop()
        assert len(groups) == 20
        alone = sampler_of(stays)
        alone.load(untied.first)
        assert draw(alone, requests, DECODING) == groups


def test_a_server_that_comes_back_is_given_the_policy_again(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first) as server:
        sampler = sampler_of(server, tries=1000)
        sampler.load(untied.second)
        server.stop()
        threading.Timer(0.2, server.start).start()  # with the weights it was first started with
        assert len(draw(sampler, ask(TEXTS), DECODING)) == len(TEXTS)
        assert server.policy.path == untied.second.path
        server.stop()
        server.start()  # nobody asked it anything meanwhile
        assert len(draw(sampler, ask(TEXTS), DECODING)) == len(TEXTS)
        assert server.policy.path == untied.second.path


MANY = ask([chr(ord("a") + letter) for letter in range(20)])


def changing(sampler: ServerSampler, change: Callable[[], None]) -> dict[str, Any]:
    """What is drawn for MANY where something happens after some groups."""
    groups = {}
    for group in sampler.sample(MANY, DECODING):
        groups[group.prompt.id] = group.candidates
        if len(groups) == 5:
            change()
    return groups


def drawn_by(sampler: ServerSampler, policy: Policy) -> dict[str, Any]:
    sampler.load(policy)
    return draw(sampler, MANY, DECODING)


@pytest.mark.parametrize("anew", [True, False], ids=["started anew", "renamed in place"])
def test_a_server_with_another_model_is_left_out_and_named(
    sampler_of: Make, untied: Pair, caplog: pytest.LogCaptureFixture, anew: bool
) -> None:
    with VllmFake(untied.first, latency=0.01) as stays, VllmFake(untied.first, latency=0.01) as turns:
        sampler = sampler_of(stays, turns, concurrency=2)
        sampler.load(untied.first)

        def turn() -> None:
            if anew:
                turns.stop()
            turns.model = "another"
            if anew:
                turns.start()

        groups = changing(sampler, turn)
        asked = len(turns.completions)
        assert draw(sampler, MANY[:5], DECODING).keys() == {each.prompt.id for each in MANY[:5]}
        assert len(turns.completions) == asked  # nobody asks it again
        assert groups == drawn_by(sampler_of(stays), untied.first)
        (warning,) = [each for each in caplog.messages if "left out" in each]
        assert warning.startswith(f"policy at {turns.base_url} is left out: ")
        assert warning.endswith("; its share goes to the other servers")
        turns.model = "policy"
        sampler.load(untied.second)  # the next round's: it may be well again
        assert turns.policy.path == untied.second.path


def test_of_servers_that_take_no_weights_one_with_others_is_left_out(
    sampler_of: Make, untied: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        VllmFake(untied.first, latency=0.01, development=False) as stays,
        VllmFake(untied.first, latency=0.01, development=False) as turns,
    ):
        sampler = sampler_of(stays, turns, concurrency=2)
        sampler.load(untied.first)

        def turn() -> None:
            turns.stop()
            turns.first, turns.salt = untied.second, {untied.second.path: "others"}
            turns.start()

        assert changing(sampler, turn) == drawn_by(sampler_of(stays), untied.first)  # and none of the other weights'
        assert [
            each for each in caplog.messages if f"{turns.base_url} is left out" in each and "does not serve" in each
        ]


def test_where_no_server_is_left_each_says_why(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, development=False) as one, VllmFake(untied.first) as other:
        sampler = sampler_of(one, other)
        sampler.load(untied.first)
        other.model = "another"
        one.policy = untied.second  # after its next proof
        with pytest.raises(SamplingError) as none:
            draw(sampler, MANY, DECODING)
        assert not isinstance(none.value, WeightSyncError)
        assert str(none.value).startswith("no server of the policy is left: ")
        assert f"policy at {one.base_url} does not serve policy" in str(none.value)
        assert f"policy at {other.base_url}: refused_access: 404: The model policy does not exist" in str(none.value)


def test_a_policy_is_loaded_where_one_server_of_two_is_unfit(
    sampler_of: Make, untied: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with VllmFake(untied.first) as fit, VllmFake(untied.first, longest=100) as short:
        groups = drawn_by(sampler_of(fit, short), untied.second)
        assert not short.completions
        assert groups == drawn_by(sampler_of(fit), untied.second)
        assert [each for each in caplog.messages if f"{short.base_url} is left out: sampling.max_model_len" in each]
        gone = VllmFake(untied.first)
        gone.start()
        gone.stop()
        with pytest.raises(SamplingError, match=f"no server .*{gone.port}.*max_model_len: 200"):
            sampler_of(gone, short).load(untied.first)


def test_a_server_that_began_anew_while_it_was_not_asked_is_proved_before_its_answers_count(
    sampler_of: Make, untied: Pair
) -> None:
    with VllmFake(untied.first) as server:
        sampler = sampler_of(server, concurrency=1)
        alone = drawn_by(sampler_of(server), untied.first)
        sampler.load(untied.first)
        groups, drawn = {}, sampler.sample(MANY, DECODING)
        for group in drawn:
            groups[group.prompt.id] = group.candidates
            if len(groups) == 5:
                while sampler._servers[0].taken:  # who draws has turned to something else
                    threading.Event().wait(0.01)
                server.stop()
                server.first, server.salt = untied.second, {untied.second.path: "others"}
                server.start()
        assert groups == alone


def test_an_answer_from_before_its_server_was_lost_is_asked_for_again(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, script=[None, "abort"]) as server:
        sampler = sampler_of(server, concurrency=2)
        sampler.load(untied.first)
        (way,) = sampler._servers
        life, complete = way.life, server.complete

        def late(body: dict[str, Any]) -> tuple[int, Any]:
            answer, first = complete(body), len(server.completions) == 1
            while first and way.life == life:  # the other call is broken off, and the server may be another process
                threading.Event().wait(0.001)
            return answer

        server.complete = late  # type: ignore[method-assign]
        (group,) = draw(sampler, ask(["a"], n=2), DECODING).values()
        seeds = [body["seed"] for body in server.completions]
        assert sorted(seeds) == sorted([each.seed for each in group] * 2)
        loaded = len(server.asked) - server.asked[::-1].index("/collective_rpc")
        assert server.asked[loaded:].count("/v1/completions") == 2 + len(read_probe(untied.first.path).sequences)


def test_a_sampling_that_is_stopped_early_leaves_nothing_behind(sampler_of: Make, untied: Pair) -> None:
    with VllmFake(untied.first, latency=0.01) as server:
        sampler = sampler_of(server, concurrency=2)
        sampler.load(untied.first)
        groups = iter(sampler.sample(ask([chr(ord("a") + letter) for letter in range(20)]), DECODING))
        next(groups)
        groups.close()  # type: ignore[attr-defined]
        asked = len(server.completions)
        assert asked < 80
        assert len(draw(sampler, ask(TEXTS), DECODING)) == len(TEXTS)
        assert len(server.completions) - asked <= 4 * len(TEXTS) + 2


# --------------------------------------------------------------------------------------------------- the real one
@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Tied embeddings, which a plain reload on a CPU leaves as they were."""
    folder = tmp_path_factory.mktemp("served")
    first = make_policy(folder / "first", tied=True)
    return Pair(first, perturb(first, folder / "second", seed=1))


@pytest.fixture(scope="module")
def real(checkpoints: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    log = tmp_path_factory.mktemp("log") / "server.log"
    extension = "pipeline.sampling.worker_extension.CheckpointLoader"
    with vllm_server.serve(
        checkpoints.first.path, log, "--worker-extension-cls", extension, "--max-num-seqs", "16", development=True
    ) as address:
        yield address


@pytest.fixture(scope="module")
def remote(real: str) -> Iterator[Sampler]:
    endpoint = Endpoint(model="judge", base_url=real, concurrency=8)
    config = SamplingConfig(engine="server", endpoints=(endpoint,))
    assert engine_name(config) == "server"
    sampler = start_sampler(config, Path("unused"))
    yield sampler
    sampler.close()


@pytest.mark.soak
def test_a_real_server_takes_new_weights_in_place_and_draws_as_the_engine_in_process(
    remote: Sampler, checkpoints: Pair, tmp_path: Path
) -> None:
    own = start_sampler(SamplingConfig(engine="vllm", max_num_seqs=16), tmp_path / "engine.log")
    try:
        for policy in (checkpoints.second, checkpoints.first):
            remote.load(policy)
            own.load(policy)
            for scored, expected in zip(remote.logprobs(SEQUENCES), own.logprobs(SEQUENCES), strict=True):
                assert scored == pytest.approx(expected, abs=1e-4)
            for decoding in (Decoding(24), Decoding(24, temperature=0.7, top_p=0.9, top_k=9)):
                theirs, ours = (draw(each, ask(TEXTS[1:], n=8), decoding) for each in (remote, own))
                assert {name: [each.token_ids for each in group] for name, group in theirs.items()} == {
                    name: [each.token_ids for each in group] for name, group in ours.items()
                }
                for name, group in theirs.items():
                    for each, other in zip(group, ours[name], strict=True):
                        assert (each.text, each.finish_reason, each.seed) == (
                            other.text, other.finish_reason, other.seed,
                        )  # fmt: skip
                        assert each.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-3)
                        if each.finish_reason == "stop":
                            assert each.token_ids[-1] == EOS
    finally:
        own.close()


@pytest.mark.soak
def test_a_real_server_refuses_what_it_cannot_serve_and_works_on(
    remote: Sampler, checkpoints: Pair, tmp_path: Path
) -> None:
    remote.load(checkpoints.first)
    other = make_policy(tmp_path / "other", tied=True, layers=3, seed=5)
    with pytest.raises(SamplingError):
        remote.load(other)
    remote.load(checkpoints.second)
    expected = naive_logprobs(checkpoints.second, SEQUENCES)
    for scored, known in zip(remote.logprobs(SEQUENCES), expected, strict=True):
        assert scored == pytest.approx(known, abs=1e-4)
