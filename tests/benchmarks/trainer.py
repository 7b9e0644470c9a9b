"""Ratchet's DPO step against TRL's DPOTrainer: same model, data, precision, optimiser and pairs a step.

Two opponents, each with precomputed reference values and at its best batch size: TRL as installed, and TRL with a good
chunked head in place of its own, which is made for Triton and slow on CPUs. Contestants take turns within a repetition,
each in a process of its own; ratios are paired by repetition, given as median [lowest–highest], of CPU time with one
thread and of elapsed time with more.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

RESULTS = Path(__file__).parent / "results" / "trainer-cpu.json"
SECTIONS = ("short", "typical", "long", "groups", "reference", "float32", "memory", "gpu")
EXAMPLES = """
\b
Examples:
  python tests/benchmarks/trainer.py                          everything, about an hour and a half
  python tests/benchmarks/trainer.py --quick                  does it run? two minutes, no numbers to quote
  python tests/benchmarks/trainer.py --only typical,memory --models A
  python tests/benchmarks/trainer.py --only long --repetitions 9 --batch ideal=2,installed=1
  python tests/benchmarks/trainer.py --only gpu --json gpu.json
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def sizes(text: str) -> dict[str, int]:
    """ "ideal=2,installed=1" as a table."""
    try:
        return {name: int(size) for name, size in (item.split("=") for item in text.split(",") if item)}
    except ValueError:
        raise typer.BadParameter(f"{text!r}; write it like ideal=2,installed=1") from None


@app.command(help=__doc__, epilog=EXAMPLES)
def main(
    only: Annotated[str, typer.Option(help=f"Sections, by comma: {', '.join(SECTIONS)}.")] = ",".join(SECTIONS),
    models: Annotated[str, typer.Option(help="A (hidden 256, vocabulary 32k), B (512, 8k).")] = "A,B",
    pairs: Annotated[int, typer.Option(help="Pairs an optimiser step.")] = 32,
    warm_up: Annotated[int, typer.Option(help="Untimed steps before, until the heap has grown.")] = 5,
    repetitions: Annotated[int, typer.Option(help="Timed steps.")] = 5,
    installed: Annotated[int, typer.Option(help="Timed steps of TRL as installed, which is slow.")] = 2,
    batch: Annotated[str, typer.Option(help="TRL's batch sizes; tried out where not given.")] = "",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    contestants: Annotated[str, typer.Option(help="Who takes part.")] = "installed,ideal,ours",
    allocator: Annotated[str, typer.Option(help="Freed memory: keep it in the process, or default.")] = "keep",
    json: Annotated[Path, typer.Option(help="Where the numbers and all samples go.")] = RESULTS,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the layers of every contestant.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test: one model, few pairs, one repetition.")] = False,
) -> None:
    chosen = only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        raise typer.BadParameter(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if quick:
        chosen, models = ["typical", "groups", "reference", "float32", "memory"], "A"
        pairs, warm_up, repetitions, installed = 4, 1, 1, 1
        batch, json = batch or "ideal=2,installed=1", Path(os.devnull) if json == RESULTS else json
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, so before any of the rest

    from contest import Contest

    contest = Contest(
        models=models.split(","), names=contestants.split(","), pairs=pairs, warm_up=warm_up, repetitions=repetitions,
        installed=installed, threads=threads, batch_sizes=sizes(batch), quick=quick,
        allocator=allocator, compile=compile,
    )  # fmt: skip
    sys.exit(not contest.run(chosen, json))


if __name__ == "__main__":
    app()
