"""The engine's own process: ``python -m pipeline.sampling.worker SOCKET ENGINE CONFIG``, started by ``process.py``.

It leads a process group. When the parent's end of the socket closes, however the parent ended, a thread kills the whole
group, itself and whatever the engine started: nothing is left on the device.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, cast

from pipeline.config import SamplingConfig
from pipeline.errors import RatchetError, SamplingError
from pipeline.protocols import Decoding, Sampler, SampleRequest
from pipeline.sampling import messages
from pipeline.sampling.process import EngineName

ALIVE_SECONDS = 5.0


class Cancelled(Exception):
    """The parent wants no more groups."""


class Worker:
    """Carries out the parent's commands, one after the other."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = inbox(connection)
        self._sampling = False
        self._spoke = 0.0

    def serve(self, engine: Sampler) -> None:
        from pipeline.sampling.served import StaleEngine

        while True:
            command = self._inbox.get()
            try:
                if isinstance(command, messages.Sample):
                    self._sample(engine, command.decoding)
                elif isinstance(command, messages.Load | messages.Score | messages.Sleep):
                    self._send(messages.Done(_carry_out(engine, command)))
                # Cancel and Requests come late where the sampling ended by itself.
            except StaleEngine:
                traceback.print_exc()
                self._send(messages.Stale())
            except Exception as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Pass an error on; one that is not ours leaves its traceback in the log."""
        if not isinstance(error, RatchetError):
            traceback.print_exc()
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            error = SamplingError(f"the engine failed: {type(error).__name__}: {reason}")
        self._send(messages.Failed(error))

    def tick(self) -> None:
        """The engine calls this after every step: a sign of life for the parent, and the way to be interrupted."""
        if time.monotonic() - self._spoke > ALIVE_SECONDS:
            self._send(messages.Alive())
        if self._sampling:
            try:
                self._inbox.get_nowait()
            except Empty:
                return
            raise Cancelled  # nothing else comes unasked while groups are being made

    def _sample(self, engine: Sampler, decoding: Decoding) -> None:
        self._sampling = True
        try:
            for group in engine.sample(self._requests(), decoding):
                self._send(messages.Sampled(group))
        except Cancelled:
            pass
        except Exception as error:
            self.fail(error)
        finally:
            self._sampling = False
        self._send(messages.End())

    def _requests(self) -> Iterator[SampleRequest]:
        while True:
            self._send(messages.Want())
            answer = self._inbox.get()
            if isinstance(answer, messages.Cancel):
                raise Cancelled
            assert isinstance(answer, messages.Requests)
            if not answer.items:
                return
            yield from answer.items

    def _send(self, reply: messages.Reply) -> None:
        self._spoke = time.monotonic()
        self._connection.send(reply)


def inbox(connection: Connection) -> SimpleQueue[Any]:
    """What the parent sends, read as it comes: so its end is noticed while the engine is busy elsewhere."""
    queue: SimpleQueue[Any] = SimpleQueue()

    def read() -> None:
        try:
            while True:
                queue.put(connection.recv())
        except (EOFError, OSError):
            os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    return queue


def _carry_out(engine: Sampler, command: messages.Load | messages.Score | messages.Sleep) -> object:
    match command:
        case messages.Load(policy):
            engine.load(policy)
            return None
        case messages.Score(sequences):
            return engine.logprobs(sequences)
        case messages.Sleep():
            return engine.sleep()


def main(socket: int, name: EngineName, config: SamplingConfig) -> None:
    os.set_inheritable(socket, False)  # a process of the engine's must not hold the line open
    worker = Worker(Connection(socket))
    try:
        engine: Sampler
        if name == "vllm":
            from pipeline.sampling.vllm import VllmEngine

            engine = VllmEngine(config, worker.tick)
        else:
            from pipeline.sampling.transformers import TransformersEngine

            engine = TransformersEngine(config, worker.tick)
    except Exception as error:
        worker.fail(error)
        raise
    worker.serve(engine)


if __name__ == "__main__":
    main(int(sys.argv[1]), cast(EngineName, sys.argv[2]), SamplingConfig.model_validate_json(sys.argv[3]))
