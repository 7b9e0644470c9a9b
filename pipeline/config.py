"""Every knob of a run, as pydantic models: what a recipe file may say, with defaults and limits.

Nothing here imports torch, vLLM or Prefect, so that a wrong recipe is refused at once. Unknown keys are errors.
Where a part comes in several kinds, ``type`` names the kind. How files become these models: ``pipeline.recipe``.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused, and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


# ---------------------------------------------------------------------------------------------- a user's own code
class Call(Strict):
    """A function of the user's, named ``module:function`` or ``path/to/file.py:function``."""

    function: str
    args: dict[str, Any] = {}
    """Keyword arguments, passed as they are."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not re.fullmatch(r"[^:]+:[A-Za-z_]\w*", value):
            raise ValueError("must look like 'module:function' or 'path/to/file.py:function'")
        return value


# ---------------------------------------------------------------------------------------------- the starting policy
class PretrainedPolicy(Strict):
    """A causal language model from the Hugging Face Hub or from a local directory."""

    type: Literal["pretrained"]
    path: str
    """Hub name (``org/model``) or directory."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
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


# ---------------------------------------------------------------------------------------------- prompts
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


# ---------------------------------------------------------------------------------------------- sampling
class SamplingConfig(Strict):
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """``auto`` takes vLLM where it is installed."""
    n: int = Field(8, ge=2, le=1024)
    """Candidates a prompt."""
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    max_tokens: int = Field(256, ge=1)
    logprobs: bool = True
    """Record cumulative log-probabilities (costs up to a third of throughput)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
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


# ---------------------------------------------------------------------------------------------- judges
class RegexRule(Strict):
    """Fires where the whole completion matches ``pattern`` (surrounding white space aside)."""

    type: Literal["regex"]
    pattern: str
    when: str | None = None
    """Only for prompts this pattern is found in."""
    unless: str | None = None
    """Not for prompts this pattern is found in."""
    score: float = 1.0

    @field_validator("pattern", "when", "unless")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
        return value


class LengthRule(Strict):
    """Fires where the completion has ``minimum`` to ``maximum`` words."""

    type: Literal["length"]
    minimum: int = Field(0, ge=0)
    maximum: int | None = Field(None, ge=0)
    score: float = 1.0


Rule = Annotated[RegexRule | LengthRule, Field(discriminator="type")]


class RulesJudge(Strict):
    """Score = sum of the scores of the rules that fire."""

    type: Literal["rules"]
    rules: dict[str, Rule] = Field(min_length=1)
    """Named rules; the names appear in each judgment's votes."""


class CallableJudge(Strict):
    """A function ``f(prompt: str, completions: list[str], **args) -> list[float | None]``; None abstains."""

    type: Literal["callable"]
    call: Call


class RewardModelJudge(Strict):
    """A sequence classifier with one logit: its raw logit is the score."""

    type: Literal["reward_model"]
    path: str
    """Hub name or directory."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_tokens: int = Field(4096, ge=16)
    """Conversations longer than this abstain."""
    token_budget: int = Field(16384, ge=16)
    """Tokens a forward pass, padding included."""


JudgeConfig = Annotated[RulesJudge | CallableJudge | RewardModelJudge, Field(discriminator="type")]


# ---------------------------------------------------------------------------------------------- pairing
class PairingConfig(Strict):
    rule: Literal["best_worst"] = "best_worst"
    margin: float = Field(0.0, ge=0.0)
    """Pairs whose score difference is smaller are dropped; ties (difference 0) always are."""
    margin_unit: Literal["score", "sigma"] = "score"
    """``sigma`` measures the margin in standard deviations of all the round's scores."""
    min_score_chosen: float | None = None
    """Floor on the chosen candidate's score."""
    drop_truncated: bool = False
    """Never choose a candidate that stopped at the token limit."""


# ---------------------------------------------------------------------------------------------- training
class SigmoidLoss(Strict):
    """Direct preference optimisation."""

    type: Literal["sigmoid"]
    weight: float = Field(1.0, gt=0)


class NllLoss(Strict):
    """Mean negative log-likelihood a token of the chosen completion (RPO's regulariser)."""

    type: Literal["nll"]
    weight: float = Field(1.0, gt=0)


LossConfig = Annotated[SigmoidLoss | NllLoss, Field(discriminator="type")]


