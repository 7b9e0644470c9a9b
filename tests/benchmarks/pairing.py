"""Pairing: candidates a second and memory, from ten thousand candidates to five million.

``stage``: the pair stage as a run has it, from shards on the disk to shards on the disk: read, pair, write, checksum,
sync. ``kernel``: one shard in memory over and over, without reading or writing. Each measurement is a process of its
own; its peak is the kernel's high-water mark of resident memory, this process and its threads (there are no others).
The candidates are made up once a size: n = 8, words drawn as unevenly as in natural text, about 100 tokens each.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "pairing-cpu.json"
SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
N = 8
"""Candidates a prompt."""
TOKENS = 100
LONGEST = 256
"""Mean and greatest length of a completion; log-normal."""
DIFFERENT = 32
"""Shards whose texts are made up; later ones have the same texts again under other ids, seeds and scores."""
WORDS = 30_000
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "filters": {
        "margin": 0.5, "margin_unit": "sigma", "drop_truncated": True, "min_score_chosen": 0.0, "max_length_ratio": 4.0,
        "length_regression": True,
    },
    "four pairs": {"pairs_per_prompt": 4, "margin": 0.5, "margin_unit": "sigma"},
}  # fmt: skip
"""Settings beyond the default; the last two are measured at one size."""
MIDDLE = 1_000_000
EXAMPLES = """
\b
Examples:
  python tests/benchmarks/pairing.py                      every size, about five minutes and 15 GB of disk
  python tests/benchmarks/pairing.py --quick              does it run? no numbers to quote
  python tests/benchmarks/pairing.py --sizes 1000000 --repetitions 5 --folder /scratch
