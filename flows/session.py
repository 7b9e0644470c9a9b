"""What the stages of a run share: its config, its store, and the one engine that lives across rounds."""

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from flows.console import Console
from pipeline.config import DataConfig, RunConfig
from pipeline.errors import SamplingError
from pipeline.protocols import Sampler
from pipeline.report import write_report
from pipeline.runs import Run
from pipeline.sampling import start_sampler
from pipeline.store import Store
from pipeline.types import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Workplace(Protocol):
    """What a stage needs that does not sample."""

    @property
    def store(self) -> Store: ...

    @property
    def console(self) -> Console: ...

    def warm_up(self) -> None:
        """Sampling may come next."""

    def free_device(self, stage: str) -> None:
        """``stage`` wants the accelerator's memory."""


class Workshop:
    """One process' work on one run, with an engine for what samples."""

    def __init__(self, config: RunConfig | DataConfig, run: Run, console: Console) -> None:
        self.config = config
        self.run = run
        self.console = console
        self.freed: dict[str, float] = {}
        """GiB the engine gave back this round, by the stage that asked for them."""
        self.engine_seconds = 0.0
        """Spent so far on starting the engine and on loading policies into it."""
        self._sampler: Sampler | None = None
        self._serving: Policy | None = None

    @property
    def store(self) -> Store:
        return self.run.store

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The run's name is ours, and however the work ends, the run says how.

        Raises:
            BusyError: another process is running the same name in the same workspace.
            ConfigError: the run began with other settings.
        """
        run = self.run
        with run.held(), self.console.warnings():
            run.begin(self.config)
            try:
                yield
                self.write_report()
            except Exception as error:
                run.save_failure(error)
                self.write_report()
                raise
            finally:
                self.close()

    def write_report(self) -> None:
        write_report(self.run.status(), self.run.store, self.run.directory / "report.html", self.run.commands())

    def warm_up(self) -> None:
        """Start the engine's process, so that its slow imports run beside whatever comes before sampling."""
        if self._sampler is None:
            self._sampler = start_sampler(self.config.sampling, log=self.run.directory / "engine.log")

    def serve(self, policy: Policy) -> Sampler:
        """The engine with ``policy`` loaded and proved."""
        started = time.monotonic()
        release_memory()
        self.warm_up()
        assert self._sampler is not None
        if self._serving != policy:  # its weights alone are not all: another tokenizer reads ids as other text
            self._serving = None
            self._sampler.load(policy)
            self._serving = policy
        self.engine_seconds += time.monotonic() - started
        return self._sampler

    def lost_engine(self) -> None:
        """The engine failed: load again before it is used again."""
        self._serving = None

    def free_device(self, stage: str) -> None:
        """Let ``stage`` have the accelerator's memory; the engine takes it back when it is next used."""
        if self._sampler is not None and self._serving is not None:
            try:
                freed = self._sampler.sleep()
            except SamplingError:
                self.lost_engine()  # it holds no memory any more either
                return
            if freed:
                self.freed[stage] = freed

    def tokenizer(self, policy: Policy) -> "PreTrainedTokenizerBase":
        from trainers.checkpoints import load_tokenizer

        return load_tokenizer(policy.path)

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None


class Session(Workshop):
    """Of a run of rounds that trains a policy."""

    config: RunConfig


class DataSession(Workshop):
    """Of a run that makes preference data and trains nothing."""

    config: DataConfig


def release_memory() -> None:
    """Free models that nobody uses, and hand the accelerator's memory that torch keeps back, for the engine to use."""
    torch = sys.modules.get("torch")  # what was never imported holds nothing
    if torch is not None:
        gc.collect()  # a model's modules refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
