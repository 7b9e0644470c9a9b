"""What ``ratchet trace`` shows: a tree from the pair to its prompt, candidates, judge calls, policies and commands.

Texts are cut to a line, and of a group's votes those are shown that are about the pair; ``--json`` has everything.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from pipeline.config import PairingConfig, TrainerConfig

LONGEST = 110
"""Characters of a text."""
DIGITS = 12
"""Of a digest or a key; what `ratchet trace` takes is whole."""
COLOURS = {"chosen": "green", "rejected": "red"}
EMPTY: tuple[object, ...] = (None, "", [], {})
SHOWN = 6
"""Calls a judge."""
PAIRED = ("round",)
TRAINED = ("seed",)
ASKED = ("type", "form", "body", "version", "members")
"""Settings that are said anyway, or say nothing to people."""


def trace_tree(found: Mapping[str, Any]) -> Tree:
    """Of what :func:`flows.trace.trace` returns."""
    pair = found["pair"]
    tree = Tree(
        f"[bold]pair {pair['id']}[/]  round {pair['round']}, margin {_number(pair['margin'])}"
        f" ({_number(pair['score_chosen'])} over {_number(pair['score_rejected'])})"
    )
    _prompt(tree, found["prompt"])
    _candidates(tree, found)
    if found["judgment"] is not None:
        _judge(tree, found["judgment"], pair)
    _pairings(tree, found["pairings"])
    for role, steps in found["policies"].items():
        _policies(tree, role, steps)
    _uses(tree, found)
    if found["gaps"]:
        gaps = tree.add("[yellow]could not be read[/]")
        for gap in found["gaps"]:
            gaps.add(escape(gap))
    return tree


# ---------------------------------------------------------------------------------------------- what was compared
def _prompt(tree: Tree, prompt: Mapping[str, Any]) -> None:
    source = f", of {escape(prompt['source'])}" if prompt["source"] else ""
    branch = tree.add(f"[bold]prompt[/] {escape(prompt['id'])}{source}")
    for message in prompt["messages"] or [{"role": "", "content": prompt["text"]}]:
        role = f"[dim]{escape(message['role'])}[/] " if message["role"] else ""
        branch.add(f"{role}{_text(message['content'])}")
    if prompt["answer"] is not None:
        branch.add(f"[dim]answer[/] {_text(prompt['answer'])}")
    if (made := prompt["prompts"]) is not None:
        source = made["info"].get("source") or made["config"].get("source") or made["config"]
        branch.add(f"[dim]{_key(made)}: {_settings(source)}[/]")


def _candidates(tree: Tree, found: Mapping[str, Any]) -> None:
    rows = found["candidates"]
    branch = tree.add(f"[bold]candidates[/] {len(rows)}")
    for row in rows:
        colour = COLOURS.get(row["role"], "default")
        said = [row["finish_reason"], f"{row['tokens']} tokens" if row["tokens"] else "", f"seed {row['seed']}"]
        if row["model"]:
            said.insert(0, f"by {row['model']}")
        if row["call"] is not None:
            said.append(_paid(row["call"]))
        branch.add(
            f"[{colour}]{_score(row['score']):>8} {row['role'] or '':<8}[/] {_text(row['text'])}"
            f" [dim]#{row['index']}, {escape(', '.join(filter(None, said)))}[/]"
        )
    for made in found["sampling"]:
        branch.add(f"[dim]{_key(made)}: {_settings(made['config'])}[/]")


def _pairings(tree: Tree, pairings: Sequence[Mapping[str, Any]]) -> None:
    defaults = PairingConfig().model_dump(mode="json")
    branch = tree.add("[bold]paired[/]")
    for each in pairings:
        config = each["made"]["config"]
        rule = escape(str(config.get("rule", "best_worst")))
        changed = _settings(config, defaults, ("rule", *PAIRED))
        scores = f"{_number(each['score_chosen'])} over {_number(each['score_rejected'])}"
        branch.add(f"by {rule}{f', {changed}' if changed else ''}: {scores} [dim]{_key(each['made'])}[/]")


# ---------------------------------------------------------------------------------------------- who judged it
def _judge(tree: Tree, opinion: Mapping[str, Any], pair: Mapping[str, Any]) -> None:
    two = (pair["chosen"], pair["rejected"])
    scores = " over ".join(_score(_at(opinion["scores"], index)) for index in two)
    name = f"{opinion['member']}: " if opinion["member"] else ""
    config = opinion["made"]["config"]
    kind = config.get("type", opinion["made"]["stage"])
    branch = tree.add(
        f"[bold]{'member ' if name else 'judged by '}[/]{escape(name + opinion['judge'])}"
        f" [dim]({escape(str(kind))}, {_key(opinion['made'])})[/] {scores}"
    )
    if settings := _settings(config, without=ASKED):
        branch.add(f"[dim]{settings}[/]")
    calls = [(about, call) for about, vote in _about(opinion["votes"], two) for call in vote.get("calls", ())]
    for about, call in calls[:SHOWN]:
        branch.add(_call(about, call, opinion))
    for about, vote in [] if calls else list(_about(opinion["votes"], two))[:SHOWN]:
        branch.add(f"[dim]{about}[/] {_settings(vote) or '–'}")
    others = sum(len(vote.get("calls", ())) for vote in opinion["votes"]) - len(calls[:SHOWN])
    if others > 0:
        branch.add(f"[dim]{others} more calls about the group; --json has them[/]")
    for member in opinion["members"]:
        _judge(branch, member, pair)


def _about(votes: Sequence[Mapping[str, Any]], two: tuple[int, int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The votes that are about the pair's candidates: comparisons of both, where there is none those of one, and
    otherwise the two candidates' own."""
    compared = [(_sides(vote), vote) for vote in votes if "first" in vote]
    if compared:
        both = [each for each in compared if _meet(*each[0], *two)]
        one = [each for each in compared if {*each[0][0], *each[0][1]} & set(two)]
        for (first, second), vote in both or one:
            yield f"{_numbers(first)} against {_numbers(second)}", vote
        return
    for index in two:
        vote = _at(votes, index) or {}
        if "same_as" in vote:  # an earlier candidate has the same text, and was asked about once
            yield f"#{index} as #{vote['same_as']}", votes[vote["same_as"]]
        else:
            yield f"#{index}", vote


