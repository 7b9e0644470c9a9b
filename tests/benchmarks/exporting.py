"""Exporting a data set: candidates a second, and the most memory it takes, from 10 thousand to 5 million candidates.

Runs are made by hand, through the store, with the pairing of a real round; each is exported in a process of its own,
whose high-water mark of resident memory is what it took, the interpreter and its libraries included.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.runs import Run
    from pipeline.store import Artifact

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "exporting-cpu.json"
N = 8
"""Candidates a prompt."""
WORDS = 60
"""A completion has about."""
EXAMPLES = """
\b
Examples:
  python tests/benchmarks/exporting.py                              10 thousand to a million
  python tests/benchmarks/exporting.py --candidates 5000000         some minutes, 10 GB of disk
  python tests/benchmarks/exporting.py --quick                      does it run? no numbers to quote
"""

sys.path.insert(0, str(ROOT))
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def make(workspace: Path, candidates: int) -> None:
    """A run of one round with so many candidates, judged and paired."""
    from pipeline.config import PairingConfig, RunConfig
    from pipeline.pairing.artifact import Round, make_pairs, pairs_spec
    from pipeline.protocols import silent
    from pipeline.runs import Run
    from pipeline.store import write_json
    from tests.exported import CONFIG, POLICIES

    run = Run(workspace, "big")
    run.directory.mkdir(parents=True)
    made, judged = _judged(run, candidates // N)
    config = PairingConfig()
    spec = pairs_spec(made, judged, config, 0)
    pairs = run.store.make(spec, lambda draft: make_pairs(draft, Round(made, judged), config, None, silent))
    write_json(run.directory / "config.json", RunConfig.model_validate(CONFIG).model_dump(mode="json"))
    write_json(run.directory / "round-000.json", {
        "round": 0, "policy_in": POLICIES[0], "policy_out": POLICIES[1], "gate": {"decision": "promote"},
        "artifacts": {"candidates": made.key, "judgments": judged.key, "pairs": pairs.key},
        "groups": candidates // N, "pairs": pairs.manifest["rows"], "dropped": pairs.manifest["dropped"],
    })  # fmt: skip


def _judged(run: "Run", prompts: int) -> "tuple[Artifact, Artifact]":
    """Candidates with texts drawn from a pool, and normal scores."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.candidates import ASKED, SHARD
    from pipeline.store import Draft, Spec
    from pipeline.tables import CANDIDATES, JUDGMENTS, PROMPTS

    draws = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(5000)])
    pool = np.array([" ".join(draws.choice(words, WORDS)) for _ in range(20_000)], object)
    starts = range(0, prompts, SHARD)

    def ids(count: int, each: int) -> pa.Array:
        flat = pa.array(draws.integers(0, 30_000, count * each, np.int32))
        return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * each), flat)

    def names(start: int) -> list[str]:
        return [f"{number:08d}" for number in range(start, min(start + SHARD, prompts))]

    def asked(start: int) -> pa.Table:
        found = names(start)
        texts = pa.array(draws.choice(pool, len(found)))
        none, empty = pa.nulls(len(found), pa.string()), pa.array([[]] * len(found), PROMPTS.field("messages").type)
        return pa.table([found, texts, ids(len(found), 80), empty, none, pa.repeat("", len(found))], PROMPTS.names)

    def answers(start: int) -> pa.Table:
        found = names(start)
        count = len(found) * N
        columns = [
            np.repeat(found, N), np.tile(np.arange(N), len(found)), ids(count, 80), draws.choice(pool, count),
            pa.repeat("stop", count), draws.integers(0, 2**62, count), draws.normal(-100, 10, count),
            pa.repeat("", count),
        ]  # fmt: skip
        return pa.table(columns, CANDIDATES.names)

    def scores(start: int) -> pa.Table:
        found = names(start)
        said = pa.FixedSizeListArray.from_arrays(pa.array(draws.normal(0, 1, len(found) * N)), N)
        votes = pa.repeat('[{"reply": "a few words of evidence"}]', len(found))
        return pa.table([found, pa.repeat("judge", len(found)), said, votes], JUDGMENTS.names)

    def sample(draft: Draft) -> "Artifact":
        with pq.ParquetWriter(draft.path / ASKED, PROMPTS) as writer:
            for start in starts:
                writer.write_table(asked(start).cast(PROMPTS))
        for number, start in enumerate(starts):
            draft.commit_shard(number, answers(start).cast(CANDIDATES))
        return draft.finish({"policy": "a" * 64})

    def judge(draft: Draft) -> "Artifact":
        for number, start in enumerate(starts):
            draft.commit_shard(number, scores(start).cast(JUDGMENTS))
        return draft.finish()

    made = run.store.make(Spec("candidates", 3, {"count": prompts}), sample)
    return made, run.store.make(Spec("judgments", 2, {"count": prompts}), judge)


def export(workspace: Path) -> None:
    """What is measured. Prints seconds and MiB."""
    import resource

    from pipeline.export.dataset import export_data
    from pipeline.runs import Run

    started = time.perf_counter()
    export_data(Run(workspace, "big"), workspace / "exported")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in (workspace / "exported").rglob("*.parquet")) / 2**20
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "exported_mib": size}))


@app.command(help=__doc__, epilog=EXAMPLES)
def main(
    candidates: Annotated[str, typer.Option(help="How many, by comma.")] = "10000,100000,1000000",
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test: one small run, no file.")] = False,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if worker:
        what, _, place = worker.partition(":")
        make(Path(place), int(candidates)) if what == "make" else export(Path(place))
        return
    results = {}
    for count in [2048] if quick else [int(each) for each in candidates.split(",")]:
        workspace = Path(tempfile.mkdtemp(prefix="exporting-"))
        try:
            _worker("make", workspace, count)
            told = json.loads(_worker("export", workspace, count))
        finally:
            shutil.rmtree(workspace)
        results[f"{count}"] = told | {"candidates_per_second": count / told["seconds"]}
        print(f"{count:>9,} candidates: {count / told['seconds']:>9,.0f} a second, {told['peak_mib']:.0f} MiB at most,"
              f" {told['exported_mib']:,.0f} MiB written")  # fmt: skip

    from measure import machine
    from report import save

    if not quick or json_file != RESULTS:
        save({"machine": machine(), "exporting": results}, json_file)


def _worker(what: str, workspace: Path, count: int) -> str:
    """In the environment that ``ratchet`` works in."""
    from flows.environment import DEFAULTS

    command = [sys.executable, __file__, "--worker", f"{what}:{workspace}", "--candidates", str(count)]
    return subprocess.run(command, env=DEFAULTS | os.environ, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    app()
