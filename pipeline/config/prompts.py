"""Where prompts come from and what is done with them."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Call, Strict


class CallablePrompts(Strict):
    """Prompts from a function that returns rows: ``{"prompt": …, "id"?: …, "answer"?: …, "split"?: …}``."""

    type: Literal["callable"]
    call: Call


class FilePrompts(Strict):
    """Prompts from a local JSONL file, one object a line."""

    type: Literal["file"]
    path: str
    column: str = "prompt"
    """Key of the prompt: a string, or a list of ``{"role", "content"}`` messages."""
    answer_column: str | None = None


class HubPrompts(Strict):
    """Prompts from a data set on the Hugging Face Hub (or a directory ``datasets.load_dataset`` accepts)."""

    type: Literal["hub"]
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    column: str = "prompt"
    answer_column: str | None = None


class PromptsConfig(Strict):
    source: Annotated[CallablePrompts | FilePrompts | HubPrompts, Field(discriminator="type")]
    template: Literal["plain", "chat"] = "plain"
    """``chat`` renders through the tokenizer's chat template with a generation prompt; ``plain`` adds a BOS alone."""
    system: str | None = None
    """System message put before every chat prompt that has none."""
    per_round: int = Field(0, ge=0)
    """Prompts a round, taken in a fixed shuffled order without overlap until all are used; 0 takes all each round."""
    held_out: int = Field(0, ge=0)
    """Prompts kept out of every round for evaluation; rows marked ``split = "held_out"`` come first."""
    max_tokens: int = Field(1024, ge=1)
    """Longer prompts are dropped and counted."""
    deduplicate: bool = True
    """Drop prompts with the same text, and held-out ones from the rounds."""
