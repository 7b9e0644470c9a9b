"""The replay stage: a round's pairs, and with them some of earlier rounds and of another run, to be trained on.

fresh pairs, earlier pairs → replay/<key>/     rows as they were, each with its own round and id
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from flows.session import Session
from flows.sources import find_policy, pairs_of_run
from pipeline.errors import ConfigError
from pipeline.pairing.replay import Hand, Lots, drawable, gathered, lots, replayed
from pipeline.runs import Run
from pipeline.store import Artifact, Draft, Spec
from pipeline.types import Policy

OFFLINE = "pairing.replay.offline"
AT_ONCE = 4096
"""Drawn pairs that make a shard, or a few more."""


def replay(session: Session, pairs: Artifact, earlier: Sequence[Artifact], round: int) -> Artifact:
    """The fresh pairs first, then the replayed ones, in the order in which they were made.

    A pair that lies in several of the artifacts is there once. ``dropped`` counts those that are not: ``repeated``,
    and ``not_drawn``.
    """
    config, seed = session.config.pairing.replay, session.config.seed
    pools = [*earlier, *offline_pairs(session)]
    inputs = {"pairs": pairs.key} | {f"earlier {number}": pool.key for number, pool in enumerate(pools)}
    spec = Spec("replay", 2, {"share": config.share, "seed": seed, "round": round}, inputs)

    def build(draft: Draft) -> Artifact:
        with session.console.stage("replay") as progress:
            draw = f"{seed} {round}"
            fresh, others = int(pairs.manifest["rows"]), sum(int(pool.manifest["rows"]) for pool in pools)
            candidates = drawable(gathered(_lots(pools, draw)), gathered(_lots([pairs], draw)))
            drawn = candidates[: replayed(fresh, config.share)]
            rounds = Counter[int]()
            for number, table in enumerate(_mixed(pairs, pools, drawn, draw)):
                rounds.update(table["round"].to_pylist())
                if not draft.has_shard(number):
                    draft.commit_shard(number, table)
            total = fresh + len(drawn)
            progress(total, total, f"{fresh} fresh, {len(drawn)} replayed")
        return draft.finish(
            {"fresh": fresh, "replayed": len(drawn), "rounds": {str(one): rounds[one] for one in sorted(rounds)}},
            rows_in=fresh + others,
            dropped={"repeated": others - len(candidates), "not_drawn": len(candidates) - len(drawn)},
        )

    return session.store.make(spec, build)


def offline_pairs(session: Session) -> list[Artifact]:
    """Pairs of another run, by round. Raises ConfigError where it has none."""
    given = session.config.pairing.replay.offline
    return [] if given is None else pairs_of_run(given, session.run.workspace, OFFLINE)


def check_offline(session: Session) -> None:
    """Refuse another run that cannot be replayed, before anything starts.

    Raises:
        ConfigError: there is none of that name; it has no pairs, or no policy to say whose token ids they are in; or
            its pairs may become more, so that this run, taken up again, would draw others and train anew.
    """
    given = session.config.pairing.replay.offline
    if given is None:
        return
    offline_pairs(session)
    name, _, number = given.partition(":")
    find_policy(name, session.run.workspace, OFFLINE)
    growing = name == session.run.name or Run(session.run.workspace, name).status()["state"] == "running"
    if growing and not number:
        raise ConfigError(f"{OFFLINE} {given!r} is a run that goes on; allowed: one that has ended, or RUN:ROUND")


def check_vocabulary(session: Session, policy: Policy) -> None:
    """Called before the first round. Raises ConfigError where the other run's pairs are in another vocabulary's ids."""
    given = session.config.pairing.replay.offline
    if given is None:
        return
    other = find_policy(given.partition(":")[0], session.run.workspace, OFFLINE)
    assert isinstance(other, Policy), "a run's policy is in the store"
    if other.path != policy.path and session.tokenizer(other).get_vocab() != session.tokenizer(policy).get_vocab():
        raise ConfigError(f"{OFFLINE} {given!r} is of a run with another vocabulary; allowed: one with the same")


def _lots(artifacts: Iterable[Artifact], seed: str) -> list[Lots]:
    """Of all pairs, a shard's together."""
    return [lots(table["pair_id"].to_pylist(), seed) for each in artifacts for table in each.tables(["pair_id"])]


def _mixed(pairs: Artifact, pools: Iterable[Artifact], drawn: Lots, seed: str) -> Iterator[pa.Table]:
    """The fresh shards as they are, then the drawn rows, some thousand at a time."""
    yield from pairs.tables()
    hand, waiting = Hand(drawn), list[pa.Table]()
    for pool in pools:
        for table in pool.tables():
            waiting.append(table.filter(pa.array(hand.take(lots(table["pair_id"].to_pylist(), seed)))))
            if sum(map(len, waiting)) >= AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting.clear()
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)
