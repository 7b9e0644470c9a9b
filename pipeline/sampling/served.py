"""What an engine must know about a policy, and how token ids become records: the same for every engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from pipeline.config import SamplingConfig
from pipeline.errors import SamplingError
from pipeline.policy import Probe, prove, read_probe, tensor_shapes
from pipeline.protocols import Decoding, SampleRequest
from pipeline.types import Candidate, Policy

INCIDENTAL = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
"""Entries of a model's config that do not change what its tensors mean."""


def nothing() -> None:
    """The tick of an engine that nobody watches. A tick is called after every engine step and may raise to stop it."""


class StaleEngine(Exception):
    """This engine cannot serve the policy it was given; a new one may. Never leaves the engine's process."""


@dataclass(frozen=True, slots=True)
class Served:
    """A policy as an engine sees it."""

    policy: Policy
    architecture: tuple[dict[str, Any], dict[str, tuple[int, ...]], str]
    """Model config, tensor shapes and precision: policies that agree in these can replace each other in place."""
    dtype: str
    """Precision it is served in: ``float32``, ``bfloat16`` or ``float16``."""
    max_model_len: int
    """Longest prompt plus completion, in tokens."""
    tolerance: float
    """Largest difference to the probe, in nats a token."""
    probe: Probe
    tokenizer: Any
    stop_ids: frozenset[int]
    """End-of-sequence ids: the generation config's (there may be several) and the tokenizer's."""

    @classmethod
    def read(cls, policy: Policy, config: SamplingConfig) -> Self:
        """Raises DataError where the policy has no probe."""
        probe = read_probe(policy.path)
        model = AutoConfig.from_pretrained(policy.path)
        dtype = probe.dtype if config.dtype == "auto" else config.dtype
        exact = probe.dtype == dtype == "float32"
        tokenizer = AutoTokenizer.from_pretrained(policy.path)
        entries = {name: value for name, value in model.to_dict().items() if name not in INCIDENTAL}
        longest = int(model.get_text_config().max_position_embeddings)
        return cls(
            policy=policy,
            architecture=(entries, tensor_shapes(policy.path), dtype),
            dtype=dtype,
            max_model_len=min(longest, config.max_model_len or longest),
            tolerance=config.sync_tolerance or (1e-3 if exact else 0.25),
            probe=probe,
            tokenizer=tokenizer,
            stop_ids=_stop_ids(policy.path, model, tokenizer),
        )

    def prove(self, measured: Sequence[Sequence[float]]) -> None:
        """Raises WeightSyncError where ``measured``, the probe's log-probabilities, are another policy's."""
        prove(self.policy, measured, self.tolerance)

    def room(self, request: SampleRequest, decoding: Decoding) -> int:
        """Tokens a completion may have. One position stays free, so that every sample can be scored afterwards.

        Raises:
            SamplingError: the prompt leaves no room for a single token.
        """
        length = len(request.prompt.token_ids)
        if not 1 <= length <= self.max_model_len - 2:
            raise SamplingError(
                f"prompt {request.prompt.id!r} has {length} tokens; allowed: 1 to {self.max_model_len - 2}"
                " (sampling.max_model_len)"
            )
        return min(self.max_model_len - 1 - length, decoding.max_tokens)

    def candidate(self, index: int, token_ids: Sequence[int], seed: int, logprob: float | None) -> Candidate:
        """The record of one completion. An end-of-sequence id can only be its last token."""
        assert self.stop_ids.isdisjoint(token_ids[:-1]), f"an end-of-sequence id inside a completion: {token_ids}"
        stopped = token_ids[-1] in self.stop_ids
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Candidate(index, tuple(token_ids), text, "stop" if stopped else "length", seed, logprob)


def _stop_ids(path: Path, model: Any, tokenizer: Any) -> frozenset[int]:
    if (path / "generation_config.json").exists():
        declared = GenerationConfig.from_pretrained(path).eos_token_id
    else:
        declared = model.get_text_config().eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return frozenset(int(id) for id in [*declared, tokenizer.eos_token_id] if id is not None)
