"""A training in several processes: ``python -m trainers.launch JOB``, once for each, started from here or by torchrun.

Started from here they form a process group of their own. Each holds one end of a socket whose other end is here: when
this process ends, however it ends, they end themselves; when one of them ends, or says that it failed, all are ended.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.config import TrainerConfig
from pipeline.errors import ConfigError, RatchetError, TrainingError
from pipeline.protocols import Progress, silent
from pipeline.types import Policy
from trainers.checkpoints import device
from trainers.dpo import finished, train_policy
from trainers.interruption import Interruption, noticed
from trainers.lesson import Lesson, Trained
from trainers.parallel import Share

JOB = "job.pickle"
LOG = "processes.log"
SOCKET = "RATCHET_SOCKET"
POLL_SECONDS = 0.5
LAST_STEP = 60.0
"""Seconds that the processes get to end a step and save their state, when they are told to leave."""
LAST_LINES = 3
PATIENCE = timedelta(hours=2)
"""For one process to wait for another, which may be writing a large policy. An end is noticed otherwise."""
ROOT = Path(__file__).parents[1]


Job = tuple[Policy, Lesson, TrainerConfig, Path]
"""What :func:`trainers.dpo.train_policy` is called with in every process; pickled."""
Told = tuple[int, int, str] | tuple[float, RatchetError]
"""What a process tells: its progress; or when it failed, and how."""


def train_in_processes(
    policy: Policy, lesson: Lesson, config: TrainerConfig, directory: Path, progress: Progress = silent
) -> tuple[Policy, Trained]:
    """As :func:`trainers.dpo.train_policy`, in ``config.processes`` processes; in this one, if it is one.

    Their output goes to ``directory``/processes.log. On SIGTERM and Ctrl-C they save their state first.

    Raises:
        ConfigError: there are fewer GPUs than processes.
        TrainingError: a process ended before its time. What it raises itself is raised here.
    """
    if config.processes == 1:
        return train_policy(policy, lesson, config, directory, progress)
    if torch.cuda.is_available() and torch.cuda.device_count() < config.processes:
        raise ConfigError(
            f"trainer.processes = {config.processes} needs as many GPUs; here: {torch.cuda.device_count()}"
        )
    saved = finished(directory)
    if saved is not None:
        return saved
    directory.mkdir(parents=True, exist_ok=True)
    job = directory / JOB
    work: Job = (policy, lesson, config, directory)
    job.write_bytes(pickle.dumps(work))
    with noticed() as interruption, Group(job, config.processes, directory / LOG) as group:
        group.follow(progress, interruption)
    job.unlink()
    if interruption.number is not None:
        interruption.leave(interruption.number)
    saved = finished(directory)
    assert saved is not None, "the first process ended well and saved no policy"
    return saved


class Group:
    """The processes of one job, while in use as a context; none is left after it."""

    def __init__(self, job: Path, size: int, log: Path) -> None:
        self.log, self.log_start = log, log.stat().st_size if log.exists() else 0
        self.processes: list[subprocess.Popen[bytes]] = []
        self.connections: list[Connection] = []
        # Rendezvous on a port that nobody can take in between, because it is open from here on.
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        with ExitStack() as stack:
            stack.callback(self._kill)
            for rank in range(size):
                self._start(job, rank, size)
            stack.pop_all()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def follow(self, progress: Progress, interruption: Interruption) -> None:
        """Pass the first process' progress on until all have ended, or one fails.

        Raises:
            RatchetError: what the first to fail raised, or TrainingError if it just ended. The others may have failed
                for no other reason than that it was gone.
        """
        running = dict(zip(self.connections, self.processes, strict=True))
        leaving = False
        while running:
            if interruption.number is not None and not leaving:
                leaving = True
                self._ask_to_leave(interruption.number)
            failures: list[tuple[float, RatchetError]] = []
            for connection in wait(list(running), POLL_SECONDS):
                assert isinstance(connection, Connection)
                match self._hear(connection):
                    case (float(when), RatchetError() as error):
                        failures.append((when, error))
                    case (int(done), total, note):
                        progress(done, total, note)
                    case None:
                        process = running.pop(connection)
                        if process.wait() != 0 and not leaving:
                            failures.append((0.0, self._died(process)))
            if failures:
                raise min(failures, key=lambda failure: failure[0])[1]

    @staticmethod
    def _hear(connection: Connection) -> Told | None:
        """None where the process has ended."""
        try:
            told: Told = connection.recv()
        except (EOFError, OSError):
            return None
        return told

    def _died(self, process: "subprocess.Popen[bytes]") -> TrainingError:
        rank, size = self.processes.index(process) + 1, len(self.processes)
        return TrainingError(
            f"process {rank} of {size} ended before its time (exit code {process.returncode}); the processes' last"
            f" words, in {self.log}: {last_words(self.log, self.log_start)}"
        )

    def _ask_to_leave(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)
        timer = threading.Timer(LAST_STEP, self._kill)
        timer.daemon = True
        timer.start()

    def _start(self, job: Path, rank: int, size: int) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            SOCKET: str(theirs.fileno()),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
        with theirs, open(self.log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainers.launch", str(job)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, pass_fds=[theirs.fileno()],
                process_group=self.processes[0].pid if self.processes else 0,  # one that Ctrl-C does not reach
            )  # fmt: skip
        self.processes.append(process)
        self.connections.append(Connection(ours.detach()))

    def _kill(self) -> None:
        if self.processes:
            with suppress(ProcessLookupError):
                os.killpg(self.processes[0].pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


def last_words(log: Path, start: int) -> str:
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    return " | ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:]) or "none"


# ---------------------------------------------------------------------------------------------- in each process
def main(job: Path) -> None:
    """One process of a job; which one, the environment says, as torchrun sets it."""
    share = Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    line = Connection(int(os.environ[SOCKET])) if SOCKET in os.environ else None
    if line is not None:
        os.set_inheritable(line.fileno(), False)
        threading.Thread(target=_end_with_parent, args=[line], daemon=True).start()
    try:
        _train(job, share, silent if line is None or not share.writes else lambda *told: line.send(told))
    except Exception as error:
        traceback.print_exc()
        if line is None:
            raise
        line.send((time.time(), _sendable(error, share)))
        os._exit(1)  # others may wait for this process; nothing of its own is worth waiting for


def _train(job: Path, share: Share, progress: Progress) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device())
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    work: Job = pickle.loads(job.read_bytes())
    train_policy(*work, progress, share)
    dist.destroy_process_group()


def _sendable(error: Exception, share: Share) -> RatchetError:
    if isinstance(error, RatchetError):
        return error
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return TrainingError(f"process {share.rank + 1} of {share.size} failed: {type(error).__name__}: {reason}")


def _end_with_parent(line: Connection) -> None:
    """Nothing is ever sent this way: reading ends when the parent does."""
    with suppress(EOFError, OSError):
        line.recv()
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
