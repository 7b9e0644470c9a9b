"""Workspaces made by hand through the store, as rounds leave them, for the tests of lineage: no engine, no training.

A candidate's text begins with the digit that every judge here gives it. Prompt k of a round gets ``n`` candidates.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from flows.judging import LEDGER, judge_identity
from judges import Desk, make_judge
from judges.panel import calibrate, combine
from pipeline import config as knobs
from pipeline.candidates import SHARD, all_groups, asked_digest, group_shards, shards
from pipeline.config import RunConfig
from pipeline.recipe import load_recipe
from pipeline.runs import Run
from pipeline.sampling.proposals import Proposer, identity
from pipeline.store import Artifact, Spec, Store, digest
from pipeline.tables import judgments_table, pairs_table, prompts_table, read_judgments
from pipeline.types import Candidate, GateDecision, Group, PreferencePair, Prompt, RoundState
from tests.api_server import ApiServer
from tests.judges.asked import JURY, answers
from tests.judges.replies import COMPARISON, RATING
from tests.stored import make, make_groups

RECIPE = Path(__file__).parent / "flows" / "small.toml"
DECODING = {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "logprobs": True}
RULES = knobs.RulesJudge.model_validate({"type": "rules", "rules": {"high": {"type": "regex", "pattern": "[5-9].*"}}})
BASE, FIRST, SECOND = (hashlib.sha256(name.encode()).hexdigest() for name in ("base", "first", "second"))
"""Digests of the policies of two rounds."""


def rate(text: str) -> str:
    """A language model's rating: the text's digit."""
    return text[0]


def compare(first: str, second: str) -> str:
    return "A" if first[0] > second[0] else "B" if second[0] > first[0] else "C"


def rater(server: ApiServer, **more: Any) -> knobs.PointwiseJudge:
    return knobs.PointwiseJudge(type="pointwise", endpoints=[_endpoint(server, "rater")], **more)


def comparer(server: ApiServer) -> knobs.PairwiseJudge:
    return knobs.PairwiseJudge(type="pairwise", endpoints=[_endpoint(server, "comparer")])


def panel(**members: knobs.SingleJudge) -> knobs.PanelJudge:
    return knobs.PanelJudge(type="panel", members={name: {"judge": judge} for name, judge in members.items()})


def api(*, pairwise: bool = False, **settings: Any) -> ApiServer:
    return ApiServer(answers(COMPARISON, compare) if pairwise else answers(RATING, rate), **settings)


class Place:
    """A workspace."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.store = Store(workspace / "artifacts")

    def policy(self) -> Artifact:
        """The first one, of digest ``BASE``."""
        config = {"type": "pretrained", "revision": None, "dtype": "auto"}
        return make(self.store, Spec("policy", 1, config, {"weights": "0" * 64}), info={"policy": BASE})

    def prompts(self, count: int = 4) -> Artifact:
        config = {"source": {"type": "file", "path": "questions.jsonl"}, "max_tokens": 30}
        table = prompts_table(prompts(count))
        return make(self.store, Spec("prompts", 3, config, {"policy": self.policy().key}), [table, table.slice(0, 0)])

    def candidates(
        self, round: int = 0, policy: str | None = BASE, count: int = 4, n: int = 4, proposers: Sequence[str] = ()
    ) -> Artifact:
        """``policy`` None: other models' text alone, without token ids."""
        asked = prompts(count)
        config = {"seed": 7, "round": round, "n": n, "decoding": DECODING, "prompts": asked_digest(asked)}
        spec = Spec(
            "candidates", 3, config | ({"models": list(proposers)} if proposers else {}),
            {} if policy is None else {"policy": policy},
        )  # fmt: skip
        groups = [Group(prompt, _candidates(prompt, round, policy, n, proposers)) for prompt in asked]
        return make_groups(self.store, spec, groups, {"policy": policy})

    def judgments(self, candidates: Artifact, config: knobs.SingleJudge = RULES, name: str = "rules") -> Artifact:
        """By the real judge, shard by shard; a language model's calls go through the workspace's ledger."""
        judge = make_judge(config, name, Desk(str(self.workspace / LEDGER), "demo"))
        tables = [judgments_table(judge.judge(shard)) for shard in group_shards(candidates)]
        judge.close()
        return make(self.store, Spec("judgments", 2, judge_identity(config), {"candidates": candidates.key}), tables)

    def panel(self, candidates: Artifact, config: knobs.PanelJudge) -> Artifact:
        made = {
            name: self.judgments(candidates, member.judge, member.judge.type) for name, member in config.members.items()
        }
        said = {name: [each for table in made[name].tables() for each in read_judgments(table)] for name in made}
        groups = all_groups(candidates)
        judged = combine(config, "panel", said, groups, calibrate(config, said, groups))
        spec = Spec(
            "judgments", 2, config.model_dump(mode="json", exclude={"members"}),
            {f"member {name}": each.key for name, each in made.items()} | {"candidates": candidates.key},
        )  # fmt: skip
        return make(self.store, spec, [judgments_table(shard) for shard in shards(judged)])

    def pairs(self, candidates: Artifact, judgments: Artifact, round: int = 0, **settings: Any) -> Artifact:
        """Best against worst; ``take_off`` is taken off the chosen score, as a penalty would be."""
        off = settings.get("take_off", 0.0)
        scores = {
            each.prompt_id: each.scores for table in judgments.tables() for each in read_judgments(table)
        }  # fmt: skip
        made = [
            _pair(group, scores[group.prompt.id], round, candidates.key, judgments.key, off)
            for group in all_groups(candidates)
        ]
        config = {"rule": "best_worst", "margin": 0.0, "round": round, **settings}
        spec = Spec("pairs", 3, config, {"candidates": candidates.key, "judgments": judgments.key})
        return make(self.store, spec, [pairs_table(made)])

    def replay(self, pairs: Artifact, earlier: Artifact, drawn: str) -> Artifact:
        """Fresh pairs, and one earlier pair again."""
        table = earlier.table()
        again = table.filter(pc.equal(table["pair_id"], drawn))
        spec = Spec("replay", 1, {"share": 0.2}, {"pairs": pairs.key, "earlier 0": earlier.key})
        return make(self.store, spec, [*pairs.tables(), again])

    def proposals(self, name: str, server: ApiServer, count: int = 4, n: int = 2) -> Artifact:
        """By the real proposer, through the workspace's ledger."""
        endpoint = _endpoint(server, name, knobs.Endpoint)
        model = knobs.ServedModel(type="server", endpoints=[endpoint], n=n, system="Be brief")
        config = {"name": name, "seed": 7, "round": 0, "model": identity(model)}
        proposer = Proposer(name, model, Desk(str(self.workspace / LEDGER), "demo"), 7, 0, 1.0)
        made = proposer.propose(prompts(count))
        proposer.close()
        return make_groups(self.store, Spec("proposals", 1, config), made.groups, {"model": name})

    def together(self, sources: Mapping[str, Artifact]) -> Artifact:
        """One group a prompt of several models' candidates."""
        spec = Spec("candidates", 4, {}, {f"candidates {name}".rstrip(): each.key for name, each in sources.items()})
        parts = list(zip(*(all_groups(each) for each in sources.values()), strict=True))
        groups = [Group(each[0].prompt, _one_after_another(list(sources), each)) for each in parts]
        return make_groups(self.store, spec, groups)

    def train(self, pairs: Artifact, start: str, end: str, held_out: float = 0.0) -> dict[str, Artifact]:
        reference = make(self.store, Spec("reference", 3, {"dtype": "auto"}, {"pairs": pairs.key, "policy": start}))
        inputs = {"pairs": pairs.key, "policy": start, "files": "0" * 64, "reference": reference.key}
        settings = knobs.TrainerConfig(beta=0.25).model_dump(mode="json") | {"seed": 7, "held_out": held_out}
        trained = make(self.store, Spec("train", 4, settings, inputs), info={"policy": end})
        return {"reference": reference, "train": trained}

    def round(self, number: int, start: str, end: str | None = None, **more: Any) -> dict[str, Artifact]:
        """A whole one, judged by the rules; with ``end`` it trained that policy."""
        candidates = self.candidates(number, start, **more)
        judgments = self.judgments(candidates)
        made = {"candidates": candidates, "judgments": judgments}
        made["pairs"] = self.pairs(candidates, judgments, number)
        return made | ({} if end is None else self.train(made["pairs"], start, end))

    def run(self, name: str, *rounds: Mapping[str, Artifact], prompts: bool = True) -> Run:
        """A run's folder that says these rounds were its."""
        run = Run(self.workspace, name)
        with run.held():
            run.begin(settings_of_run())
        first = {"policy": self.policy()} | ({"prompts": self.prompts()} if prompts else {})
        run.save_initial({"round": -1, "policy_out": BASE, "artifacts": {stage: a.key for stage, a in first.items()}})
        for number, made in enumerate(rounds):
            run.save_round(_state(number, made))
        return run


