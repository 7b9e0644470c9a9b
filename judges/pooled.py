"""A reward model as a judge, run by vLLM: a pooling engine of our own, or a server that runs already.

Same ids in and same raw logits out as :mod:`judges.reward_model`, to rounding. Neither tokenises: token ids go over the
line, and the activation that vLLM puts on a classifier by default is off.
"""

import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx

from judges.classifier import Classifier, one_line
from pipeline import config as knobs
from pipeline.classifiers import reads_last_token
from pipeline.errors import JudgeError, SamplingError
from pipeline.sampling.pooling import PooledModel, PoolingProcess
from pipeline.types import Group, Judgment

ROWS = 64
"""Rows a request to a server: many enough that requests cost little, few enough that several keep it full."""
IN_FLIGHT = 8
"""Requests at once."""
TRIES = 5
PASSING = (408, 425, 429)
"""Statuses below 500 that pass."""
TIMEOUT = 600.0
"""Seconds a request."""


class Backend(Protocol):
    """Whoever runs the model."""

    @property
    def longest(self) -> int | None:
        """Tokens it takes in a row; None where it does not say."""

    def logits(self, rows: Sequence[list[int]]) -> list[list[float]]: ...

    def close(self) -> None: ...


class PooledRewardModel:
    """Starts its engine, or finds its server, when it is made. Close it to give the device's memory back.

    Raises:
        JudgeError: vLLM cannot serve the model, no server answers, or it serves another model.
    """

    def __init__(self, config: knobs.RewardModelJudge, name: str) -> None:
        self.name = name
        self.classifier = Classifier(config)
        _check_trained(config.path, self.classifier)
        self._ends_at = self.classifier.config.get_text_config().pad_token_id
        self._trims = self._ends_at is not None and reads_last_token(self.classifier.config)
        self._backend: Backend = (
            Engine(config, self.classifier) if config.base_url is None else Server(config, self.classifier)
        )
        self.classifier.shorten(self._backend.longest)

    def judge(self, groups: Sequence[Group]) -> list[Judgment]:
        return self.classifier.judge(groups, self.name, self._logits)

    def close(self) -> None:
        """Closing twice is fine."""
        self._backend.close()

    def _logits(self, rows: Sequence[list[int]]) -> list[list[float]]:
        return self._backend.logits([self._trimmed(row) for row in rows]) if rows else []

    def _trimmed(self, row: list[int]) -> list[int]:
        """transformers reads a decoder's logit at the last id that is no padding, even where that id is an EOS that
        was meant; vLLM reads the last. What follows changes nothing before it, so without it both read the same."""
        end = len(row)
        while self._trims and end > 1 and row[end - 1] == self._ends_at:
            end -= 1
        return row[:end]


def _check_trained(path: str, classifier: Classifier) -> None:
    """Raises JudgeError where the checkpoint is of a model that is no classifier: vLLM would not always say so."""
    kinds = classifier.config.architectures or []
    if kinds and not any(word in kind for kind in kinds for word in ("Classification", "Reward")):
        raise JudgeError(
            f"reward model {path!r} is a {', '.join(kinds)}; allowed: a sequence classifier"
            " (…ForSequenceClassification). `ratchet judge train` makes one of it"
        )


