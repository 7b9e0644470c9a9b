"""People as judges."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import Strict


class HumanJudge(Strict):
    """Votes collected with ``ratchet annotate``. A candidate's score is its mean result over all votes on it (win 1,
    tie ½, loss 0; "both bad" 0); without enough votes it abstains."""

    type: Literal["human"]
    votes: str
    """The file ``ratchet annotate`` writes."""
    least: int = Field(1, ge=1)
    """Votes a comparison needs."""
    exclude: tuple[str, ...] = ()
    """Annotators who do not count."""
    accuracy: float | None = Field(None, ge=0, le=1)
    """Share of calibration items an annotator must have answered as known to count; who answered none does not. None:
    everyone counts."""
