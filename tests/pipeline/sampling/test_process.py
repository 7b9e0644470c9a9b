"""Claims about the engine's process: it ends with its parent, and its own end is never a hang."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from pipeline.config import SamplingConfig
from pipeline.errors import EngineDiedError, SamplingError
from pipeline.protocols import Decoding, Sampler
from pipeline.sampling import draw_seed, start_sampler
from pipeline.sampling.process import Child
from pipeline.types import Policy

from .conftest import Pair, ask, draw, engine_process

PARENT = """
import itertools, sys
from pathlib import Path
from pipeline.config import SamplingConfig
from pipeline.policy import read_policy
from pipeline.protocols import Decoding, SampleRequest
from pipeline.sampling import start_sampler
from pipeline.types import Prompt

sampler = start_sampler(SamplingConfig(engine=sys.argv[1]), Path(sys.argv[2]))
print("started", flush=True)
sampler.load(read_policy(Path(sys.argv[3])))
for _ in sampler.sample(itertools.repeat(SampleRequest(Prompt("a", "a", (1, 5)), (0, 1))), Decoding(200)):
    print("sampling", flush=True)
"""


@pytest.mark.parametrize(("engine", "moment"), [("vllm", "started"), ("transformers", "sampling")])
def test_killing_the_parent_leaves_no_engine(engine: str, moment: str, untied: Pair, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, script, engine, tmp_path / "engine.log", untied.first.path],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        while parent.stdout.readline().strip() != moment:
            assert parent.poll() is None
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@pytest.fixture
def own_sampler(tmp_path: Path) -> Iterator[Sampler]:
    started = start_sampler(SamplingConfig(engine="transformers", max_num_seqs=4), tmp_path / "engine.log")
    yield started
    started.close()


def kill(process: psutil.Process) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # leaves it to its parent to collect


def test_a_killed_engine_is_reported_and_load_starts_another(own_sampler: Sampler, untied: Pair) -> None:
    own_sampler.load(untied.first)
    expected = draw(own_sampler, ask(["abc"]), Decoding(8))
    groups = own_sampler.sample(ask(["abc"]) * 1000, Decoding(200))
    next(groups)
    kill(engine_process())
    with pytest.raises(EngineDiedError, match=r"ended \(exit code -9\); its last words, in .*engine\.log"):
        list(groups)
    with pytest.raises(EngineDiedError, match="load a policy first"):
        draw(own_sampler, ask(["abc"]), Decoding(8))
    own_sampler.load(untied.first)
    assert draw(own_sampler, ask(["abc"]), Decoding(8)) == expected
    kill(engine_process())
    own_sampler.load(untied.first)  # one that ended between two calls is replaced without a word
    assert draw(own_sampler, ask(["abc"]), Decoding(8)) == expected


def test_a_silent_engine_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    child = Child(
        "pipeline.sampling.worker", ["transformers", SamplingConfig().model_dump_json()], tmp_path / "engine.log"
    )
    os.kill(child.process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        child.receive(timeout=0.1)
    child.kill()
    assert child.ended


def test_an_engine_that_cannot_start_says_why(untied: Pair, tmp_path: Path) -> None:
    sampler = start_sampler(SamplingConfig(engine="transformers"), tmp_path / "engine.log")
    engine = engine_process()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "probe.json").write_bytes((untied.first.path / "probe.json").read_bytes())
    with pytest.raises(SamplingError, match="the engine failed"):
        sampler.load(Policy(untied.first.digest, broken))
    sampler.close()
    sampler.close()
    assert not engine.is_running()


def test_asking_for_vllm_without_vllm_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sampling.find_spec", lambda name: None)
    with pytest.raises(SamplingError, match="pip install vllm"):
        start_sampler(SamplingConfig(engine="vllm"), tmp_path / "engine.log")


def test_seeds_are_positive_distinct_and_stay_the_same() -> None:
    seeds = [draw_seed(7, round, f"p{p}", i) for round in range(3) for p in range(50) for i in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed(0, 1, "ravin", 2) == draw_seed(0, 1, "ravin", 2) != draw_seed(0, 2, "ravin", 1)
    assert draw_seed(0, 0, "ravin", 0) == 6712760481957944486


def test_more_prompt_tokens_than_vllm_takes_in_a_step_are_no_trouble(untied: Pair, tmp_path: Path) -> None:
    """On a CPU it cannot seed a request whose prompt it reads in pieces."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    letters = "abcdefghijklmnop"
    texts = [f"{first}{second} who eats pizza with ravin and who does not" for first in letters for second in letters]
    with closing(start_sampler(SamplingConfig(engine="vllm", max_num_seqs=256), tmp_path / "log")) as sampler:
        sampler.load(untied.first)
        assert draw(sampler, ask(texts, n=2), Decoding(max_tokens=4, logprobs=False)).keys() == set(texts)
