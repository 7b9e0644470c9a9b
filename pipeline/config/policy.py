"""The policy a run starts from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Call, Precision, Strict


class PretrainedPolicy(Strict):
    """A causal language model from the Hugging Face Hub or from a local directory."""

    type: Literal["pretrained"]
    path: str
    """Hub name (``org/model``) or directory."""
    revision: str | None = None
    dtype: Precision = "auto"
    """Precision the weights are loaded in; ``auto`` keeps the checkpoint's own."""


class ScratchPolicy(Strict):
    """A small Llama trained from scratch on a corpus before the first round: for demos, tests and studies."""

    type: Literal["scratch"]
    corpus: Call
    """Returns the training texts: a list of strings."""
    tokenizer: Literal["characters", "bpe"] = "characters"
    vocab_size: int = Field(4096, ge=64)
    """Size of the BPE vocabulary; characters make their own."""
    hidden_size: int = Field(128, ge=8)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    max_length: int = Field(128, ge=8)
    """Longest sequence in tokens; longer texts are cut."""
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of 2 × heads ({2 * self.heads})")
        return self


PolicyConfig = Annotated[PretrainedPolicy | ScratchPolicy, Field(discriminator="type")]
