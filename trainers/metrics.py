"""What a training leaves for people: a line of figures a step, TensorBoard files of the same, sample completions."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from pipeline.store import sync

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the policy says to a prompt, always taking the likeliest token."""

    prompt: str
    completion: str


class Recorder:
    """The files of one training in ``directory``, cut back to its first ``steps`` steps: those after them run again.

    JSONL lines are written at once, and synced with :meth:`sync`, which also flushes TensorBoard's events. A session
    has an event file of its own; its ``purge_step`` makes TensorBoard forget what an earlier one wrote beyond it.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        for name in (METRICS, SAMPLES):
            _cut(directory / name, steps)
        self._board = SummaryWriter(str(directory / TENSORBOARD), purge_step=steps + 1)

    def write(self, line: Mapping[str, float | str]) -> None:
        """One step's figures. A figure that is text, the reason of an early end, is a text on the board."""
        self._append(METRICS, line)
        for name, value in line.items():
            if isinstance(value, str):
                self._board.add_text(name, value, int(line["step"]))
            elif name != "step":
                self._board.add_scalar(name, value, int(line["step"]))

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for number, sample in enumerate(samples):
            self._append(SAMPLES, {"step": step, **asdict(sample)})
            self._board.add_text(f"samples/{number}", _quoted(sample), step)

    def sync(self) -> None:
        for name in (METRICS, SAMPLES):
            sync(self.directory / name)
        self._board.flush()

    def close(self) -> None:
        self.sync()  # the last lines come with no state, and the policy is about to say that they are there
        self._board.close()

    def _append(self, name: str, line: Mapping[str, object]) -> None:
        with open(self.directory / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _cut(file: Path, steps: int) -> None:
    """Keep the lines of the first ``steps`` steps. Unlike a rewrite, a kill here loses no line."""
    file.touch()
    kept = 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > steps:
                break
        except ValueError:  # torn by a kill
            break
        kept += len(line)
    os.truncate(file, kept)


def _quoted(sample: Sample) -> str:
    """As Markdown that shows every line as it is."""
    return "\n".join(f"    {line}" for line in f"{sample.prompt}▸{sample.completion}".split("\n"))
