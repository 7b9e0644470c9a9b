"""What a sequence classifier's config and modules say of how to run it. Objects of transformers' are taken as they are,
so that nothing heavy is imported here."""

from typing import Any


def attention_of(config: Any) -> str | None:
    """The attention that computes what ``config`` means; None leaves the choice to transformers.

    The fused kernels that it would choose leave Gemma 2's soft cap of the attention logits out.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def labels_of(config: Any) -> list[str]:
    """Names of a classifier's outputs, in their order; a number where the config names none, or one twice."""
    names = [str(config.id2label.get(number, number)) for number in range(config.num_labels)]
    return [name if names.count(name) == 1 else str(number) for number, name in enumerate(names)]


def reads_last_token(config: Any) -> bool:
    """Whether the classifier is a decoder: its logit is that of the last token that is no padding."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def heads_of(model: Any) -> list[Any]:
    """The modules of a classifier that stand on its base model."""
    return [module for module in model.children() if module is not model.base_model]


def float32_heads(model: Any) -> None:
    """Let the head compute in float32 on a base model of 16 bits, as vLLM does.

    A logit of 10 in bfloat16 is a multiple of 1/16: candidates that differ by less would tie.
    """

    def cast(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.float() if hasattr(each, "is_floating_point") else each for each in inputs)

    for module in heads_of(model):
        module.float().register_forward_pre_hook(cast)


def longest_row(model: Any) -> int | None:
    """Tokens the loaded ``model`` has positions for; None where there is no end to them.

    RoBERTa's kind counts positions from after its padding id, and so has fewer than its table of them has rows.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None