"""

sys.path.insert(0, str(ROOT))
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=__doc__, epilog=EXAMPLES)
def main(
    sizes: Annotated[str, typer.Option(help="Candidates, by comma.")] = ",".join(map(str, SIZES)),
    repetitions: Annotated[int, typer.Option(help="Of each measurement; the median counts.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Shards paired at once. Default: as in a run.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the artifacts are made. Default: the system's.")] = None,
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test: one small size, no file.")] = False,
) -> None:
    counts = [20_000] if quick else [int(size) for size in sizes.split(",")]
    results: dict[str, Any] = {"kernel": measured("kernel", seconds=1.0 if quick else 5.0), "stage": []}
    print(f"kernel       {results['kernel']['per_second']:12,.0f} candidates/s on one thread")
    for count in counts:
        place = Path(tempfile.mkdtemp(prefix="ratchet-pairing-", dir=folder))
        try:
            made = measured("generate", place=str(place), candidates=count)
            for case in CASES if quick or count == MIDDLE else ["default"]:
                runs = [
                    measured("stage", place=str(place), threads=threads, settings=CASES[case], **made)
                    for _ in range(1 if quick else repetitions)
                ]
                results["stage"].append(summary(case, count, made, runs))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    from measure import machine  # only now: torch is not to be in the process that is measured
    from report import save

    if not quick or json_file != RESULTS:
        save({"machine": machine(), "threads": threads or "as in a run", **results}, json_file)


def summary(case: str, count: int, made: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of median speed; the highest peak of all."""
    ordered = sorted(runs, key=lambda run: run["seconds"])
    middle = ordered[len(ordered) // 2]
    entry = {
        "case": case, "candidates": count, "pairs": middle["pairs"], "seconds": middle["seconds"],
        "per_second": count / middle["seconds"], "cpu_seconds": middle["cpu_seconds"],
        "lowest": count / ordered[-1]["seconds"], "highest": count / ordered[0]["seconds"],
        "peak_mib": max(run["peak_mib"] for run in runs), "disk_mib": made["disk_mib"],
    }  # fmt: skip
    print(
        f"{case:<10} {count:10,} {entry['per_second']:12,.0f} candidates/s [{entry['lowest']:,.0f} to"
        f" {entry['highest']:,.0f}], peak {entry['peak_mib']:.0f} MiB, {entry['pairs']:,} pairs"
    )
    return entry


def measured(work: str, **arguments: Any) -> dict[str, Any]:
    """What a process of its own says of ``work``, in the environment that ``ratchet`` works in."""
    from flows.environment import DEFAULTS

    command = [sys.executable, __file__, "--child", work, json.dumps(arguments)]
    done = subprocess.run(command, env=DEFAULTS | os.environ, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---------------------------------------------------------------------------------------------- in a process of its own
def generate(place: str, candidates: int) -> dict[str, Any]:
    """A round's candidates and judgments under ``place``, shard by shard; their keys."""
    import pyarrow.parquet as pq

    from pipeline.candidates import ASKED, SHARD
    from pipeline.store import Artifact, Draft, Spec, Store
    from pipeline.tables import PROMPTS, stored_as

    prompts = candidates // N
    store = Store(Path(place))
    sampled = Spec("candidates", 0, {"candidates": candidates})
    scored = Spec("judgments", 0, {}, {"candidates": sampled.key})

    def judged(judgments: Draft) -> Artifact:
        def made(draft: Draft) -> Artifact:
            with pq.ParquetWriter(draft.path / ASKED, PROMPTS, **stored_as(PROMPTS)) as writer:
                for number, start in enumerate(range(0, prompts, SHARD)):
                    shard = round_shard(number, min(SHARD, prompts - start))
                    writer.write_table(shard.prompts)
                    draft.commit_shard(number, shard.candidates)
                    judgments.commit_shard(number, shard.judgments)
            return draft.finish()

        store.make(sampled, made)
        return judgments.finish()

    store.make(scored, judged)
    size = sum(file.stat().st_size for file in Path(place).rglob("*.parquet"))
    return {"candidates": sampled.key, "judgments": scored.key, "disk_mib": size / 2**20}


def round_shard(number: int, prompts: int) -> Any:
    """Shard ``number`` of a round, the same whenever it is made."""
    import numpy as np
    import pyarrow as pa

    from pipeline.pairing import Shard
    from pipeline.tables import CANDIDATES, JUDGMENTS, PROMPTS

    rng = np.random.default_rng(number)
    count = prompts * N
    asked_ids, asked, ids, texts = (
        each.slice(0, prompts if at < 2 else count) for at, each in enumerate(written(number % DIFFERENT))
    )
    names = pa.array([f"{number * 1_000_000 + at:016x}" for at in range(prompts)])
    messages = pa.nulls(prompts, PROMPTS.field("messages").type).fill_null([])
    lengths = ids.value_lengths().to_numpy()
    places = pa.array(np.tile(np.arange(N, dtype=np.int32), prompts))
    candidates = [
        names.take(pa.array(np.repeat(np.arange(prompts), N))), places, ids, texts,
        pa.array(np.where(lengths >= LONGEST, "length", "stop")), pa.array(rng.integers(0, 2**62, count)),
        pa.array(-2.0 * lengths), pa.repeat("", count),
    ]  # fmt: skip
    scores = pa.array(rng.normal(0, 1, count) + 0.3 * np.log(lengths), mask=rng.random(count) < 0.01)
    offsets = pa.array(np.arange(0, count + 1, N, dtype=np.int32))
    votes = "[" + ", ".join(['{"raw": "a rather long reply", "score": 4}'] * N) + "]"
    judgments = [
        names, pa.repeat("judge", prompts), pa.ListArray.from_arrays(offsets, scores), pa.repeat(votes, prompts)
    ]  # fmt: skip
    nothing = [pa.nulls(prompts, pa.string()), pa.repeat("", prompts)]
    return Shard(
        pa.table([names, asked, asked_ids, messages, *nothing], schema=PROMPTS),
        pa.table(candidates, schema=CANDIDATES),
        pa.table(judgments, schema=JUDGMENTS),
    )


@cache
def written(number: int) -> tuple[Any, Any, Any, Any]:
    """Ids and texts of a whole shard's prompts, then of its candidates."""
    import numpy as np

    from pipeline.candidates import SHARD

    rng = np.random.default_rng(10_000 + number)
    prompts = words(rng, rng.lognormal(np.log(40), 0.5, SHARD))
    return *prompts, *words(rng, rng.lognormal(np.log(TOKENS) - 0.18, 0.6, SHARD * N))


def words(rng: Any, lengths: Any) -> tuple[Any, Any]:
    """Token ids and texts of these lengths, a word a token, used as unevenly as Zipf says."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from pipeline.tables import IDS

    sizes = np.clip(lengths, 1, LONGEST).astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    ids = np.minimum(rng.zipf(1.3, int(sizes.sum())) - 1, WORDS - 1).astype(np.int32)
    spelt = pa.ListArray.from_arrays(offsets, vocabulary().take(pa.array(ids)))
    return pa.ListArray.from_arrays(offsets, pa.array(ids), type=IDS), pc.binary_join(spelt, " ")


@cache
def vocabulary() -> Any:
    import numpy as np
    import pyarrow as pa

    letters, rng = list("etaoinshrdlu"), np.random.default_rng(0)
    return pa.array(["".join(rng.choice(letters, rng.integers(1, 8))) for _ in range(WORDS)])


def stage(
    place: str, candidates: str, judgments: str, threads: int | None, settings: dict[str, Any], disk_mib: float
) -> dict[str, Any]:
    """The whole stage, once."""
    from pipeline.config import PairingConfig
    from pipeline.pairing.artifact import Round, make_pairs, pairs_spec
    from pipeline.protocols import silent
    from pipeline.store import Store

    kernel(seconds=0.1)  # a run has loaded by then what the first shard makes Arrow load
    store, config = Store(Path(place)), PairingConfig.model_validate(settings)
    begin, cpu = time.perf_counter(), time.process_time()
    source = Round(store.get("candidates", candidates), store.get("judgments", judgments))
    spec = pairs_spec(source.candidates, source.judgments, config, 0)
    made = store.make(spec, lambda draft: make_pairs(draft, source, config, threads, silent))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    shutil.rmtree(made.path)  # or the next repetition would find it
    return {"seconds": seconds, "cpu_seconds": cpu, "pairs": made.manifest["rows"], "peak_mib": peak()}


def kernel(seconds: float) -> dict[str, Any]:
    """One shard paired again and again."""
    from pipeline.config import PairingConfig
    from pipeline.pairing import Origin, Yardstick, pair

    shard, config, origin = round_shard(0, 256), PairingConfig(), Origin(0, "c", "j")
    pair(shard, config, Yardstick(), origin)
    turns, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        pair(shard, config, Yardstick(), origin)
        turns += 1
    return {"per_second": turns * shard.candidates.num_rows / (time.perf_counter() - begin)}


def peak() -> float:
    """MiB of resident memory this process ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise KeyError("VmHWM")


CHILDREN = {"generate": generate, "stage": stage, "kernel": kernel}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        app()
