"""An engine in a process of its own, driven from this one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NoReturn

from pipeline.config import SamplingConfig
from pipeline.errors import EngineDiedError, SamplingError
from pipeline.protocols import Decoding, SampleRequest
from pipeline.sampling import messages
from pipeline.types import Group, Policy

EngineName = Literal["vllm", "transformers"]

REQUESTS = 32
"""Prompts handed to the engine at a time."""
POLL_SECONDS = 0.5
LAST_LINES = 3
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class EngineProcess:
    """A Sampler whose engine runs in a child process. The child starts, and imports its engine, at once.

    The child and all it starts end when this process ends, whatever ends it. When the child ends, what was asked of it
    raises EngineDiedError; ``load`` starts a new one. Not for use by several threads at a time.

    Args:
        engine: which engine.
        config: what applies to every policy it will serve.
        log: file that the child's output is appended to; its directory exists.
        timeout: seconds without a sign of life after which the child counts as dead. Loading a policy gives no sign.
    """

    def __init__(self, engine: EngineName, config: SamplingConfig, log: Path, timeout: float = 1800.0) -> None:
        self._engine = engine
        self._config = config
        self._log = log
        self._timeout = timeout
        self._stream: object = None
        """The sampling whose End has not been read: one at a time."""
        self._child: Child | None = None
        self._start()

    def load(self, policy: Policy) -> None:
        if self._child is None or self._child.ended:
            self._start()
        if isinstance(self._ask(messages.Load(policy)), messages.Stale):
            self._start()
            self._ask(messages.Load(policy))

    def sample(self, requests: Iterable[SampleRequest], decoding: Decoding) -> Iterator[Group]:
        self._settle()
        self._send(messages.Sample(decoding))
        stream = self._stream = object()
        waiting = iter(requests)
        try:
            while stream is self._stream:
                match self._receive():
                    case messages.Want():
                        self._send(messages.Requests(list(islice(waiting, REQUESTS))))
                    case messages.Sampled(group):
                        yield group
                    case messages.Failed(error):
                        raise error
                    case messages.End():
                        self._stream = None
                        return
            raise SamplingError("this sampling was ended by a later call to the same engine")
        finally:
            if stream is self._stream:  # stopped early: the engine stops too, and what it sent is read later
                with suppress(EngineDiedError):
                    self._send(messages.Cancel())

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        answer = self._ask(messages.Score([list(ids) for ids in sequences]))
        assert isinstance(answer, messages.Done)
        scores: list[list[float]] = answer.value
        return scores

    def sleep(self) -> float:
        if self._child is None:
            return 0.0
        answer = self._ask(messages.Sleep())
        assert isinstance(answer, messages.Done)
        return float(answer.value)

    def close(self) -> None:
        """End the engine at once; it has nothing to save. Closing twice is fine."""
        self._stream = None
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(self) -> None:
        self.close()
        arguments = [self._engine, self._config.model_dump_json()]
        self._child = Child("pipeline.sampling.worker", arguments, self._log)

    def _ask(self, command: messages.Command) -> messages.Reply:
        """Done or Stale. Raises the engine's error, or EngineDiedError."""
        self._settle()
        self._send(command)
        reply = self._receive()
        if isinstance(reply, messages.Failed):
            raise reply.error
        return reply

    def _settle(self) -> None:
        """End a sampling that is still open, and read what it had sent."""
        if self._stream is not None:
            self._send(messages.Cancel())
            while not isinstance(self._receive(), messages.End):
                pass
            self._stream = None

    def _send(self, command: messages.Command) -> None:
        if self._child is None:
            raise EngineDiedError("the engine is not running: load a policy first")
        try:
            self._child.connection.send(command)
        except OSError:
            self._died("ended")

    def _receive(self) -> messages.Reply:
        """The engine's next word, signs of life aside."""
        assert self._child is not None
        try:
            while (reply := self._child.receive(self._timeout)) == messages.Alive():
                pass
        except TimeoutError:
            self._died(f"gave no sign of life for {self._timeout:g} s")
        except (EOFError, OSError):
            self._died("ended")
        return reply

    def _died(self, how: str) -> NoReturn:
        child = self._child
        assert child is not None
        self.close()
        raise EngineDiedError(
            f"the {self._engine} engine's process {how} (exit code {child.process.returncode}); its last words, in"
            f" {self._log}: {child.last_words()}"
        )


class Child:
    """An engine's process, ``python -m MODULE SOCKET ARGUMENTS…``, and this end of the socket to it."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        ours, theirs = socket.socketpair()
        environment = os.environ | ENVIRONMENT
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with theirs, open(log, "ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a group of its own, that Ctrl-C at the terminal does not reach
            )
        self.connection = Connection(ours.detach())

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def receive(self, timeout: float) -> messages.Reply:
        """The next message. The child's end is noticed even where a child of its own still holds the socket open.

        Raises:
            EOFError, OSError: the child ended.
            TimeoutError: nothing came for ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self.ended  # asked first: what it sent before its end is still read
            if self.connection.poll(0 if ended else POLL_SECONDS):
                reply: messages.Reply = self.connection.recv()
                return reply
            if ended:
                raise EOFError
            if time.monotonic() > deadline:
                raise TimeoutError

    def kill(self) -> None:
        """End the process and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()

    def last_words(self) -> str:
        lines = self._log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:]) or "none"
