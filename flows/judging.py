"""The judge stage: candidates in, a judgment a group out, shard by shard.

A panel's members are judged each for itself, so that another member costs its own calls only, and any weights are tried
for nothing; the panel's scores are then arithmetic on what the members said.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from flows.ahead import ahead
from flows.session import Workshop
from flows.side_by_side import side_by_side
from judges import Desk, make_judge
from judges.panel import calibrate, combine
from pipeline.candidates import all_groups, group_shards, groups_in
from pipeline.config import (
    CallableJudge,
    HumanJudge,
    JudgeConfig,
    PairwiseJudge,
    PanelJudge,
    PointwiseJudge,
    RewardModelJudge,
    RulesJudge,
    SingleJudge,
)
from pipeline.errors import JudgeError
from pipeline.functions import source_digest
from pipeline.policy import checkpoint_digest
from pipeline.protocols import Judge
from pipeline.store import Artifact, Draft, Spec, file_digest
from pipeline.tables import MEMBER, all_judgments, judgments_table, read_judgments
from pipeline.types import Group, Judgment

LEDGER = "ledger.sqlite"
"""In the workspace: all its runs share what was ever answered."""
ASKS_OTHERS = (PointwiseJudge, PairwiseJudge)
"""Judges whose work is waiting for answers."""
AT_ONCE = 2
"""Shards that a judge on the network works on: the second fills the server while the first waits for its last calls."""
BATCHES_AT_ONCE = 64
"""Shards whose calls go into one batch, which may take a day."""
PACE = {"token_budget", "engine", "gpu_memory_utilization"}
"""Of a reward model: how, not what. Where it is served is no matter of pace: another server may serve other weights
under the same name."""


def judge(
    session: Workshop, candidates: Artifact, config: JudgeConfig, label: str, frozen: Artifact | None = None
) -> Artifact:
    """A judgment a group, shard by shard as the candidates lie.

    ``frozen`` are the candidates that a panel fits its scales on, the same for all of the run. None: these.
    """
    if not isinstance(config, PanelJudge):
        return _judge_alone(session, candidates, config, label)
    members = _members(session, candidates, config, label)
    first = frozen or candidates
    weights = {name: member.model_dump(mode="json", exclude={"judge"}) for name, member in config.members.items()}
    spec = Spec(
        "judgments", 2, config.model_dump(mode="json", exclude={"members"}) | {"members": weights},
        {f"{MEMBER}{name}": made.key for name, made in members.items()}
        | {"candidates": candidates.key, "frozen": first.key},
    )  # fmt: skip

    def build(draft: Draft) -> Artifact:
        calibrating = members if first.key == candidates.key else _members(session, first, config, label)
        scales = calibrate(config, _said(calibrating), all_groups(first))
        said = {name: made.tables() for name, made in members.items()}
        for number, groups in enumerate(group_shards(candidates)):
            opinions = {name: read_judgments(next(tables)) for name, tables in said.items()}
            combined = combine(config, judge_name(config), opinions, groups, scales)
            draft.commit_shard(number, judgments_table(combined))
        return draft.finish({"calibration": scales.to_json()}, rows_in=groups_in(candidates))

    return session.store.make(spec, build)


def _members(session: Workshop, candidates: Artifact, config: PanelJudge, label: str) -> dict[str, Artifact]:
    """What each member says: those that ask others side by side, the rest, which share this machine, in turn."""
    asking = {
        name: partial(_judge_alone, session, candidates, member.judge, f"{label}: {name}")
        for name, member in config.members.items()
    }
    here = [name for name, member in config.members.items() if not isinstance(member.judge, ASKS_OTHERS)]
    return side_by_side(asking, session.console, here)


def _judge_alone(session: Workshop, candidates: Artifact, config: SingleJudge, label: str) -> Artifact:
    spec = Spec("judgments", 2, judge_identity(config), {"candidates": candidates.key})

    def build(draft: Draft) -> Artifact:
        count = groups_in(candidates)
        if not isinstance(config, (RulesJudge, *ASKS_OTHERS)):  # a reward model wants it, and a user's function may
            session.free_device(label)
        with (
            session.console.stage(label, count) as progress,
            closing(open_judge(config, judge_name(config), desk(session), session.config.limits.unanswered)) as made,
        ):
            done = 0
            for number, groups, judgments in ahead(
                made.judge, enumerate(group_shards(candidates)), draft, _at_once(config)
            ):
                if judgments is not None:
                    draft.commit_shard(number, judgments_table(judgments))
                done += len(groups)
                progress(done, count, "")
        return draft.finish(rows_in=count)

    return session.store.make(spec, build)


class Insistent:
    """A language model as judge that refuses to go on where more than ``share`` of its calls are given up.

    That is an outage or a wrong setting: kept, its abstentions would outlast it. The answers are in the ledger.
    """

    def __init__(self, judge: Judge, share: float) -> None:
        self.name, self._judge, self._share = judge.name, judge, share

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        from judges.llm.jury import given_up

        judgments = self._judge.judge(groups)
        calls, reasons = given_up(judgments)
        if reasons.total() > self._share * calls:
            named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
            raise JudgeError(
                f"judge {self.name!r}: {reasons.total()} of {calls} calls were given up ({named}); limits.unanswered"
                f" allows {self._share:g}. Every answer is kept: mend the endpoint and run again"
            )
        return judgments

    def close(self) -> None:
        self._judge.close()


def open_judge(config: JudgeConfig, name: str, paid_from: Desk | None, unanswered: float) -> Judge:
    """The judge, insistent where it asks others. Raises what :func:`judges.make_judge` raises."""
    made = make_judge(config, name, paid_from)
    return Insistent(made, unanswered) if isinstance(config, ASKS_OTHERS) else made


def compares(config: JudgeConfig) -> bool:
    """Whether its scores hold within a group only, so that answers of two policies must be shown together."""
    if isinstance(config, PanelJudge):
        return any(member.weight and compares(member.judge) for member in config.members.values())
    return isinstance(config, PairwiseJudge | HumanJudge)


def _at_once(config: SingleJudge) -> int:
    if not isinstance(config, ASKS_OTHERS):
        return 1
    return BATCHES_AT_ONCE if any(endpoint.batch for endpoint in config.endpoints) else AT_ONCE


def desk(session: Workshop) -> Desk:
    """What the run's judges are paid from: the workspace's ledger, the run's budget."""
    run = session.run
    return Desk(str(run.workspace / LEDGER), run.name, session.config.limits.budget)


