"""Where people look for what a round made: the run's folder, the terminal, the report, Prefect's page."""

from collections.abc import Mapping
from dataclasses import asdict

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.console import round_rows
from flows.session import Workshop
from pipeline.conditions import written
from pipeline.store import Artifact
from pipeline.types import RoundState


def publish(session: Workshop, state: RoundState, made: Mapping[str, Artifact]) -> None:
    """Write a round down that is over; ``made`` are its artifacts, by stage."""
    run, entry = session.run, asdict(state)
    run.save_round(state)
    for name, artifact in made.items():
        run.link(f"round-{state.round:03d}/{name}", artifact.path)
    session.console.round_table(entry)
    session.write_report()
    key = f"{run.name}-round-{state.round}".lower().replace("_", "-").replace(".", "-")
    rows = [{"figure": name, "value": value} for name, value in round_rows(entry, markup=False)]
    create_table_artifact(table=rows, key=f"{key}-table", description=f"Round {state.round} of {run.name}")
    if state.gate.decision == "none":
        return
    create_markdown_artifact(
        key=f"{key}-gate",
        markdown=f"## Round {state.round}: {state.gate.decision}\n\n{state.gate.reason}\n\n"
        + "\n".join(f"- {'✓' if c.passed else '✗'} `{c.condition}`: {written(c.value)}" for c in state.gate.checks)
        + f"\n\nReport: `{run.directory / 'report.html'}`",
    )
