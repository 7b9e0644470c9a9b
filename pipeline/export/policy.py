"""A policy as an ordinary checkpoint: weights, tokenizer, chat template, generation config and card.

Adapters were merged when the policy was saved, so there is nothing to put together: files are copied, and the digest of
the weights proves the copy. What is Ratchet's own, or says where the checkpoint lay, is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError, StoreError
from pipeline.export.cards import Terms, model_card
from pipeline.export.dataset import finished_rounds
from pipeline.export.folder import CARD, LINEAGE, FolderDraft, check_destination, drafted, kept, read_lineage
from pipeline.export.lineage import RECIPE, lineage_of, recipe_of
from pipeline.policy import PROBE, TOLD, weights_digest
from pipeline.runs import Run
from pipeline.store import Artifact
from pipeline.store import digest as store_digest

KIND: Final = "model"
PLACES = frozenset({"_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file"})
"""Keys of a checkpoint's configs that say where it was read from."""


def find_policy(run: Run, number: int | None) -> tuple[list[dict[str, Any]], Artifact]:
    """The rounds up to the one whose policy is meant, and what it trained.

    Args:
        number: the round; None is the best one.

    Raises:
        ConfigError: there is no such round, or it trained nothing, or no round was promoted; or the run was to train
            none.
        StoreError: the policy is gone.
    """
    status = run.status()
    if "models" in status["config"]:
        raise ConfigError(f"run {run.name!r} made data of others' models and trained no policy; allowed: --what data")
    entries = finished_rounds(run, None if number is None else [number])
    best = status["best_round"]
    if number is None and best < 0:
        raise ConfigError(
            f"run {run.name!r} has promoted no policy, and its first one is not its own; {run.name}:0 to"
            f" {run.name}:{entries[-1]['round']} name those that were not promoted"
        )
    wanted = best if number is None else number
    entry = next(each for each in finished_rounds(run, [wanted]))
    if "train" not in entry["artifacts"]:
        raise ConfigError(f"round {wanted} of run {run.name!r} trained no policy, because it had no pairs")
    until = [each for each in finished_rounds(run, None) if each["round"] <= wanted]
    return until, run.store.get("train", entry["artifacts"]["train"])


def export_policy(
    run: Run, destination: Path, number: int | None = None, terms: Terms | None = None, *, keep: bool = False,
    earlier: Sequence[Path] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write the policy of the run's best round, or of round ``number``. The same run gives the same bytes.

    Args:
        destination: a new or empty folder, or an earlier export of the run's policy.
        keep: leave an earlier export of the same policy under the same terms as it is, its card included.
        earlier: other exports of the run; weights that one has of this very policy are linked, not copied again.

    Returns:
        JSON-able: ``folder``, ``round``, ``digest``, and ``files``.

    Raises:
        ConfigError: as :func:`find_policy`, or ``destination`` holds something else.
        StoreError: the policy is gone or damaged.
    """
    destination = destination.resolve()
    check_destination(destination, KIND, run.name)
    entries, artifact = find_policy(run, number)
    source, digest = artifact.path / "policy", str(artifact.info["policy"])
    names = checkpoint_files(source)
    number, terms = int(entries[-1]["round"]), terms or Terms()
    made_of = store_digest([number, digest, asdict(terms)])
    if keep and (found := kept(destination, made_of)):
        return found
    summary = {"round": number, "digest": digest, "files": len(names)}
    same = [each for each in earlier if ((read_lineage(each) or {}).get("summary") or {}).get("digest") == digest]
    with drafted(destination, KIND, run.name) as draft:
        for name in names:
            _copy(draft, source / name, same)
        if same and weights_digest(draft.path) != digest:  # somebody changed them there
            for name in names:
                _copy(draft, source / name)
        if weights_digest(draft.path) != digest:
            raise StoreError(f"{source} does not hold the weights it should ({digest[:12]}); run the round again")
        draft.text(RECIPE, recipe_of(run))
        draft.text(CARD, model_card(run, entries, number, digest, _has_template(source), terms))
        draft.finish(KIND, run.name, {"made_of": made_of, "summary": summary, **lineage_of(run, entries)})
    return {"folder": str(destination), **summary}


def checkpoint_files(source: Path) -> list[str]:
    """The files of a checkpoint that are for others: weights, configs, tokenizer, templates."""
    theirs = {PROBE, CARD, LINEAGE}
    return sorted(
        file.name
        for file in source.iterdir()
        if file.is_file() and file.suffix in (".safetensors", *TOLD) and file.name not in theirs
    )


def _copy(draft: FolderDraft, source: Path, earlier: Sequence[Path] = ()) -> None:
    if source.name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        draft.text(source.name, _without_places(source))
    else:
        draft.file(source.name, source, earlier if source.suffix == ".safetensors" else ())


def _without_places(source: Path) -> str:
    """A config without the paths it was loaded from; else as it is."""
    text = source.read_text(encoding="utf-8")
    values: Mapping[str, Any] = json.loads(text)
    kept = {key: value for key, value in values.items() if key not in PLACES or not _is_place(value)}
    return text if len(kept) == len(values) else json.dumps(kept, indent=2, ensure_ascii=False) + "\n"


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("/", "~", "."))


def _has_template(source: Path) -> bool:
    if (source / "chat_template.jinja").exists():
        return True
    config = source / "tokenizer_config.json"
    return config.exists() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
