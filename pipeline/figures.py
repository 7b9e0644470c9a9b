"""What each number of a run is called, what it means in a few words, and how it is written for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["share", "nats", "tokens", "seconds", "count", "score", "delta", "ratio", "plain"]

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Figure:
    label: str
    unit: Unit = "plain"
    meaning: str = ""


EVALUATION: Mapping[str, Figure] = {
    "win_rate_vs_initial": Figure(
        "Win rate against initial", "share",
        "how often its sample scores above the initial policy's on the same held-out prompt, ties counting half;"
        " 50% is no difference",
    ),
    "win_rate": Figure(
        "Win rate against start", "share",
        "how often its sample scores above that of the policy the round started from, ties counting half",
    ),
    "ties": Figure("Ties", "share", "comparisons with the policy the round started from that end with equal scores"),
    "score_mean": Figure("Mean score", "score", "of held-out samples, in the judge's own units"),
    "score_delta": Figure("Score gained", "delta", "mean score minus the initial policy's on the same prompts"),
    "kl": Figure("KL to initial", "nats", "KL(policy ‖ initial policy) in nats a completion: how far it has moved"),
    "length": Figure("Length", "tokens", "mean tokens a completion"),
    "length_ratio": Figure("Length ratio", "ratio", "mean length over the initial policy's"),
    "truncated": Figure("Truncated", "share", "completions cut off at the token limit"),
    "distinct": Figure("Distinct texts", "share", "different texts among all samples; falling to few is a collapse"),
    "prompts": Figure("Held-out prompts", "count", "never trained on"),
    "samples": Figure("Samples", "count", "drawn for these figures"),
}  # fmt: skip

TRAINING: Mapping[str, Figure] = {
    "step": Figure("Steps", "count", "optimiser steps in the round"),
    "epoch": Figure("Epochs", "ratio", "passes over the round's pairs"),
    "loss": Figure("Loss", "plain", "weighted sum of the loss terms"),
    "rewards/margins": Figure("Reward margin", "nats", "implicit reward of chosen minus that of rejected"),
    "rewards/accuracies": Figure("Reward accuracy", "share", "pairs whose chosen reward is the higher"),
    "rewards/chosen": Figure("Reward, chosen", "nats", "implicit reward of the chosen completions"),
    "rewards/rejected": Figure("Reward, rejected", "nats", "implicit reward of the rejected completions"),
    "logps/chosen": Figure("Log-probability, chosen", "nats", "of a whole completion under the policy"),
    "logps/rejected": Figure("Log-probability, rejected", "nats", "of a whole completion under the policy"),
    "reference_logps/chosen": Figure("Reference, chosen", "nats", "their log-probability under the reference"),
    "reference_logps/rejected": Figure("Reference, rejected", "nats", "their log-probability under the reference"),
    "lengths/chosen": Figure("Length, chosen", "tokens", "mean tokens of the chosen completions"),
    "lengths/rejected": Figure("Length, rejected", "tokens", "mean tokens of the rejected completions"),
    "nll": Figure("NLL", "nats", "negative log-likelihood of the chosen completions, a token"),
    "kl": Figure("KL to reference", "nats", "estimated on the training pairs"),
    "grad_norm": Figure("Gradient norm", "plain", "before clipping"),
    "learning_rate": Figure("Learning rate", "plain", "at the last step"),
    "kl_initial": Figure("KL to initial", "nats", "estimated on the training pairs"),
    "truncated": Figure("Truncated", "share", "the last batch's completions that stopped at the token limit"),
    "tokens": Figure("Tokens", "count", "in the last batch, as packed: each prompt and completion once"),
    "tokens_per_second": Figure("Tokens a second", "count", "training speed"),
    "pairs_per_second": Figure("Pairs a second", "plain", "training speed"),
    "mfu": Figure("MFU", "share", "arithmetic that the training needs, of what the GPU could do in that time"),
    "memory/gpu_gib": Figure("GPU memory, GiB", "plain", "what tensors took at most"),
    "memory/process_gib": Figure("Memory, GiB", "plain", "largest resident set of the process, whatever it was doing"),
    "held_out": Figure("Held-out pairs", "count", "of prompts that no round trains on; measured after the last step"),
    "stopped": Figure("Ended early", "plain", "what the guard said that ended the training before its last step"),
}  # fmt: skip

DATA: Mapping[str, Figure] = {
    "groups": Figure("Groups", "count", "prompts with their candidates, judged"),
    "paired": Figure("Groups paired", "count", "groups that gave a pair; the others were dropped"),
    "pairs": Figure("Pairs kept", "count", "preference pairs that the rule and the filters gave"),
    "margin/mean": Figure("Margin, mean", "score", "score of chosen minus score of rejected, kept pairs"),
    "margin/median": Figure("Margin, median", "score"),
    "margin/std": Figure("Margin, deviation", "score", "standard deviation"),
    "scores/mean": Figure("Score, mean", "score", "all the round's candidates"),
    "scores/std": Figure("Score, deviation", "score", "standard deviation"),
    "scores/abstained": Figure("Abstained", "share", "candidates the judge gave no score"),
}

LEFT_OUT = Figure("Prompts left out", "count", "in no group, because too few candidates of theirs came")
MISSING_REASONS: Mapping[str, str] = {
    "too_few": "its prompt has too few candidates to compare",
    "empty": "an answer without words",
    "content_filter": "the provider hid the answer",
    "refused_by_template": "the model's chat template does not take the conversation, and it was not asked",
    "prompt_too_long": "the model cannot read so long a prompt, and was not asked",
    "too_long": "longer, with its prompt, than the policy can read",
    "special_token": "it spells one of the policy's special tokens",
}
"""Why a candidate is in no group; where it is none of these, the call for it was given up."""

DROP_REASONS: Mapping[str, str] = {  # as ``pairing.REASONS`` defines them
    "abstained": "fewer than two candidates have a score",
    "identical": "every scored candidate is the same completion, or the best and the worst one are",
    "tie": "all scores are equal, or all that the rule compares, though the completions differ",
    "truncated": "what scored above the worst had stopped at the token limit",
    "empty": "what scored above the worst was empty",
    "threshold": "no candidate that may be chosen reaches the threshold, or none is below it",
    "margin": "the two scores differ by less than the margin asked for",
    "floor": "the chosen score is below the lowest one allowed",
    "length_ratio": "one completion is too many times as long as the other",
    "same_words": "the two texts differ in white space alone",
    "near_identical": "the two texts are too much alike",
    "keep": "the margin is not among the widest of the round",
}

STAGES: Mapping[str, str] = {
    "sample": "the round's candidates",
    "judge": "scores of the candidates",
    "pair": "preference pairs from the scores",
    "replay": "pairs of earlier rounds, drawn to be trained on again",
    "reference": "log-probabilities of the pairs under the reference",
    "initial_reference": "the same under the initial policy, for the KL to it",
    "train": "the optimiser's steps",
    "evaluate": "held-out samples, their scores and the probes",
    "engine": "starting the sampling engine and moving weights into it",
    "policy": "the initial policy: made or fetched",
    "prompts": "read and rendered",
}


def training_figure(name: str) -> Figure:
    """What a trainer's metric is; one term of the loss and what is measured on held-out examples have names made up
    of others, and so has what is known of completions labelled one by one."""
    if name in TRAINING:
        return TRAINING[name]
    kind, _, rest = name.partition("/")
    if kind == "eval":
        figure = training_figure(rest)
        return Figure(f"Held out: {figure.label[:1].lower()}{figure.label[1:]}", figure.unit, figure.meaning)
    pair = f"{kind}/{'chosen' if rest == 'desirable' else 'rejected'}"
    if rest in ("desirable", "undesirable") and pair in TRAINING:
        figure = TRAINING[pair]
        return Figure(f"{figure.label.partition(',')[0]}, {rest}", figure.unit, f"of the {rest} completions")
    return Figure(f"Loss, {rest}" if kind == "loss" else name)


def stage_names(seconds: Sequence[Mapping[str, float]]) -> list[str]:
    """Every stage timed, in the order of the rounds that have the most of them."""
    return list(dict.fromkeys(name for entry in sorted(seconds, key=len, reverse=True) for name in entry))


def probe(name: str, config: Mapping[str, Any]) -> Figure:
    """What the probe of that name measures, by the run's own config; a share of samples where it does not say."""
    asked: Mapping[str, Any] = ((config.get("evaluation") or {}).get("probes") or {}).get(name) or {}
    prompts: Sequence[str] = asked.get("prompts") or ()
    on = f"“{prompts[0]}”" if len(prompts) == 1 else f"{len(prompts)} prompts (“{prompts[0]}” …)" if prompts else ""
    if asked.get("type") == "kl" or (not asked and name.endswith("kl")):
        return Figure(name, "nats", f"KL to the initial policy on {on}, nats a completion" if on else "nats")
    if not asked:
        return Figure(name, "share", "")
    pattern = shortened(str(asked.get("pattern")), 40)
    meaning = f"share of {asked.get('samples', '')} samples a prompt that are exactly /{pattern}/, on {on}"
    return Figure(name, "share", meaning)


