"""The exceptions Ratchet raises for its users, as one tree.

    RatchetError
    ├── ConfigError            a recipe, a --set or a flag is wrong; nothing has started
    ├── DataError              prompts, a corpus or a data set cannot be used as given
    ├── StoreError             an artifact cannot be read or written
    │   └── BusyError          another process holds the run
    ├── SamplingError          an engine refused or failed
    │   ├── EngineDiedError    the engine's process is gone
    │   └── WeightSyncError    the engine does not serve the policy it was given
    ├── JudgeError             a judge cannot work at all (one group it cannot judge is an abstention)
    │   └── UnfitJudgeError    a judge's health is not what the recipe requires
    ├── TrainingError          a step was refused
    │   ├── StepZeroError      policy and reference disagree at step 0
    │   └── NonFiniteError     a loss or a gradient is NaN or infinite
    ├── HubError               the Hugging Face Hub refused a push or could not be reached
    └── OverdueError           a stage takes longer than it may

The command line turns each into one line on stderr and its ``exit_code``. Anything else that escapes is a bug
and keeps its traceback. ``assert`` states invariants of ours; these classes state what a user can mend.
"""


class RatchetError(Exception):
    """Base of all. The message is one line a user can act on: what is wrong, the value, what is allowed."""

    exit_code = 1


class ConfigError(RatchetError):
    exit_code = 2


class DataError(RatchetError):
    exit_code = 3


class StoreError(RatchetError):
    exit_code = 4


class BusyError(StoreError):
    exit_code = 5


class SamplingError(RatchetError):
    exit_code = 6


class EngineDiedError(SamplingError):
    pass


class WeightSyncError(SamplingError):
    pass


class JudgeError(RatchetError):
    exit_code = 7


class UnfitJudgeError(JudgeError):
    pass


class TrainingError(RatchetError):
    exit_code = 8


class StepZeroError(TrainingError):
    """The policy does not equal its reference before the first update."""


class NonFiniteError(TrainingError):
    pass


class HubError(RatchetError):
    exit_code = 9


class OverdueError(RatchetError):
    exit_code = 10
