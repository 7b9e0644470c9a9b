"""Against a real ``prefect server``: what its pages show of a run, and what Prefect does for one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.exceptions import ParameterTypeError

from flows.ahead import ahead
from flows.console import Console
from flows.online import online_dpo
from flows.session import Session
from flows.tasks import stage
from pipeline.errors import DataError, OverdueError
from pipeline.recipe import load_recipe
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec

from .conftest import RunSmall, served
from .small import RECIPE, ROOT, engine_process, finished_files, store_of, until

STAGES = ["sample", "judge", "pair", "reference", "train", "evaluate"]


ANALYTICS = """
import flows
from prefect._internal.analytics.enabled import is_telemetry_enabled
from prefect.settings import get_current_settings
print(is_telemetry_enabled(), get_current_settings().server.analytics_enabled)
"""


class Server:
    """What the server's API says."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def filter(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        answer = self._client.post(f"/{kind}/filter", json=filters | {"limit": 200})
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def flow_run(self, name: str) -> dict[str, Any]:
        (found,) = self.filter("flow_runs", flow_runs={"name": {"any_": [name]}})
        return found

    def rounds(self, name: str) -> list[dict[str, Any]]:
        parent = {"parent_flow_run_id": {"any_": [self.flow_run(name)["id"]]}}
        return sorted(self.filter("flow_runs", flow_runs=parent), key=lambda run: str(run["name"]))

    def stages(self, flow_run: dict[str, Any], expected: int) -> list[dict[str, Any]]:
        """Task runs in the order they began, subflows aside. The server hears of them a little later."""
        runs: list[dict[str, Any]] = []

        def heard() -> bool:
            found = self.filter("task_runs", flow_runs={"id": {"any_": [flow_run["id"]]}})
            runs[:] = [
                run for run in found if run["state_type"] == "COMPLETED" and not run["name"].startswith("dpo-round")
            ]
            return len(runs) == expected

        until(heard)
        return sorted(runs, key=lambda run: str(run["start_time"]))


@pytest.fixture(scope="module")
def api(server: str) -> Iterator[Server]:
    with httpx.Client(base_url=server) as client:
        yield Server(client)


def test_a_run_is_a_flow_with_a_subflow_a_round_and_a_task_a_stage(api: Server, finished: dict[str, Any]) -> None:
    assert api.flow_run("finished")["state_type"] == "COMPLETED"
    begun = api.stages(api.flow_run("finished"), expected=3)
    assert [run["name"].rpartition("-")[0] for run in begun] == ["initial policy", "prompts", "evaluate"]
    rounds = api.rounds("finished")
    assert [(run["name"], run["state_type"]) for run in rounds] == [
        ("round 0", "COMPLETED"),
        ("round 1", "COMPLETED"),
    ]
    # In round 0 the reference is the initial policy, so that its log-probabilities serve for both.
    later = [*STAGES[:4], "initial reference", *STAGES[4:]]
    for run, stages in zip(rounds, (STAGES, later), strict=True):
        found = api.stages(run, expected=len(stages))
        assert [stage["name"].rpartition("-")[0] for stage in found] == stages


def test_each_round_has_a_table_and_a_page_with_the_gate_s_decision(api: Server, finished: dict[str, Any]) -> None:
    for entry, run in zip(finished["rounds"], api.rounds("finished"), strict=True):
        found = {artifact["type"]: artifact for artifact in _artifacts(api, run)}
        assert found.keys() == {"table", "markdown"}
        assert found["table"]["key"] == f"finished-round-{entry['round']}-table"
        assert f"{entry['pairs']} kept of {entry['groups']} groups" in found["table"]["data"]
        assert "✓ `kl <= 100`" in found["markdown"]["data"]
        assert f"## Round {entry['round']}: promote" in found["markdown"]["data"]


def _artifacts(api: Server, flow_run: dict[str, Any]) -> list[dict[str, Any]]:
    return api.filter("artifacts", flow_runs={"id": {"any_": [flow_run["id"]]}})


