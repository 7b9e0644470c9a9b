"""What a language model is asked: a Jinja template and a group's texts become messages.

Everything that comes from a data set or a policy goes between fences: lines that carry a word derived from the very
texts they enclose. So a rerun asks the same, word for word, and finds its answers in the ledger; and no candidate can
close its own fence, because to write the word it would have to contain a hash of itself.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined, TemplateError, meta

from pipeline.errors import ConfigError
from pipeline.types import Message, Prompt

Kind = Literal["pointwise", "pairwise"]
PACKAGED = Path(__file__).parent / "templates"
FENCE_LENGTH = 16
"""Hexadecimal digits: 64 bits."""
COMMON = ("turns", "prompt", "answer", "rubric", "reasoning", "form", "fence")
VARIABLES: Mapping[Kind, tuple[str, ...]] = {
    "pointwise": (*COMMON, "candidate", "lowest", "highest"),
    "pairwise": (*COMMON, "first", "second", "ties"),
}
"""What a template may use; each packaged template says what they hold."""
SHOWN: Mapping[Kind, tuple[str, ...]] = {"pointwise": ("candidate",), "pairwise": ("first", "second")}
"""What a template must show."""


class Template:
    """One judge's prompt: the packaged one of its kind, or the user's file.

    Raises:
        ConfigError: the file is missing, is no Jinja template, uses an unknown variable, fails on a trial, or leaves
            out what is to be judged.
    """

    def __init__(self, kind: Kind, file: str | None = None) -> None:
        path = PACKAGED / f"{kind}.jinja" if file is None else Path(file).expanduser()
        if not path.is_file():
            raise ConfigError(f"template: {file!r} is not a file")
        self._label, self._kind = str(path) if file is None else file, kind
        packaged = PrefixLoader({"ratchet": FileSystemLoader(PACKAGED)})
        self._environment = Environment(
            loader=ChoiceLoader([packaged, FileSystemLoader(path.parent)]), undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, autoescape=False,  # plain text, never a page
        )  # fmt: skip
        sources = self._check_names(path.name)
        self.digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
        """Over the texts of the template and of those it extends or includes."""
        self._template = self._environment.get_template(path.name)
        self._blocks: dict[str, Any] = {}
        self._try()

    def render(self, values: Mapping[str, Any]) -> tuple[Message, ...]:
        """The messages: the blocks ``system`` and ``user``, or all of a template that has no block ``user``."""
        context = self._template.new_context(dict(values))
        if not self._blocks:  # rendering all of it collects the blocks, those of what it extends too
            whole = "".join(self._template.root_render_func(context))
            if "user" not in context.blocks:
                return (Message(role="user", content=_encodable(whole.strip())),)
            self._blocks = dict(context.blocks)
        context.blocks = self._blocks
        return tuple(
            Message(role=name, content=_encodable("".join(context.blocks[name][0](context)).strip()))
            for name in ("system", "user")
            if name in context.blocks
        )

    def _check_names(self, name: str) -> list[str]:
        """The texts of the template and of those it builds on, once no branch of any has an unknown variable."""
        allowed = {*VARIABLES[self._kind], *self._environment.globals}
        sources: list[str] = []
        names = [name]
        for each in names:
            try:
                assert self._environment.loader is not None
                source, _, _ = self._environment.loader.get_source(self._environment, each)
                tree = self._environment.parse(source)
                unknown = sorted(meta.find_undeclared_variables(tree) - allowed)
            except (TemplateError, OSError, UnicodeError) as error:
                raise ConfigError(f"template {self._label!r}: {each}: {_described(error)}") from error
            if unknown:
                allowed_names = ", ".join(VARIABLES[self._kind])
                raise ConfigError(f"template {self._label!r} uses {unknown[0]!r}; allowed: {allowed_names}")
            sources.append(source)
            names += [other for other in meta.find_referenced_templates(tree) if other and other not in names]
        return sources

    def _try(self) -> None:
        for prompt in _trials():
            texts = {name: f"trial text: {name}" for name in SHOWN[self._kind]}
            values = dict.fromkeys(VARIABLES[self._kind], "") | {"lowest": 1, "highest": 9, "ties": True}
            try:
                messages = self.render(values | {"reasoning": True, "form": "Answer."} | subject(prompt, texts))
            except Exception as error:  # a template may do anything
                raise ConfigError(f"template {self._label!r} fails on a trial: {_described(error)}") from error
            shown = "\n".join(message["content"] for message in messages)
            for name, text in texts.items():
                if text not in shown:
                    raise ConfigError(f"template {self._label!r} does not show {name!r}, which is to be judged")


def subject(prompt: Prompt, texts: Mapping[str, str]) -> dict[str, Any]:
    """The template's variables that come from a group: ``texts`` by their names, the conversation, and the fence."""
    turns = [dict(turn) for turn in prompt.messages] or [{"role": "user", "content": prompt.text}]
    about = {"turns": turns, "prompt": prompt.text, "answer": prompt.answer, **texts}
    return about | {"fence": fence(about)}


def fence(about: Mapping[str, Any]) -> str:
    """A word that occurs in no text of ``about`` and depends on them all."""
    content = json.dumps(about, ensure_ascii=False, sort_keys=True)
    word = hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()
    while word[:FENCE_LENGTH] in content:
        word = hashlib.sha256(word.encode()).hexdigest()
    return word[:FENCE_LENGTH]


def _trials() -> Iterator[Prompt]:
    turns = [Message(role=role, content=f"trial {role}") for role in ("system", "user", "assistant", "user")]
    yield Prompt("trial", "trial prompt", ())
    yield Prompt("trial", "trial prompt", (), answer="42")
    yield Prompt("trial", "trial user", (), messages=tuple(turns))


def _encodable(text: str) -> str:
    """``text`` with halves of surrogate pairs, which no request can carry, as question marks."""
    return text.encode(errors="replace").decode()


def _described(error: BaseException) -> str:
    """One line: errors of templates may have several, or none."""
    return " ".join(str(error).split()) or type(error).__name__
