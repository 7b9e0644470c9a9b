"""How candidates are drawn, from which models, and by which engine."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Name, Precision, Strict
from pipeline.config.endpoint import Endpoint

OF_THE_POLICY = (
    "max_tokens", "temperature", "top_p", "top_k", "seed", "logprobs", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop_token_ids", "return_token_ids",
)  # fmt: skip
"""Fields of a request that say how the policy is sampled: those of the recipe, and those that leave it as it is."""


class _Drawing(Strict):
    n: int = Field(4, ge=1, le=1024)
    """Candidates a prompt."""
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(256, ge=1)
    system: str | None = None
    """System message for this model, where the prompt has none."""


class ServedModel(_Drawing):
    """A model that others serve. Its answers are text; they are paid for once, and kept in the ledger."""

    type: Literal["server"]
    endpoints: tuple[Endpoint, ...] = Field(min_length=1)
    """Servers of the same model; each call goes to the one with the most room. The first names the model in the
    ledger: with another one in its place nothing that was answered is found again."""
    temperature: float = Field(1.0, ge=0.0, le=10.0)

    @model_validator(mode="after")
    def _answers_can_differ(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"temperature: 0 gives one answer {self.n} times; allowed: above 0, or n = 1")
        return self

    @model_validator(mode="after")
    def _servers_of_one_model_are_asked_the_same(self) -> Self:
        if len(self.endpoints) > 1:
            if any(each.batch for each in self.endpoints):
                raise ValueError(f"endpoints: batch is set of one of {len(self.endpoints)}; allowed: of an only one")
            _check_asked_alike(self.endpoints)
        return self


def _check_asked_alike(endpoints: tuple[Endpoint, ...]) -> None:
    if differing := [each.extra for each in endpoints if each.extra != endpoints[0].extra]:
        raise ValueError(
            f"endpoints: extra is {endpoints[0].extra} and {differing[0]}; allowed: the same for all,"
            " for which of them answers is chance"
        )


class LocalModel(_Drawing):
    """A causal language model from the Hub or a directory, sampled by this machine's engine."""

    type: Literal["local"]
    path: str
    revision: str | None = None
    dtype: Precision = "auto"


Model = Annotated[ServedModel | LocalModel, Field(discriminator="type")]


class SamplingConfig(Strict):
    engine: Literal["auto", "vllm", "transformers", "server"] = "auto"
    """``auto`` takes vLLM where it is installed; ``server`` asks ``endpoints``."""
    endpoints: tuple[Endpoint, ...] = ()
    """Servers of the policy, for ``engine = "server"``: ``vllm serve`` with its development mode on, which takes new
    weights from a folder both can read (``pipeline/sampling/server.py`` has the command). Each call goes to the one
    with the most room."""
    proposers: dict[Name, ServedModel] = {}
    """Further candidates for every prompt, by models that are not trained. Judged and paired like the policy's own;
    their text is written in the policy's tokens once."""
    n: int = Field(8, ge=2, le=1024)
    """Candidates a prompt."""
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(256, ge=1)
    logprobs: bool = True
    """Record cumulative log-probabilities (costs up to a third of throughput)."""
    dtype: Precision = "auto"
    """``auto`` keeps the checkpoint's precision."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest prompt plus completion in tokens; None takes the model's own."""
    max_num_seqs: int = Field(256, ge=1)
    """Sequences the engine runs at once."""
    gpu_memory_utilization: float = Field(0.85, gt=0.0, le=1.0)
    kv_cache_mib: int | None = Field(None, ge=16)
    """Size of the key-value cache in MiB; None lets the engine choose."""
    sync_tolerance: float | None = Field(None, gt=0.0)
    """Largest difference (nats a token) between the engine's and the trainer's probe log-probabilities after a weight
    sync. None: 1e-3 in float32, 0.25 in 16 bit."""

    @model_validator(mode="after")
    def _servers_are_named_where_they_are_asked(self) -> Self:
        if (self.engine == "server") != bool(self.endpoints):
            raise ValueError(
                f"sampling.endpoints: {len(self.endpoints)} with engine {self.engine!r}; allowed: at least one with"
                " 'server', none with another"
            )
        if any(each.batch for each in self.endpoints):
            raise ValueError("sampling.endpoints: batch is set; allowed: false, for a round waits for its samples")
        return self

    @model_validator(mode="after")
    def _servers_sample_as_the_recipe_says(self) -> Self:
        _check_asked_alike(self.endpoints)
        for each in self.endpoints:
            if taken := [name for name in OF_THE_POLICY if name in each.extra]:
                raise ValueError(
                    f"sampling.endpoints: extra.{taken[0]} is {each.extra[taken[0]]!r}; allowed: none, how the policy"
                    " is sampled is said under sampling"
                )
        return self
