"""The paid calls that candidates of served models came from.

A candidate does not name its call. But what was asked follows from the prompt and the settings, which are kept, so the
request is made again, and its key with it; nothing is sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.calls.recall import PaidCall, recall
from pipeline.calls.request import Desk
from pipeline.candidates import group_of
from pipeline.config import ServedModel
from pipeline.errors import RatchetError
from pipeline.lineage.catalogue import Catalogue
from pipeline.sampling.proposals import Proposer
from pipeline.store import Artifact
from pipeline.types import Candidate

STAGE = "proposals"


def paid_answers(
    catalogue: Catalogue, ledger: Path, made: Iterable[Artifact], prompt_id: str, candidates: Sequence[Candidate]
) -> dict[int, PaidCall]:
    """By the candidate's index in its group; those that the ledger does not know are not there.

    Args:
        made: what the candidates were made from.
    """
    wanted = {(each.model, each.seed): each.index for each in candidates if each.model}
    found: dict[int, PaidCall] = {}
    for artifact in made:
        if artifact.manifest["stage"] != STAGE:
            continue
        try:
            keys = _keys(artifact, prompt_id)
            calls = recall(ledger, keys.values()).calls
        except (RatchetError, ValidationError, KeyError, TypeError) as error:
            catalogue.missing(f"{STAGE} {artifact.key}: {error}")
            continue
        name = artifact.manifest["config"]["name"]
        for seed, key in keys.items():
            if (name, seed) in wanted and key in calls:
                found[wanted[name, seed]] = calls[key]
    return found


def _keys(artifact: Artifact, prompt_id: str) -> dict[int, str]:
    """Keys of the requests behind the model's candidates for the prompt, by the candidate's seed."""
    there = group_of(artifact, prompt_id)
    if there is None:
        return {}
    said = artifact.manifest["config"]
    proposer = Proposer(said["name"], _model(said["model"]), Desk("", ""), said["seed"], said["round"], 1.0)
    by_sample = {request.sample: request.key for request in proposer.requests([there[1].prompt])}
    return {each.seed: by_sample[each.index] for each in there[1].candidates}


def _model(identity: Mapping[str, Any]) -> ServedModel:
    """From :func:`pipeline.sampling.proposals.identity` back, as far as requests depend on it."""
    settings = {name: value for name, value in identity.items() if name != "endpoint"}
    return ServedModel.model_validate(settings | {"endpoints": [identity["endpoint"]]})