def _sides(vote: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Indices of the candidates on either side: people vote on texts, which several candidates may have."""
    first, second = ([side] if isinstance(side, int) else list(side) for side in (vote["first"], vote["second"]))
    return first, second


def _meet(first: list[int], second: list[int], one: int, other: int) -> bool:
    return (one in first and other in second) or (other in first and one in second)


def _numbers(indices: list[int]) -> str:
    return ", ".join(f"#{index}" for index in indices)


def _call(about: str, call: Mapping[str, Any], opinion: Mapping[str, Any]) -> str:
    key = call.get("key", "")
    paid, unanswered = opinion["calls"].get(key), opinion["unanswered"].get(key)
    order = f", {call['order']}" if "order" in call else ""
    verdict = f"{call['abstained']} (abstained)" if "abstained" in call else _number(call["value"])
    if call.get("label", verdict) != verdict:
        verdict = f"{call['label']} ({verdict})"
    head = f"[dim]{about}{order}[/] {escape(call['model'])}: [bold]{escape(verdict)}[/]"
    if paid is None:
        tried = f" tries: {_settings(unanswered)};" if unanswered else ""
        return f"{head} [dim]{tried} call {key[:DIGITS]}, no answer in the ledger[/]"
    return f"{head} {_text(paid['text'])} [dim]{escape(_paid(paid))}[/]"


def _paid(call: Mapping[str, Any]) -> str:
    tokens = f"{call['tokens_in']:,} + {call['tokens_out']:,} tokens"
    return f"{call['at']}, {tokens}, {call['cost']:.6g} paid by {call['account']}, call {call['key'][:DIGITS]}"


# ---------------------------------------------------------------------------------------------- what came before
def _policies(tree: Tree, role: str, steps: Sequence[Mapping[str, Any]]) -> None:
    branch = tree.add(f"[bold]{'policy' if role == 'policy' else escape(role)}[/] and those before it")
    defaults = TrainerConfig().model_dump(mode="json")
    for step in steps:
        made, digest = step["made"], step["digest"][:DIGITS]
        if made is None:
            branch.add(f"{digest} [yellow]nothing here holds it[/]")
            continue
        rounds = ", ".join([*map(_round, step["rounds"]), *map(_training, step["trainings"])])
        where = f" [dim]({escape(rounds)})[/]" if rounds else ""
        if made["stage"] != "train":
            kind = " ".join(filter(None, (str(made["config"].get("type", made["stage"])), step["path"])))
            branch.add(f"{digest}{where} {escape(kind)} [dim]{_key(made)}[/]")
            continue
        learnt = ", ".join(f"{name} {key[:DIGITS]}" for name, key in step["learnt_from"].items())
        against = f", against {step['reference'][:DIGITS]}" if step["reference"] else ""
        settings = _settings(made["config"], defaults, TRAINED)
        branch.add(
            f"{digest}{where} from {(step['start'] or '?')[:DIGITS]} on {escape(learnt)}{against}"
            f" [dim]{_key(made)}{f': {settings}' if settings else ''}[/]"
        )


def _round(made: Mapping[str, Any]) -> str:
    return f"{made['run']} {'start' if made['round'] < 0 else 'round ' + str(made['round'])}"


def _training(made: Mapping[str, Any]) -> str:
    return f"training {made['name']} of {', '.join(made['read'])}"


def _uses(tree: Tree, found: Mapping[str, Any]) -> None:
    if not found["uses"] and not found["trainings"]:
        tree.add("[bold]used[/] by no run here")
    using = {use["run"] for use in found["uses"]}
    for run, commands in found["commands"].items():
        branch = tree.add(f"[bold]{'used[/] by' if run in using else 'paired anew[/] of'} run {escape(run)}")
        for use in found["uses"]:
            if use["run"] == run:
                end = f" to policy {use['policy'][:DIGITS]}, {use['decision']}" if use["policy"] else ", not trained on"
                end = f", held out,{end}" if use["held_out"] else end
                again = " again" if use["stage"] == "replay" else ""
                branch.add(f"round {use['round']}{again}{end} [dim]{_key(use)}[/]")
        _commands(branch, commands)
    for training in found["trainings"]:
        name, read = training["name"], ", ".join(training["read"])
        branch = tree.add(f"[bold]read[/] by training {escape(name)} (as {escape(read)})")
        _commands(branch, training["commands"])


def _commands(branch: Tree, commands: Sequence[Mapping[str, Any]]) -> None:
    for command in commands:
        versions = ", ".join(f"{name} {version}" for name, version in command["versions"].items())
        anew = "[dim]paired anew:[/] " if command["anew"] else ""
        branch.add(f"{anew}$ {escape(command['line'])} [dim]{command['at']}, {escape(versions)}[/]")


# ---------------------------------------------------------------------------------------------- words
def _key(made: Mapping[str, Any]) -> str:
    return f"{made['stage']} {made['key'][:DIGITS]}"


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def _number(value: float) -> str:
    return f"{value:.4g}"


def _score(value: float | None) -> str:
    return "–" if value is None else _number(value)


def _text(text: str) -> str:
    line = text.replace("\n", " ⏎ ")
    return escape(line if len(line) <= LONGEST else line[: LONGEST - 1] + "…")


def _settings(config: Mapping[str, Any], defaults: Mapping[str, Any] = {}, without: Sequence[str] = ()) -> str:
    """``name value`` of those that say something: not empty, and not the default."""
    said = {
        name: value
        for name, value in config.items()
        if name not in without and value not in EMPTY and defaults.get(name) != value
    }
    return escape(_cut(", ".join(f"{name} {_value(value)}" for name, value in said.items())))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        said = (f"{name} {_value(each)}" for name, each in value.items() if each not in EMPTY)
        return "{" + ", ".join(said) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str) and len(value) in (32, 64) and not set(value) - set("0123456789abcdef"):
        return value[:DIGITS]
    return _number(value) if isinstance(value, float) else str(value)


def _cut(line: str) -> str:
    return line if len(line) <= 2 * LONGEST else line[: 2 * LONGEST - 1] + "…"
