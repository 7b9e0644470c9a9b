"""kill -9 in the middle of thousands of calls, a fifth of them faulty: nothing that was answered is sent again."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.calls.ledger import Ledger
from pipeline.calls.request import Request
from tests.api_server import REFUSED, ApiServer, Call, completion
from tests.judges.asked import answers
from tests.judges.replies import RATING

ROOT = Path(__file__).resolve().parents[3]
FAULTS = dict.fromkeys(
    ["rate_limited", "server_error", "timeout", "cut_json", "cut_body", "cut_connection", "empty_choices", "prose",
     "wrong_schema", "refusal"], 0.02,
)  # fmt: skip
CONCURRENCY, CANDIDATES = 64, 4
JUDGE = """
import json, sys
from judges import Desk, make_judge
from pipeline.config import PointwiseJudge
from tests.judges.asked import group
config, ledger, groups, candidates = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
judge = make_judge(PointwiseJudge(**config), "rater", Desk(ledger, "run", budget=1000.0))
asked = [group(*(f"{c} of {g}" for c in range(1, candidates + 1)), prompt=str(g)) for g in range(groups)]
for start in range(0, groups, 256):
    for each in judge.judge(asked[start:start + 256]):
        print(json.dumps([each.prompt_id, each.scores, [vote.get("abstained") for vote in each.votes]]), flush=True)
"""


def key(server: ApiServer, call: Call) -> str:
    body = dict(call.body)
    return Request(body.pop("model"), server.base_url, tuple(body.pop("messages")), body).key


def stored(ledger: Path) -> int:
    try:
        reader = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
        return int(reader.execute("SELECT count(*) FROM answers").fetchone()[0])
    except sqlite3.OperationalError:  # it is being made
        return 0


def judged(command: list[str], ledger: Path, until: int | None) -> str:
    """What a run prints; it is killed as soon as the ledger has ``until`` answers."""
    printed = ledger.with_name("printed")
    with printed.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file) as process:
        while until is not None and stored(ledger) < until:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        if until is not None:
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == (0 if until is None else -signal.SIGKILL)
    return printed.read_text()


def billed(call: Call) -> float:
    usage = completion(call.body, '{"score": 1}')["usage"]
    return 0.0 if call.fault in REFUSED else (usage["prompt_tokens"] + 10 * usage["completion_tokens"]) / 1e6


@pytest.mark.parametrize(
    ("groups", "kills"), [(150, 2), pytest.param(2500, 5, marks=pytest.mark.soak)], ids=["600 calls", "10000 calls"]
)
def test_resume_after_kill_repeats_no_judge_call(tmp_path: Path, groups: int, kills: int) -> None:
    ledger, total, rng = tmp_path / "ledger.sqlite", groups * CANDIDATES, random.Random(0)
    moments = [round(total * (number + rng.random()) / (kills + 1)) for number in range(kills)]
    with ApiServer(answers(RATING, lambda text: text[0]), faults=FAULTS, latency=0.02) as server:
        endpoint = {"model": "m", "base_url": server.base_url, "timeout": 1.0, "tries": 4, "concurrency": CONCURRENCY,
                    "price_in": 1.0, "price_out": 10.0}  # fmt: skip
        config = {"type": "pointwise", "max_tokens": 100, "endpoints": [endpoint]}
        command = [sys.executable, "-c", JUDGE, json.dumps(config), str(ledger), str(groups), str(CANDIDATES)]
        for moment in [*moments, None]:
            known = Ledger(ledger).answered(key(server, call) for call in server.calls)
            before = len(server.calls)
            printed = judged(command, ledger, moment)
            assert not known & {key(server, call) for call in server.calls[before:]}

        # Sent and answered twice can only be what was on its way, not yet in the ledger, when a process was killed.
        times = Counter(key(server, call) for call in server.answered)
        assert sum(count - 1 for count in times.values()) <= kills * CONCURRENCY
        balance = Ledger(ledger).balance("run")
        assert balance.reserved == 0.0
        assert sum(billed(call) for call in server.calls) <= balance.spent + balance.unsettled

    rows = [json.loads(line) for line in printed.splitlines()]
    assert [int(prompt) for prompt, _, _ in rows] == list(range(groups))
    outcomes = Counter[str]()
    for _, scores, abstained in rows:
        for place, (score, reason) in enumerate(zip(scores, abstained, strict=True)):
            assert score == place + 1 if reason is None else score is None
            outcomes[reason or "scored"] += 1
    assert outcomes.total() == total
    assert outcomes["scored"] > 0.8 * total
    assert len(outcomes) > 1, "no fault was felt"
