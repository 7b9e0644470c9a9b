"""A language model served elsewhere, over OpenAI's protocol: as judge, as policy, or as another's proposals."""

from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.commands import masked, masked_settings
from pipeline.config.base import Strict

OURS = ("model", "messages", "prompt", "stream", "n")
"""Fields of a request that say what is asked, or in how many pieces the answer comes."""


class Endpoint(Strict):
    """A model at an OpenAI-compatible address, and how hard it may be asked."""

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; never the key itself. Local servers need none."""
    concurrency: int = Field(64, ge=1)
    """Calls in flight."""
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    timeout: float = Field(120.0, gt=0)
    """Seconds a try."""
    tries: int = Field(8, ge=1)
    """Of one call, before it is given up."""
    price_in: float | None = Field(None, ge=0)
    """Money per million prompt tokens; a budget needs both prices."""
    price_out: float | None = Field(None, ge=0)
    batch: bool = False
    """Through the Batch API: half the price, answers within a day."""
    extra: dict[str, Any] = {}
    """Further fields of the request's body, as they are; they win over ours, but for ``OURS``, which are refused.
    ``max_completion_tokens``, which some models take in place of ``max_tokens``, replaces it."""

    @model_validator(mode="after")
    def _both_prices_or_none(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out go together; give both or neither")
        return self

    @model_validator(mode="after")
    def _no_secret_is_stored(self) -> Self:
        """Settings are kept with the run, by Prefect too."""
        told = "allowed: the name of the environment variable that holds the key, in api_key_env"
        if "@" in urlsplit(self.base_url).netloc or masked(self.base_url) != self.base_url:
            raise ValueError(f"base_url holds a user's name or a secret, which would be stored; {told}")
        if hidden := [name for name, value in self.extra.items() if masked_settings({name: value}) != {name: value}]:
            raise ValueError(f"extra.{hidden[0]} holds what looks like a secret, which would be stored; {told}")
        return self

    @model_validator(mode="after")
    def _extra_leaves_the_question_as_it_is(self) -> Self:
        if taken := [name for name in OURS if name in self.extra]:
            raise ValueError(
                f"extra.{taken[0]}: {self.extra[taken[0]]!r}; allowed: fields other than {', '.join(OURS)}"
            )
        return self