def shortened(pattern: str, limit: int) -> str:
    """A regular expression in at most ``limit`` characters, cut between alternatives where it has some."""
    if len(pattern) <= limit:
        return pattern
    whole = pattern.rfind("|", 0, limit)
    return f"{pattern[: whole + 1 if whole > 0 else limit - 1]}…"


def write(value: Any, unit: Unit = "plain") -> str:
    """``value`` as a reader wants it in that unit; a dash where there is none.

    Shares become per cent, gains carry their sign, and every number of one unit gets the same number of decimals
    where that is possible, so that columns line up.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return _digits(value, unit).replace("-", "−")


def _digits(value: float, unit: Unit) -> str:
    match unit:
        case "share":
            return f"{100 * value:.1f}%"
        case "nats" | "ratio" if value == 0 or abs(value) >= 0.005:
            return f"{value:.2f}"
        case "tokens" | "seconds":
            return f"{value:,.1f}"
        case "delta":
            return f"{value:+.3f}" if abs(value) < 100 else f"{value:+,.1f}"
    if unit == "count" or isinstance(value, int):
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(values: Mapping[str, Any], name: str, unit: Unit) -> str:
    """The 95% interval of ``name`` as ``[low, high]``, empty where the run has none."""
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    if low is None or high is None:
        return ""
    return f"[{write(low, unit)}, {write(high, unit)}]"


def missing_text(missing: Mapping[str, Mapping[str, int]]) -> str:
    """``big: 4 timeout; the policy: 2 too_few``, of candidates by model and reason."""
    return "; ".join(
        f"{model or 'the policy'}: {', '.join(f'{count:,} {reason}' for reason, count in reasons.items())}"
        for model, reasons in missing.items()
    )


def prompts_text(rounds: int, held_out: int, dropped: Mapping[str, int]) -> str:
    """``20 for the rounds, 2 held out; dropped: 2 bad, 1 duplicate``, of the rows that prompts were read from."""
    lost = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
    return f"{rounds:,} for the rounds, {held_out:,} held out{f'; dropped: {lost}' if lost else ''}"


def duration(seconds: float) -> str:
    """``3.1 s``, ``2 min 05 s``, ``3 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