def judge_name(config: JudgeConfig) -> str:
    """What a judge is called in judgments and reports: its model, its function, or its kind."""
    match config:
        case CallableJudge(call=call):
            return call.function
        case RewardModelJudge(path=path):
            return path
        case PointwiseJudge(endpoints=endpoints) | PairwiseJudge(endpoints=endpoints):
            return " + ".join(dict.fromkeys(endpoint.model for endpoint in endpoints))
        case RulesJudge() | HumanJudge() | PanelJudge():
            return config.type
        case _:
            assert_never(config)


def judge_identity(config: JudgeConfig) -> dict[str, Any]:
    """All of a judge that its scores depend on: settings, a function's code, a local model's weights, votes."""
    identity = config.model_dump(mode="json")
    match config:
        case CallableJudge(call=call):
            return identity | {"code": source_digest(call)}
        case RewardModelJudge(path=path):
            what = {name: value for name, value in identity.items() if name not in PACE}
            if Path(path).is_dir():  # its weights are known
                return what | {"path": checkpoint_digest(Path(path)), "base_url": None}
            return what
        case PointwiseJudge() | PairwiseJudge():
            from judges.llm.jury import identity as of_jury

            return of_jury(config)
        case HumanJudge(votes=votes):
            return identity | {"votes": file_digest(Path(votes)) if Path(votes).exists() else None}
        case PanelJudge(members=members):
            whole = {
                name: member.model_dump(mode="json", exclude={"judge"}) | {"judge": judge_identity(member.judge)}
                for name, member in members.items()
            }
            return identity | {"members": whole}
        case RulesJudge():
            return identity
        case _:
            assert_never(config)


def _said(members: Mapping[str, Artifact]) -> dict[str, list[Judgment]]:
    return {name: all_judgments(made.tables()) for name, made in members.items()}
