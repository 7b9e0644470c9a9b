"""The stages of a round as plain functions: artifacts in, one artifact out, found by its key or made shard by shard.

    prompts → sample → judge → pair → reference → train      (judge: flows/judging.py; reference and
    train: flows/training.py; then flows/evaluate.py)

Nothing here knows Prefect, and nothing is made twice: all that a stage's result depends on is in its ``Spec``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

from flows.session import Session, Workplace, Workshop
from pipeline.candidates import asked_digest, shards, write_asked
from pipeline.config import PairingConfig
from pipeline.errors import SamplingError
from pipeline.pairing.artifact import Round, make_pairs, pairs_spec
from pipeline.policy import files_digest
from pipeline.protocols import Decoding, Progress, SampleRequest
from pipeline.sampling import draw_seed, engine_settings
from pipeline.store import Artifact, Draft, Spec
from pipeline.tables import candidates_table
from pipeline.types import Group, Policy, Prompt


def sample(
    session: Workshop,
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    round: int,
    n: int,
    decoding: Decoding,
    label: str,
    model: str = "",
) -> Artifact:
    """``n`` candidates a prompt from ``policy``, in prompt order. Where several models answer the same prompts,
    ``model`` is the name of this one, and makes its draws its own."""
    config = {
        "seed": session.config.seed, "round": round, "n": n, "decoding": asdict(decoding),
        "dtype": session.config.sampling.dtype, "max_model_len": session.config.sampling.max_model_len,
        **engine_settings(session.config.sampling),
        "prompts": asked_digest(prompts), **({"model": model} if model else {}),
    }  # fmt: skip
    drawn_for = f"{model}/" if model else ""
    # The tokenizer says how ids read, and the generation config which of them end a completion.
    inputs = {"policy": policy.digest, "files": files_digest(policy.path)}
    spec = Spec("candidates", 5, config, inputs)

    def build(draft: Draft) -> Artifact:
        already = session.engine_seconds
        write_asked(draft, prompts)
        sampler = session.serve(policy)
        todo = {number: shard for number, shard in enumerate(shards(prompts)) if not draft.has_shard(number)}
        requests = (
            SampleRequest(
                prompt, tuple(draw_seed(session.config.seed, round, f"{drawn_for}{prompt.id}", i) for i in range(n))
            )
            for shard in todo.values()
            for prompt in shard
        )
        with session.console.stage(label, len(prompts)) as progress:
            try:
                for number, groups in _as_shards_fill(sampler.sample(requests, decoding), todo, progress):
                    draft.commit_shard(number, candidates_table(groups))
            except SamplingError:
                session.lost_engine()
                raise
        info = {"policy": policy.digest, "engine_seconds": session.engine_seconds - already}
        return draft.finish(info, rows_in=n * len(prompts))

    return session.store.make(spec, build)


def sample_round(session: Session, policy: Policy, prompts: Sequence[Prompt], round: int) -> Artifact:
    """The round's candidates, decoded as the recipe says."""
    sampling = session.config.sampling
    decoding = Decoding(sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k, sampling.logprobs)
    return sample(session, policy, prompts, round=round, n=sampling.n, decoding=decoding, label="sample")


def pair(session: Workshop, candidates: Artifact, judgments: Artifact, round: int) -> Artifact:
    """Preference pairs, a group's together, and, in ``dropped.parquet``, why every other group gave none."""
    config = session.config
    return pair_by(session, candidates, judgments, config.pairing, round, config.limits.threads)


def pair_by(
    place: Workplace, candidates: Artifact, judgments: Artifact, config: PairingConfig, round: int, threads: int | None
) -> Artifact:
    """As :func:`pair`, by any config. ``threads`` shards are worked on at once; see ``make_pairs``."""

    def build(draft: Draft) -> Artifact:
        source = Round(candidates, judgments)
        with place.console.stage("pair", source.groups) as progress:
            return make_pairs(draft, source, config, threads, progress)

    return place.store.make(pairs_spec(candidates, judgments, config, round), build)


def _as_shards_fill(
    groups: Iterable[Group], todo: Mapping[int, Sequence[Prompt]], progress: Progress
) -> Iterator[tuple[int, list[Group]]]:
    """Groups arrive in any order; a shard leaves as soon as its last group is in, its groups in prompt order."""
    home = {prompt.id: number for number, shard in todo.items() for prompt in shard}
    waiting: dict[int, dict[str, Group]] = {number: {} for number in todo}
    for done, group in enumerate(groups, 1):
        number = home[group.prompt.id]
        waiting[number][group.prompt.id] = group
        progress(done, len(home), "")
        if len(waiting[number]) == len(todo[number]):
            filled = waiting.pop(number)
            yield number, [filled[prompt.id] for prompt in todo[number]]
