"""Contestants by name."""

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from measure import Contestant
from models import Settings

OPPONENTS = {"installed": "TRL as installed", "ideal": "TRL, good head"}
TITLES = OPPONENTS | {"ours": "Ratchet"}


def build(name: str, model: PreTrainedModel, settings: Settings, size: int | None = None) -> Contestant:
    """``size`` is TRL's batch size in pairs (1 unless told), or our token budget (the trainer's own unless told)."""
    if settings.compile:
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):  # every decoder layer is one
                module.compile(dynamic=True)
    if name == "ours":
        from ours import TOKEN_BUDGET, Ratchet

        return Ratchet(model, settings, size or TOKEN_BUDGET)
    from opponents import Trl

    return Trl(model, settings, size or 1, ideal=name == "ideal")
