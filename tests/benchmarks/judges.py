"""Judges: what a paid call costs besides its price.

``client``: calls a second from one process against a local server of fixed latency and capacity, in a process of its
own, as a share of what the server could do; beside it the openai library as it comes, and bare sockets, which show what
this machine can reach at all. ``ledger``: time a call spends in the ledger. ``reward``: scoring with a reward model,
against a plain transformers loop.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "judges-cpu.json"
EXAMPLES = """
\b
Examples:
  python tests/benchmarks/judges.py                       everything, about five minutes
  python tests/benchmarks/judges.py --quick               does it run? no numbers to quote
  python tests/benchmarks/judges.py --only client,ledger --repetitions 5
"""

Section = Callable[[bool, int], dict[str, Any]]
"""Called with ``quick`` and the repetitions; prints its table, and returns what goes into the JSON."""

sys.path.insert(0, str(ROOT))
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def client(quick: bool, repetitions: int) -> dict[str, Any]:
    from calling import throughput

    return throughput(calls=1024 if quick else 10_240, repetitions=repetitions)


def ledger(quick: bool, repetitions: int) -> dict[str, Any]:
    from calling import overhead

    return overhead(calls=500 if quick else 10_000, repetitions=repetitions)


def reward(quick: bool, repetitions: int) -> dict[str, Any]:
    from reward_scoring import scoring

    return scoring(quick, repetitions)


SECTIONS: dict[str, Section] = {"client": client, "ledger": ledger, "reward": reward}


@app.command(help=__doc__, epilog=EXAMPLES)
def main(
    only: Annotated[str, typer.Option(help=f"Sections, by comma: {', '.join(SECTIONS)}.")] = ",".join(SECTIONS),
    repetitions: Annotated[int, typer.Option(help="Of each measurement.")] = 3,
    json: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test: few calls, one repetition, no file.")] = False,
) -> None:
    chosen = only.split(",")
    if unknown := set(chosen) - SECTIONS.keys():
        raise typer.BadParameter(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    results = {name: SECTIONS[name](quick, 1 if quick else repetitions) for name in chosen}

    from measure import machine  # only now: torch is not to be in the process that is measured
    from report import save

    if not quick or json != RESULTS:
        save({"machine": machine(), **results}, json)


if __name__ == "__main__":
    app()
