"""The transformers engine: plain batches with a key-value cache, for machines without vLLM and for checking it.

Slower than vLLM, and the same in every other way: each candidate's draws come from its own seed alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from pipeline.config import SamplingConfig
from pipeline.errors import SamplingError
from pipeline.loading import ONE_MODEL_AT_A_TIME
from pipeline.protocols import Decoding, SampleRequest
from pipeline.sampling.served import Served, nothing
from pipeline.types import Group, Policy


@dataclass(slots=True)
class Row:
    """One candidate being drawn."""

    request: int
    seed: int
    room: int
    """Tokens it may have."""
    draws: torch.Tensor
    """One uniform number a token: float64 [room]."""
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0


class TransformersEngine:
    """A Sampler on transformers, in this process; on the GPU where there is one.

    Args:
        config: what applies to every policy it will serve.
        tick: called after every decoding step; may raise to stop the sampling.
    """

    def __init__(self, config: SamplingConfig, tick: Callable[[], None] = nothing) -> None:
        disable_progress_bar()  # what the log ends with should be the cause of an end
        self._config = config
        self._tick = tick
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = None
        self._served: Served | None = None

    def load(self, policy: Policy) -> None:
        served = Served.read(policy, self._config)
        if self._served is not None and self._served.policy == policy and self._model is not None:
            return
        self._served, self._model = None, None  # frees the old weights before the new ones arrive
        self._serve(served)

    @torch.inference_mode()
    def sample(self, requests: Iterable[SampleRequest], decoding: Decoding) -> Iterator[Group]:
        served = self._awake()
        waiting = iter(requests)
        while batch := self._take(waiting):
            rows = [
                Row(number, seed, room, _uniforms(seed, room))
                for number, request in enumerate(batch)
                for room in [served.room(request, decoding)]
                for seed in request.seeds
            ]
            self._draw(served, batch, rows, decoding)
            for number, request in enumerate(batch):
                own = [row for row in rows if row.request == number]
                yield Group(
                    request.prompt,
                    tuple(
                        served.candidate(index, row.token_ids, row.seed, row.logprob if decoding.logprobs else None)
                        for index, row in enumerate(own)
                    ),
                )

    @torch.inference_mode()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self._awake()
        scores = []
        for ids in sequences:
            row = torch.tensor([list(ids)], device=self._device)
            logprobs = self._model(row, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            scores.append(logprobs.gather(-1, row[0, 1:, None])[:, 0].tolist())
        return scores

    def sleep(self) -> float:
        if self._device.type == "cpu" or self._model is None:
            return 0.0
        free_before, _ = torch.cuda.mem_get_info()
        self._model = None
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info()[0] - free_before) / 2**30

    def close(self) -> None:
        self._model = None

    def _serve(self, served: Served) -> None:
        dtype = getattr(torch, served.dtype)
        with ONE_MODEL_AT_A_TIME:
            model: Any = AutoModelForCausalLM.from_pretrained(served.policy.path, dtype=dtype)
        self._model = model.to(self._device).eval()
        self._served = served
        try:
            served.prove(self.logprobs(served.probe.sequences))
        except BaseException:
            self._served, self._model = None, None
            raise

    def _awake(self) -> Served:
        if self._served is None:
            raise SamplingError("no policy is being served: load one first")
        if self._model is None:
            self._serve(self._served)
        return self._served

    def _take(self, waiting: Iterator[SampleRequest]) -> list[SampleRequest]:
        """The next requests, up to ``max_num_seqs`` candidates; one request at least."""
        batch: list[SampleRequest] = []
        free = self._config.max_num_seqs
        while free > 0 and (more := list(islice(waiting, 1))):
            batch += more
            free -= len(more[0].seeds)
        return batch

    def _draw(self, served: Served, batch: list[SampleRequest], rows: list[Row], decoding: Decoding) -> None:
        """Complete ``rows``: each prompt goes through the model once, then every candidate's tokens one by one."""
        ids, mask = _left_padded([request.prompt.token_ids for request in batch], self._device)
        cache = DynamicCache(config=self._model.config)
        logits = self._step(ids, mask, (mask.cumsum(-1) - 1).clamp_min(0), cache)
        owners = torch.tensor([row.request for row in rows], device=self._device)
        cache.batch_select_indices(owners)
        mask, logits, live = mask[owners], logits[owners], rows
        while True:
            tokens = self._append(live, logits, decoding)
            self._tick()
            going = [place for place, row in enumerate(live) if not _finished(row, served.stop_ids)]
            if not going:
                return
            if len(going) < len(live):
                keep = torch.tensor(going, device=self._device)
                cache.batch_select_indices(keep)
                mask, tokens, live = mask[keep], tokens[keep], [live[place] for place in going]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
            logits = self._step(tokens[:, None], mask, mask.sum(-1, keepdim=True) - 1, cache)

    def _step(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits after the last column: float32 [rows, vocabulary]."""
        output = self._model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _append(self, live: list[Row], logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
        """Draw each row's next token and note it; the ids drawn."""
        draws = torch.stack([row.draws[len(row.token_ids)] for row in live]).to(self._device)
        tokens = choose(logits, draws, decoding)
        logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        for row, token, logprob in zip(live, tokens.tolist(), logprobs.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprob += logprob
        return tokens


def choose(logits: torch.Tensor, draws: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """The token at quantile ``draws`` of each row's sampling distribution.

    Temperature first, then the ``top_k`` likeliest tokens, then the smallest set of those with probability ``top_p``.

    Args:
        logits: [rows, vocabulary].
        draws: uniform on [0, 1), [rows].
    """
    if decoding.temperature == 0.0:
        return logits.argmax(-1)
    scores, order = (logits.double() / decoding.temperature).sort(descending=True, stable=True)
    if decoding.top_k:
        scores = scores[:, : decoding.top_k]
    probabilities = scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities * (before < decoding.top_p)
    upto = probabilities.cumsum(-1)
    rank = torch.searchsorted(upto, draws[:, None] * upto[:, -1:], right=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # rounding must not reach past the tokens that are left
    return order.gather(-1, rank.minimum(last))[:, 0]


def _finished(row: Row, stop_ids: frozenset[int]) -> bool:
    return row.token_ids[-1] in stop_ids or len(row.token_ids) == row.room


def _uniforms(seed: int, count: int) -> torch.Tensor:
    """A counter-based generator keyed by the seed: streams of different candidates have nothing in common."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=seed)).random(count))


def _left_padded(prompts: list[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [prompts, longest]; a padded id is 0 and never attended to."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
