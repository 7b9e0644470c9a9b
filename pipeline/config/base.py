"""What all parts of a recipe share."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator


class Strict(BaseModel):
    """Unknown keys, NaN and infinity are refused, and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


CONDITION = re.compile(r"\s*(?P<metric>[\w.-]+)\s*(?P<operator>>=|<=|>|<)\s*(?P<limit>-?\d+(\.\d+)?(e-?\d+)?)\s*")
"""``metric operator number``, e.g. ``kl <= 10``."""
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.:+-]*$")]
"""Of a model or a source, where records and links name it: a letter or a digit, then those and ``_ . : + -``."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""``auto`` keeps the checkpoint's own."""


class Call(Strict):
    """A function of the user's, named ``module:function`` or ``path/to/file.py:function``."""

    function: str
    args: dict[str, Any] = {}
    """Keyword arguments, passed as they are."""

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not re.fullmatch(r"[^:]+:[A-Za-z_]\w*", value):
            raise ValueError("must look like 'module:function' or 'path/to/file.py:function'")
        return value


def compiles(pattern: str) -> str:
    """Raises ValueError where ``pattern`` is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]
