"""The vLLM engine: one architecture for life, new weights in place, every set of weights proved.

It owns its process: vLLM leaves threads, a process group and patched torch functions behind, and two engines in one
process break each other. ``pipeline.sampling.process`` gives it one.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice
from typing import Any

import torch

from pipeline.config import SamplingConfig
from pipeline.errors import SamplingError, WeightSyncError
from pipeline.protocols import Decoding, SampleRequest
from pipeline.sampling.served import Served, StaleEngine, nothing
from pipeline.types import Group, Policy

WINDOW = 4
"""Requests in flight, in multiples of ``max_num_seqs``: enough to keep the engine full, few enough to hold."""
CPU_CACHE_MIB = (64, 2048)
"""Least and most memory for keys and values on CPU, where the recipe does not say."""
ENVIRONMENT = {
    # An engine core in this process dies with it, and cannot die alone and leave its client waiting.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
ON_CPU = {"TORCHDYNAMO_DISABLE": "1"}
"""One small function of vLLM's is compiled even in eager mode: up to half a minute for nothing."""

Job = tuple[Any, Sequence[int], Any]
"""A key to recognise it by, prompt token ids, vLLM's SamplingParams."""


class VllmEngine:
    """A Sampler on vLLM, in this process.

    Args:
        config: what applies to every policy it will serve.
        tick: called after every engine step; may raise to stop the sampling.
    """

    def __init__(self, config: SamplingConfig, tick: Callable[[], None] = nothing) -> None:
        self._gpu = torch.cuda.is_available()
        for name, value in (ENVIRONMENT if self._gpu else ENVIRONMENT | ON_CPU).items():
            os.environ.setdefault(name, value)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would override kv_cache_memory_bytes
        import vllm.entrypoints.llm  # vLLM imports lazily; now is the time, while others still prepare the policy

        self._vllm: Any = vllm
        self._config = config
        self._tick = tick
        self._llm: Any = None
        self._architecture: object = None
        self._served: Served | None = None
        self._asleep = False
        self._names = count()

    def load(self, policy: Policy) -> None:
        """As in Sampler.

        Raises:
            WeightSyncError: even a new engine with these weights does not give the probe's log-probabilities.
            StaleEngine: only a new engine could serve this policy.
        """
        served = Served.read(policy, self._config)
        if self._architecture is None:
            self._architecture = served.architecture
            self._llm = self._start(served)
            served.prove(self._score(served.probe.sequences))
        elif self._llm is None or self._architecture != served.architecture:
            raise StaleEngine
        elif self._served is None or self._served.policy != policy or self._asleep:
            self._served = None
            self._sync(served)
        self._served = served

    def sample(self, requests: Iterable[SampleRequest], decoding: Decoding) -> Iterator[Group]:
        served = self._awake()
        unfinished: dict[int, tuple[SampleRequest, dict[int, Any]]] = {}

        def jobs() -> Iterator[Job]:
            for number, request in enumerate(requests):
                room = served.room(request, decoding)
                unfinished[number] = (request, {})
                for index, seed in enumerate(request.seeds):
                    yield (number, index), request.prompt.token_ids, self._params(served, decoding, room, seed)

        with closing(self._run(jobs())) as finished:
            for (number, index), output in finished:
                request, outputs = unfinished[number]
                outputs[index] = output.outputs[0]
                if len(outputs) == len(request.seeds):
                    del unfinished[number]
                    candidates = (
                        served.candidate(index, outputs[index].token_ids, seed, outputs[index].cumulative_logprob)
                        for index, seed in enumerate(request.seeds)
                    )
                    yield Group(request.prompt, tuple(candidates))

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self._awake()
        return self._score(sequences)

    def sleep(self) -> float:
        if not self._gpu or self._llm is None or self._asleep:
            return 0.0
        free_before, _ = torch.cuda.mem_get_info()
        self._llm.sleep(level=2)
        self._asleep = True
        return float(torch.cuda.mem_get_info()[0] - free_before) / 2**30

    def close(self) -> None:
        """Nothing to do: the process is about to end."""

    def _start(self, served: Served) -> Any:
        config = self._config
        cache = config.kv_cache_mib if self._gpu else config.kv_cache_mib or _cpu_cache(served, config.max_num_seqs)
        try:
            return self._vllm.LLM(
                str(served.policy.path),
                skip_tokenizer_init=True,
                generation_config="vllm",  # sampling settings come from the recipe, never from the checkpoint
                dtype=served.dtype,
                max_model_len=served.max_model_len,
                max_num_seqs=config.max_num_seqs,
                gpu_memory_utilization=config.gpu_memory_utilization,
                kv_cache_memory_bytes=None if cache is None else cache << 20,
                enforce_eager=not self._gpu,  # compiling pays on GPU only
                enable_chunked_prefill=self._gpu,  # on a CPU a seeded request read in pieces kills the engine
                enable_sleep_mode=self._gpu,
                worker_extension_cls="pipeline.sampling.worker_extension.CheckpointLoader",
                use_tqdm_on_load=False,
            )
        except Exception as error:
            raise SamplingError(f"vLLM cannot serve {served.policy.path}: {_first_line(error)}") from error

    def _params(self, served: Served, decoding: Decoding, room: int, seed: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            max_tokens=room,
            seed=seed,
            logprobs=0 if decoding.logprobs else None,
            stop_token_ids=sorted(served.stop_ids),
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _awake(self) -> Served:
        if self._served is None:
            raise SamplingError("no policy is being served: load one first")
        if self._asleep:
            try:
                self._sync(self._served)
            except StaleEngine as error:
                self._llm = self._served = None
                raise WeightSyncError(f"vLLM did not wake up: {error.__cause__!r}; load the policy again") from error
        return self._served

    def _sync(self, served: Served) -> None:
        """Put the weights of a policy of the same architecture in place; a second attempt has been seen to help."""
        for _ in range(2):
            try:
                self._replace_weights(served)
                served.prove(self._score(served.probe.sequences))
                return
            except Exception as error:  # a failed proof, or anything at all that vLLM raises on a reload
                reason = error
        raise StaleEngine from reason

    def _replace_weights(self, served: Served) -> None:
        if self._asleep:
            self._llm.wake_up(["weights"])
        self._llm.collective_rpc("load_checkpoint", args=(str(served.policy.path),))
        if self._asleep:
            self._llm.wake_up(["kv_cache"])
            self._asleep = False
        if not self._llm.reset_prefix_cache():  # nothing else forgets the keys and values of the old weights
            raise WeightSyncError("vLLM kept its prefix cache: requests are still running")

    def _score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        assert self._llm is not None
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        jobs: Iterator[Job] = ((index, ids, params) for index, ids in enumerate(sequences))
        scores: list[list[float]] = [[] for _ in sequences]
        for index, output in self._run(jobs):
            pairs = zip(sequences[index][1:], output.prompt_logprobs[1:], strict=True)
            scores[index] = [float(entries[token].logprob) for token, entries in pairs]
        return scores

    def _run(self, jobs: Iterator[Job]) -> Generator[tuple[Any, Any]]:
        """Each job's key and final output, as they finish, with a window of jobs in the engine."""
        engine = self._llm.llm_engine
        window = WINDOW * self._config.max_num_seqs
        running: dict[str, Any] = {}
        try:
            while True:
                for key, ids, params in islice(jobs, window - len(running)):
                    name = str(next(self._names))
                    running[name] = key
                    engine.add_request(name, {"prompt_token_ids": list(ids)}, params)
                if not running:
                    return
                for output in engine.step():
                    if output.finished:
                        yield running.pop(output.request_id), output
                self._tick()
        finally:
            # A request left behind, by an error or a caller who stopped early, would keep the next run going for ever.
            engine.abort_request(list(engine.output_processor.request_states), internal=True)


def _cpu_cache(served: Served, sequences: int) -> int:
    """MiB that hold all sequences at full length (float32, a key-value head a head), within ``CPU_CACHE_MIB``.

    Memory on CPU is written when it is allocated, so more than is needed costs seconds at every start.
    """
    model, _, _ = served.architecture
    token = 2 * 4 * int(model.get("num_hidden_layers", 1)) * int(model.get("hidden_size", 1))
    least, most = CPU_CACHE_MIB
    return max(least, min(most, (token * sequences * served.max_model_len) >> 20))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
