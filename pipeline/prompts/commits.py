"""Which commit of a Hub data set prompts are read from: settled once, since a branch moves on."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.config import HubPrompts, MixturePrompts, PromptsConfig, SinglePrompts

PATIENCE = 10.0
"""Seconds that the Hub has to answer."""


def commits_of(config: PromptsConfig, known: Mapping[str, str]) -> dict[str, str]:
    """The commit of each data set that is read from the Hub, by its key in the recipe; those that are ``known`` as they
    are. One that the Hub does not tell of is left out: reading it says why, or takes what the cache has."""
    return {
        key: commit
        for key, source in config.single_sources()
        if isinstance(source, HubPrompts) and (commit := known.get(key) or _commit(source))
    }


def at_commits(config: PromptsConfig, commits: Mapping[str, str]) -> PromptsConfig:
    """The settings with those commits as the sources' revisions."""

    def at(source: SinglePrompts, key: str) -> SinglePrompts:
        return source.model_copy(update={"revision": commits[key]}) if key in commits else source

    settled = iter([at(source, key) for key, source in config.single_sources()])  # the prompts' own come first
    source: SinglePrompts | MixturePrompts
    if isinstance(config.source, MixturePrompts):
        members = {
            name: member.model_copy(update={"source": next(settled)}) for name, member in config.source.members.items()
        }
        source = config.source.model_copy(update={"members": members})
    else:
        source = next(settled)
    against = config.decontaminate and config.decontaminate.model_copy(update={"against": tuple(settled)})
    return config.model_copy(update={"source": source, "decontaminate": against})


def _commit(source: HubPrompts) -> str | None:
    from huggingface_hub import HfApi

    if Path(source.path).expanduser().is_dir():
        return None
    try:
        commit: str | None = HfApi().dataset_info(source.path, revision=source.revision, timeout=PATIENCE).sha
    except Exception:  # the client raises anything, as does the library that is to read the data set, which tells it
        return None
    return commit