# ---------------------------------------------------------------------------------------------- our own engine
class Engine:
    """A pooling engine in a child process. One that ended is started again when it is next asked."""

    def __init__(self, config: knobs.RewardModelJudge, classifier: Classifier) -> None:
        dtype = config.dtype if config.dtype != "auto" else _dtype_of(classifier.config)
        # Only where it is less than the model takes, which vLLM knows best: RoBERTa takes fewer than its config says.
        limit = config.max_tokens if classifier.longest == config.max_tokens else None
        self._model = PooledModel(config.path, config.revision, dtype, limit, config.gpu_memory_utilization)
        self._folder = Path(tempfile.mkdtemp(prefix="ratchet-judge-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._one_at_a_time = threading.Lock()
        self._process: PoolingProcess | None = None
        self.longest: int | None = self._started().max_model_len

    def logits(self, rows: Sequence[list[int]]) -> list[list[float]]:
        with self._one_at_a_time:
            process = self._started()
            try:
                return process.logits(rows)
            except SamplingError as error:
                self.close()
                raise JudgeError(f"reward model {self._model.path!r}: {error}") from error

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _started(self) -> PoolingProcess:
        if self._process is None:
            try:
                self._process = PoolingProcess(self._model, self._folder / "engine.log")
            except SamplingError as error:
                raise JudgeError(f"reward model {self._model.path!r}: {error}") from error
            weakref.finalize(self, self._process.close)
        return self._process


def _dtype_of(config: Any) -> str:
    """The checkpoint's own precision, as transformers takes it; left to itself vLLM would halve a float32."""
    return str(config.dtype).removeprefix("torch.") if config.dtype is not None else "float32"


# ---------------------------------------------------------------------------------------------- a server
class Server:
    """``vllm serve MODEL --runner pooling``: its ``/classify`` takes token ids."""

    def __init__(self, config: knobs.RewardModelJudge, classifier: Classifier) -> None:
        assert config.base_url is not None
        self._url = config.base_url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("VLLM_API_KEY")
        self._http = httpx.Client(timeout=TIMEOUT, headers={"Authorization": f"Bearer {key}"} if key else {})
        weakref.finalize(self, self._http.close)
        self._outputs = len(classifier.labels)
        self._model, self.longest = self._find(config.path)
        self._check_raw(getattr(classifier.config, "problem_type", None), classifier.longest)

    def logits(self, rows: Sequence[list[int]]) -> list[list[float]]:
        order = sorted(range(len(rows)), key=lambda position: -len(rows[position]))  # no long row at the very end
        batches = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
        found: list[list[float]] = [[] for _ in rows]
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            answers = threads.map(lambda batch: self._classify([rows[position] for position in batch]), batches)
            for batch, answer in zip(batches, answers, strict=True):
                for position, logits in zip(batch, answer, strict=True):
                    found[position] = logits
        return found

    def close(self) -> None:
        self._http.close()

    def _find(self, path: str) -> tuple[str, int | None]:
        """The name the server gives the model, and the longest row it takes."""
        cards = self._ask("GET", "/v1/models").get("data") or []
        wanted = {path, str(Path(path).resolve())}
        for card in cards:
            if {card.get("id"), card.get("root")} & wanted:
                return str(card["id"]), card.get("max_model_len")
        served = ", ".join(repr(card.get("id")) for card in cards) or "nothing"
        raise JudgeError(f"{self._url} serves {served}, and the reward model is {path!r}; allowed: one of those served")

    def _check_raw(self, problem_type: str | None, longest: int) -> None:
        """Raises JudgeError where the server's scores are probabilities, though asked for logits: a server that does
        not know a field ignores it."""
        row = [[0, 1, 2, 3][:longest]]
        (raw,), (activated,) = (self._classify(row, use_activation=each) for each in (False, True))
        same = all(abs(one - other) <= 1e-6 for one, other in zip(raw, activated, strict=True))
        if same and problem_type != "regression" and all(0.0 <= each <= 1.0 for each in raw):
            raise JudgeError(
                f"{self._url} gives probabilities, asked for logits; allowed: a vLLM that knows use_activation"
            )

    def _classify(self, rows: Sequence[list[int]], use_activation: bool = False) -> list[list[float]]:
        body = {"model": self._model, "input": list(rows), "use_activation": use_activation}
        data = sorted(self._ask("POST", "/classify", body).get("data") or [], key=lambda each: each["index"])
        found = [[float(logit) for logit in each["probs"]] for each in data]
        if len(found) != len(rows) or any(len(logits) != self._outputs for logits in found):
            raise JudgeError(
                f"{self._url} gave {len(found)} answers of {sorted({len(each) for each in found})} outputs to"
                f" {len(rows)} rows of a model with {self._outputs}: it serves another model"
            )
        return found

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The server's JSON. What may pass is tried again; raises JudgeError for what does not."""
        for number in range(TRIES):
            try:
                response = self._http.request(method, self._url + path, json=body)
                if response.status_code < 500 and response.status_code not in PASSING:
                    break
                reason = f"{response.status_code} {response.text[:200]!r}"
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {one_line(error)}"
            if number + 1 < TRIES:
                time.sleep(0.2 * 2**number)
        else:
            raise JudgeError(f"no answer from {self._url}{path} in {TRIES} tries: {reason}")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != 200 or not isinstance(answer, dict):
            raise JudgeError(
                f"{self._url}{path} answers {response.status_code} {response.text[:200]!r}; allowed: a server started"
                " with `vllm serve MODEL --runner pooling --convert classify`"
            )
        return answer
