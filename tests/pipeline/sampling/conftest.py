"""One engine of each kind for all the claims about engines: a start costs seconds."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from pipeline.config import SamplingConfig
from pipeline.protocols import Decoding, Sampler, SampleRequest
from pipeline.sampling import draw_seed, start_sampler
from pipeline.types import Candidate, Policy, Prompt
from tests.tiny import make_policy, perturb, token_ids


@pytest.fixture(scope="session", params=["vllm", "transformers"])
def sampler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampler]:
    if request.param == "vllm" and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    started = start_sampler(SamplingConfig(engine=request.param, max_num_seqs=16), log)
    yield started
    started.close()


@dataclass(frozen=True)
class Pair:
    """Two policies that differ in their weights alone."""

    first: Policy
    second: Policy


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("tied"), tied=True)


def _pair(path: Path, tied: bool) -> Pair:
    first = make_policy(path / "first", tied=tied)
    return Pair(first, perturb(first, path / "second", seed=1))


def ask(texts: list[str], n: int = 4) -> list[SampleRequest]:
    """A request for n candidates for each text."""
    return [
        SampleRequest(Prompt(text, text, token_ids(text)), tuple(draw_seed(0, 0, text, index) for index in range(n)))
        for text in texts
    ]


def draw(sampler: Sampler, requests: list[SampleRequest], decoding: Decoding) -> dict[str, tuple[Candidate, ...]]:
    """Candidates by prompt id."""
    return {group.prompt.id: group.candidates for group in sampler.sample(requests, decoding)}


def decoded(probabilities: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """The decoding distribution written down token by token."""
    tempered = probabilities.double() ** (1 / decoding.temperature)
    ranked = sorted(range(len(tempered)), key=lambda token: -tempered[token])[: decoding.top_k or None]
    total = sum(tempered[token] for token in ranked)
    result, reached = torch.zeros_like(tempered), 0.0
    for token in ranked:
        if reached < decoding.top_p:
            result[token] = tempered[token] / total
            reached += result[token]
    return result / result.sum()


def engine_process() -> psutil.Process:
    """The newest engine that is a child of this process."""
    children = psutil.Process().children()
    return max((p for p in children if "pipeline.sampling.worker" in p.cmdline()), key=lambda p: p.create_time())
