from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from judges import make_judge
from pipeline.config import RewardModelJudge
from tests.tiny import make_policy
from tests.tiny_chat import reward_model
from trainers.checkpoints import load_model


def test_models_loaded_by_threads_at_once_leave_the_next_one_tied(tmp_path: Path) -> None:
    """A panel makes its judges so, beside the policy. Unlocked, a handful of loads untied all that followed."""
    policy = make_policy(tmp_path / "policy", tied=True)
    config = RewardModelJudge(type="reward_model", path=str(reward_model(tmp_path / "judge")))
    loads: list[Callable[[], object]] = [lambda: load_model(policy.path), lambda: make_judge(config, "rm")]
    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(load) for load in loads * 10]:
            each.result()
    after = load_model(policy.path)
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight
