"""A policy on disk: an ordinary checkpoint directory, its digest, and its probe.

The digest names the policy everywhere. The probe is a handful of token sequences with the log-probabilities that the
trainer's model gave them: whoever serves the policy must give the same, or does not serve it.
"""

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import DataError, WeightSyncError
from pipeline.store import digest, file_digest, write_json
from pipeline.types import Policy

PROBE = "probe.json"
TOLD = (".json", ".jinja", ".model", ".txt")
"""Ends of a checkpoint's files beside its weights that change what it does."""
NOT_TOLD = frozenset({PROBE, "lineage.json", "result.json"})
"""What we put beside a checkpoint: where it is from."""
UNTOLD = frozenset(
    {
        "_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "is_local",
        "local_files_only",
    }
)  # fmt: skip
"""Keys of such a file that say where it is from, who wrote it, or how the weights lie on disk."""
CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Probe:
    sequences: list[list[int]]
    """Token ids."""
    logprobs: list[list[float]]
    """Nats; entry i of a sequence is the log-probability of token i + 1 given tokens 0 … i."""
    dtype: str
    """Precision of the weights as saved; the numbers were computed in float32 from those."""

    def differences(self, measured: Sequence[Sequence[float]]) -> tuple[float, float]:
        """Largest and mean absolute difference to ``measured``, in nats a token; shapes must agree.

        Where either is NaN both are infinite: ``max`` would pass over a NaN that is not the first.
        """
        gaps = [
            math.inf if math.isnan(ours - theirs) else abs(ours - theirs)
            for expected, got in zip(self.logprobs, measured, strict=True)
            for ours, theirs in zip(expected, got, strict=True)
        ]
        return max(gaps), sum(gaps) / len(gaps)


def read_policy(path: Path) -> Policy:
    """The policy in a checkpoint directory. Reads the weights once to name them.

    Raises:
        DataError: the directory holds no ``*.safetensors``, or one is cut short.
    """
    return Policy(weights_digest(path), path)


def weights_digest(path: Path) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, in name order, however they are split into files."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"{path} holds no *.safetensors weights")
    tensors = [(name, file, *place) for file in files for name, place in _header(file).items()]
    total = hashlib.sha256()
    for name, file, kind, shape, start, end in sorted(tensors):
        total.update(json.dumps([name, kind, shape]).encode())
        with open(file, "rb") as handle:
            handle.seek(start)
            while start < end:
                chunk = handle.read(min(CHUNK, end - start))
                if not chunk:
                    raise DataError(f"{file} is cut short: tensor {name} ends {end - start} bytes after the file does")
                total.update(chunk)
                start += len(chunk)
    return total.hexdigest()


def checkpoint_digest(path: Path) -> str:
    """SHA-256 over the weights and all that says what is made of them: configs, tokenizer, chat template."""
    return digest([weights_digest(path), files_digest(path)])


def files_digest(path: Path) -> str:
    """SHA-256 over what says what a checkpoint's weights are and how its ids read: configs, tokenizer, chat template.

    Weights alone do not say what a policy samples: which ids end a completion, and which text they are, is in its
    files. Where these are from does not count.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in TOLD and not file.name.endswith(".index.json"))
    return digest([[file.name, _told(file)] for file in files if file.name not in NOT_TOLD])


def architecture_digest(path: Path) -> str:
    """SHA-256 over what a model's config makes of its weights: RoPE's scaling, a window, the soft cap. With weights and
    token ids it decides log-probabilities, whatever the tokenizer."""
    return digest(_told(path / "config.json"))


def _told(file: Path) -> str:
    try:
        told = json.loads(file.read_text()) if file.name.endswith("config.json") else None
    except ValueError:
        told = None  # whoever loads it says so
    if not isinstance(told, dict):
        return file_digest(file)
    return digest({name: value for name, value in told.items() if name not in UNTOLD})


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a checkpoint, by name, from the headers alone."""
    return {
        name: tuple(shape)
        for file in sorted(path.glob("*.safetensors"))
        for name, (_, shape, _, _) in _header(file).items()
    }


def write_probe(path: Path, probe: Probe) -> None:
    write_json(path / PROBE, asdict(probe))


def read_probe(path: Path) -> Probe:
    """Raises DataError where the directory has no probe."""
    try:
        return Probe(**json.loads((path / PROBE).read_text()))
    except FileNotFoundError:
        raise DataError(f"{path} has no {PROBE}: it was not saved by Ratchet") from None


def prove(policy: Policy, measured: Sequence[Sequence[float]], tolerance: float) -> float:
    """The largest difference between ``measured`` and the policy's probe.

    The mean has to be ten times smaller still: in 16 bit single tokens differ by a lot, while weights that are one
    small update old shift many tokens by a little.

    Raises:
        WeightSyncError: it is over ``tolerance`` (nats a token): other weights are being served.
    """
    largest, mean = read_probe(policy.path).differences(measured)
    if not (largest <= tolerance and mean <= tolerance / 10):
        raise WeightSyncError(
            f"the engine does not serve policy {policy.digest[:12]}: its probe log-probabilities are off by up to"
            f" {largest:.2g} nats a token (mean {mean:.2g}); allowed: {tolerance:.2g} (sampling.sync_tolerance),"
            " and a tenth of it in the mean"
        )
    return largest


def _header(file: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """Type, shape, first and last byte of each tensor in a safetensors file (8 bytes of length, JSON, data)."""
    with open(file, "rb") as handle:
        try:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size))
        except (struct.error, ValueError, OverflowError, MemoryError):
            raise DataError(f"{file} is not a safetensors file, or is cut short in its header") from None
    header.pop("__metadata__", None)
    base = 8 + size
    return {
        name: (entry["dtype"], entry["shape"], base + entry["data_offsets"][0], base + entry["data_offsets"][1])
        for name, entry in header.items()
    }
