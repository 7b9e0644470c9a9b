"""Where prompts come from and what is done with them."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Call, Fraction, Name, Strict


class Columns(Strict):
    """Where a row has what. Dots lead into lists and objects: ``turns.0``, ``conversations.0.value``."""

    prompt: str = "prompt"
    """A string; or a conversation: a list of messages with role and content (or from and value, as ShareGPT has them),
    or, for ``template = "chat"``, one string of turns that each begin with ``\\n\\nHuman:`` or ``\\n\\nAssistant:``."""
    answer: str | None = None
    """Reference answer for verifiers; a row without it, or with an empty one, is unusable where this is set."""
    id: str | None = None
    """Names the prompt: a row without it, or with another's, is unusable. None takes ``id`` where a row has one that is
    its own, else a digest of the text."""
    system: str | None = None
    """A system message of the row's own, for a conversation that has none; it goes before ``prompts.system``."""


class CallablePrompts(Strict):
    """Prompts from a function that returns or yields rows: ``{"prompt": …, "id"?: …, "answer"?: …, "split"?: …}``."""

    type: Literal["callable"]
    call: Call


class FilePrompts(Strict):
    """Prompts from a local file: JSON lines, JSON, CSV (each also gzipped) or Parquet. All but JSON is streamed."""

    type: Literal["file"]
    path: str
    columns: Columns = Columns()
    limit: int | None = Field(None, ge=1)
    """Read so many rows and no more."""


class HubPrompts(Strict):
    """Prompts from a data set on the Hugging Face Hub (or a directory ``datasets.load_dataset`` accepts)."""

    type: Literal["hub"]
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    columns: Columns = Columns()
    limit: int | None = Field(None, ge=1)
    """Read so many rows and no more."""
    streaming: bool = False
    """Read rows over the network as they are needed, in place of downloading the whole data set first."""


SinglePrompts = Annotated[CallablePrompts | FilePrompts | HubPrompts, Field(discriminator="type")]


class MixtureMember(Strict):
    weight: float = Field(1.0, gt=0.0)
    """Share of each round's prompts, beside the other members' weights, as long as the member has prompts left."""
    source: SinglePrompts


class MixturePrompts(Strict):
    """Prompts from several sources, by name. Of two with the same text, the earlier member's is kept."""

    type: Literal["mixture"]
    members: dict[Name, MixtureMember] = Field(min_length=1)


class Decontamination(Strict):
    """Prompts that share text with an evaluation set are dropped: no round trains on what will be measured.

    Rows marked ``split = "held_out"`` stay: they may be the very set.
    """

    against: tuple[SinglePrompts, ...] = Field(min_length=1)
    ngram: int = Field(13, ge=1)
    """Words in a row that must not be shared, in any case and punctuation (13 as in arXiv 2005.14165, appendix C). A
    shorter evaluation text must not occur whole; one of under 8 words must not be a whole prompt."""


class PromptsConfig(Strict):
    source: Annotated[CallablePrompts | FilePrompts | HubPrompts | MixturePrompts, Field(discriminator="type")]
    template: Literal["plain", "chat"] = "plain"
    """``chat`` renders through the tokenizer's chat template with a generation prompt; ``plain`` adds a BOS alone."""
    system: str | None = None
    """System message put before every chat prompt that has none."""
    cut_answers: bool = False
    """Of a conversation that ends with an answer, take what comes before it; else such a row is unusable."""
    per_round: int = Field(0, ge=0)
    """Prompts a round, taken in a fixed shuffled order without overlap until all are used; 0 takes all each round."""
    held_out: int = Field(0, ge=0)
    """Prompts kept out of every round for evaluation; rows marked ``split = "held_out"`` come first."""
    min_tokens: int = Field(1, ge=1)
    """Shorter prompts are dropped and counted."""
    max_tokens: int = Field(1024, ge=1)
    """Longer prompts are dropped and counted."""
    deduplicate: Literal["none", "exact", "near"] = "exact"
    """Drop prompts with the same text, and held-out ones from the rounds; ``near``: also those whose word 3-grams
    overlap by ``near_threshold`` with an earlier one's (Jaccard; found by MinHash, arXiv 2107.06499, then counted);
    that takes 5 KiB of memory a prompt."""
    near_threshold: float = Field(0.8, gt=0.0, lt=1.0)
    decontaminate: Decontamination | None = None
    bad_rows: Fraction = 0.05
    """Share of unusable rows above which a source itself is taken to be wrong; of its first thousand rows too, where
    none of them is usable."""

    @property
    def weights(self) -> dict[str, float] | None:
        """The members' weights by name; None where there is one source."""
        if not isinstance(self.source, MixturePrompts):
            return None
        return {name: member.weight for name, member in self.source.members.items()}

    def single_sources(self) -> Iterator[tuple[str, CallablePrompts | FilePrompts | HubPrompts]]:
        """Everything that is read for prompts or against them, with its key in the recipe."""
        if isinstance(self.source, MixturePrompts):
            for name, member in self.source.members.items():
                yield f"prompts.source.members.{name}.source", member.source
        else:
            yield "prompts.source", self.source
        for index, source in enumerate(self.decontaminate.against if self.decontaminate else ()):
            yield f"prompts.decontaminate.against.{index}", source

    @model_validator(mode="after")
    def _threshold_has_an_effect(self) -> Self:
        unread = self.near_threshold != PromptsConfig.model_fields["near_threshold"].default
        if self.deduplicate != "near" and unread:  # a default that was written down says nothing
            raise ValueError(
                f"near_threshold: {self.near_threshold} has no effect with deduplicate {self.deduplicate!r}; allowed:"
                " 'near'"
            )
        return self

    @model_validator(mode="after")
    def _lengths_leave_room(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens} is over max_tokens ({self.max_tokens}): nothing is left")
        return self

    @model_validator(mode="after")
    def _systems_are_for_chats(self) -> Self:
        for key, source in self.single_sources():
            if self.template == "plain" and not isinstance(source, CallablePrompts) and source.columns.system:
                raise ValueError(f'{key}.columns.system: {source.columns.system!r} needs prompts.template = "chat"')
        return self

    @model_validator(mode="after")
    def _weights_have_an_effect(self) -> Self:
        if isinstance(self.source, MixturePrompts) and self.per_round == 0:
            weights = {member.weight for member in self.source.members.values()}
            if len(weights) > 1:
                raise ValueError(
                    "prompts.per_round: 0 takes every prompt each round, so the members' weights have no effect;"
                    " allowed: 1 or more, or equal weights"
                )
        return self