def settings_of_run() -> RunConfig:
    return load_recipe(str(RECIPE), RECIPE.parent)


def prompts(count: int) -> list[Prompt]:
    """Chats, but for the first."""
    return [
        Prompt(
            f"p{at}", f"question {at}?", (1, 2, at), answer="42" if at == 0 else None, source="questions",
            messages=() if at == 0 else ({"role": "user", "content": f"question {at}?"},),
        )
        for at in range(count)
    ]  # fmt: skip


def pairs_of(artifact: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = artifact.table().to_pylist()
    return rows


def shard_boundary() -> int:
    """Prompts that need two shards."""
    return SHARD + 2


def _endpoint(server: ApiServer, model: str, kind: type[knobs.Endpoint] = knobs.JudgeEndpoint) -> dict[str, Any]:
    settings = JURY | {"model": model, "base_url": server.base_url, "price_in": 2.0, "price_out": 10.0}
    return {name: value for name, value in settings.items() if name in kind.model_fields}


def _candidates(
    prompt: Prompt, round: int, policy: str | None, n: int, proposers: Sequence[str]
) -> tuple[Candidate, ...]:
    """Digits 2, 3, … by the policy, and 9 and 4 by the proposers, after it."""
    own = n if policy is not None else 0
    texts = [(f"{2 + at} of round {round} to {prompt.id}", "") for at in range(own)]
    texts += [(f"{9 - 5 * at} by {name} to {prompt.id}", name) for at, name in enumerate(proposers)]
    return tuple(
        Candidate(
            at, () if policy is None else (5, 6, at), text, "length" if at == 1 else "stop", 100 + at,
            None if name else -1.5, name,
        )
        for at, (text, name) in enumerate(texts)
    )  # fmt: skip


def _one_after_another(names: Sequence[str], groups: Sequence[Group]) -> tuple[Candidate, ...]:
    said = [
        (name, each) for name, group in zip(names, groups, strict=True) for each in group.candidates
    ]  # fmt: skip
    return tuple(replace(each, index=place, model=name) for place, (name, each) in enumerate(said))


def _pair(
    group: Group, scores: Sequence[float | None], round: int, candidates: str, judgments: str, off: float
) -> PreferencePair:
    known = [(score, at) for at, score in enumerate(scores) if score is not None]
    (high, best), (low, worst) = max(known), min(known)
    chosen, rejected = group.candidates[best], group.candidates[worst]
    identity = digest([candidates, judgments, group.prompt.id, best, worst])[:32]
    return PreferencePair(identity, group.prompt, chosen, rejected, high - off, low, round, candidates, judgments)


def _state(number: int, made: Mapping[str, Artifact]) -> RoundState:
    trained = made.get("train")
    start = str(made["candidates"].info["policy"])
    return RoundState(
        number, start, str(trained.info["policy"]) if trained else start, 1, 1, 1, {}, {}, {}, {}, {},
        GateDecision("promote", "better"), {}, {stage: artifact.key for stage, artifact in made.items()},
    )  # fmt: skip
