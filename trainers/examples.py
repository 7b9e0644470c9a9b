"""What a trainer trains on: token ids, compared in pairs or labelled one by one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and one completion of it, as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, one preferred."""

    chosen: Row
    rejected: Row
    margin: float = 0.0
    """Judge's score of chosen minus that of rejected, ≥ 0, in the judge's units; 0 where it gave none."""
    preference: float = 1.0
    """Probability that chosen is the better one, in [0.5, 1]: below 1 it is a soft label."""
    source: str = ""
    """Data set or judge's axis the pair is from; selects its β."""
    prompt_id: str = ""
    """Tells asking one prompt twice from two pairs of one group; empty where the data set names no prompts."""

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class Single:
    """One completion, labelled good or bad by itself (KTO's unpaired data)."""

    row: Row
    desirable: bool
    source: str = ""
    prompt_id: str = ""

    @property
    def rows(self) -> tuple[Row, ...]:
        return (self.row,)


Example = Pair | Single