def test_the_config_comes_as_json_from_prefect_s_pages_and_is_validated(
    server: str, finished: dict[str, Any], tmp_path: Path
) -> None:
    with served(server):
        assert online_dpo(finished["config"], "finished", finished["workspace"], True) == finished
        wrong = finished["config"] | {"trainer": {"beta": -1}}
        with pytest.raises(ParameterTypeError, match=r"config.trainer.beta"):
            online_dpo(wrong, "wrong", str(tmp_path), True)
    assert not list(tmp_path.iterdir())


def test_a_stage_whose_engine_is_killed_is_tried_again_and_keeps_its_shards(
    api: Server, run_small: RunSmall, tmp_path: Path
) -> None:
    shards: dict[Path, tuple[int, int]] = {}

    def kill_engine() -> None:
        until(lambda: list(tmp_path.glob("artifacts/candidates/*/00001-*.parquet")))
        shards.update(finished_files(tmp_path))
        engine_process().kill()

    killer = threading.Thread(target=kill_engine)
    killer.start()
    status = run_small(
        "retried", "rounds=1", "prompts.source.call.args.ravin=1500", "sampling.n=8", "trainer.epochs=1",
        "trainer.batch_size=64", workspace=tmp_path, own_engine=True,
    )  # fmt: skip
    killer.join()
    assert status["state"] == "complete"
    (entry,) = status["rounds"]
    candidates = store_of(status).get("candidates", entry["artifacts"]["candidates"])
    assert entry["groups"] * 8 == candidates.manifest["rows"]
    assert shards.items() <= finished_files(tmp_path).items()
    assert any(file.parent == candidates.path for file in shards)
    (first, *_) = api.stages(api.rounds("retried")[0], expected=6)
    assert (first["run_count"], first["state_type"]) == (2, "COMPLETED")


def test_a_stage_that_takes_too_long_is_interrupted_wherever_it_works_in_the_main_thread(
    server: str, tmp_path: Path
) -> None:
    """A function of a user's, for example. One line says what to set."""
    config = load_recipe(str(RECIPE), RECIPE.parent, ["limits.stage_timeout=0.2"])
    session = Session(config, Run(tmp_path, "late"), Console(quiet=True))

    def work(_: Session) -> Artifact:
        def build(draft: Draft) -> Artifact:
            assert [made for *_, made in ahead(time.sleep, [(0, 0.0), (1, 600.0)], draft, 1)]
            return draft.finish()

        return session.store.make(Spec("judgments", 1), build)

    @flow
    def late() -> Artifact:
        return stage(session, "judge", work)

    with served(server), pytest.raises(OverdueError, match=r"^stage 'judge' takes longer than .* = 0\.2 seconds"):
        late()


def test_the_gate_ends_the_run(api: Server, run_small: RunSmall) -> None:
    status = run_small("stopped", 'gate.require=["kl < -1000"]')
    assert (status["state"], len(status["rounds"])) == ("stopped", 1)
    assert status["reason"].startswith("the gate stopped round 0: kl < -1000 does not hold")
    assert status["policy"]["digest"] == status["initial"]["policy_out"]
    assert api.flow_run("stopped")["state_type"] == "COMPLETED"
    assert len(api.rounds("stopped")) == 1


def test_a_mistake_in_the_data_is_not_tried_again_and_the_status_says_why(
    api: Server, run_small: RunSmall, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="held_out"):
        run_small("failed", "prompts.held_out=1000", workspace=tmp_path)
    assert api.flow_run("failed")["state_type"] == "FAILED"
    status = Run(tmp_path, "failed").status()
    assert status["state"] == "failed"
    assert status["reason"].startswith("DataError: prompts.held_out: 1000 and at least one prompt")


def test_nothing_is_told_to_prefect_s_makers() -> None:
    """In the environment of a user who has set nothing."""
    unset = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "CI")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    said = subprocess.run([sys.executable, "-c", ANALYTICS], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "False False\n", said.stderr
