"""Groups for the tests of language models as judges, and the other side of the wire: who is asked about what."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from judges.llm.scales import Scale, Structured, written
from pipeline.types import Candidate, Group, Prompt

JURY = {"model": "judge", "structured": "json_schema", "tries": 1, "timeout": 10.0}


def group(*texts: str, prompt: str = "p") -> Group:
    candidates = tuple(Candidate(i, (5,), text, "stop", seed=i) for i, text in enumerate(texts))
    return Group(Prompt(prompt, f"question {prompt}", (1, 2)), candidates)


def shown(body: Mapping[str, Any]) -> list[str]:
    """The responses in a request, in the order they are shown in."""
    content = body["messages"][-1]["content"]
    return re.findall(r"<response ?[AB]? \w{16}>\n(.*?)\n</response", content, re.DOTALL)


def answers(scale: Scale, judge: Callable[..., str], structured: Structured = "json_schema") -> Callable[..., str]:
    """What an API server replies where ``judge`` names a label for the texts shown."""
    return lambda body: written(scale, judge(*shown(body)), structured, "Because.")