class TrainerConfig(Strict):
    loss: tuple[LossConfig, ...] = Field((SigmoidLoss(type="sigmoid"),), min_length=1)
    """Weighted sum of these terms."""
    beta: float = Field(0.1, gt=0)
    reference: Literal["previous", "initial"] = "previous"
    """Policy the log-ratios are taken against: the one that sampled, or the very first."""
    learning_rate: float = Field(5e-7, gt=0)
    learning_rate_decay: float = Field(1.0, gt=0, le=1.0)
    """Factor on the learning rate a round."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_ratio: Fraction = 0.1
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1)
    """Pairs an optimiser step."""
    token_budget: int = Field(8192, ge=16)
    """Tokens a forward pass, padding included; bounds memory, not the result."""
    max_grad_norm: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16`` runs the forward pass under autocast; weights and optimiser stay in float32."""
    checkpoint_steps: int = Field(50, ge=1)
    """Optimiser steps between full-state checkpoints."""

    @field_validator("loss")
    @classmethod
    def _has_a_preference_term(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if all(term.type == "nll" for term in value):
            raise ValueError("needs one term that prefers chosen over rejected, e.g. {type = 'sigmoid'}")
        return value


# ---------------------------------------------------------------------------------------------- evaluation and gate
class ShareProbe(Strict):
    """Share of samples that match ``pattern`` as a whole."""

    type: Literal["share"]
    prompts: tuple[str, ...] = Field(min_length=1)
    samples: int = Field(100, ge=1)
    """Samples a prompt, at temperature 1."""
    pattern: str


class KlProbe(Strict):
    """KL(policy ‖ initial policy) in nats a completion, estimated on samples at temperature 1."""

    type: Literal["kl"]
    prompts: tuple[str, ...] = Field(min_length=1)
    samples: int = Field(100, ge=1)


Probe = Annotated[ShareProbe | KlProbe, Field(discriminator="type")]


class EvaluationConfig(Strict):
    judge: JudgeConfig | None = None
    """The held-out judge. None uses the labelling judge, and the report says so."""
    n: int = Field(4, ge=1)
    """Samples a held-out prompt."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind every 95% interval."""
    probes: dict[str, Probe] = {}


GATE_METRICS = (
    "win_rate", "win_rate_low", "win_rate_vs_initial", "win_rate_vs_initial_low", "score_mean", "score_delta",
    "score_delta_low", "kl", "length", "length_ratio", "truncated",
)  # fmt: skip
GATE_CONDITION = re.compile(r"\s*(?P<metric>[\w.]+)\s*(?P<operator>>=|<=|>|<)\s*(?P<limit>-?\d+(\.\d+)?(e-?\d+)?)\s*")


class GateConfig(Strict):
    require: tuple[str, ...] = ("win_rate_low >= 0.5", "kl <= 10", "length_ratio <= 1.3")
    """Conditions on the round's evaluation; all must hold. ``probes.NAME`` reads a probe."""
    on_failure: Literal["stop", "rollback"] = "stop"
    """``stop`` ends the run with the best policy; ``rollback`` goes on from it with fresh samples."""


class LimitsConfig(Strict):
    """What a run may take of its machine, and how long and how often a stage may try."""

    threads: int | None = Field(None, ge=1)
    """CPU threads of the trainer and of the engine. None lets torch take every core; small models are faster with 1."""

    retries: int = Field(1, ge=0)
    """Further tries of a stage whose engine or judge failed; finished shards are kept."""
    retry_delay: float = Field(2.0, ge=0)
    """Seconds."""
    stage_timeout: float = Field(86_400.0, gt=0)
    """Seconds a stage may take."""


class RunConfig(Strict):
    """A whole run."""

    title: str = ""
    description: str = ""
    seed: int = Field(0, ge=0)
    rounds: int = Field(3, ge=1)
    policy: PolicyConfig
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig
    pairing: PairingConfig = PairingConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _gate_reads_what_is_measured(self) -> Self:
        allowed = [*GATE_METRICS, *(f"probes.{name}" for name in self.evaluation.probes)]
        for condition in self.gate.require:
            match = GATE_CONDITION.fullmatch(condition)
            if match is None or match["metric"] not in allowed:
                raise ValueError(
                    f"gate.require: {condition!r} is not '<metric> <operator> <number>' with an operator of"
                    f" >=, <=, >, < and a metric of {', '.join(allowed)}"
                )
        return self

    @model_validator(mode="after")
    def _something_is_held_out(self) -> Self:
        if self.prompts.held_out == 0:
            raise ValueError("prompts.held_out: 0 leaves nothing to evaluate on; allowed: 1 or more")
        return self
