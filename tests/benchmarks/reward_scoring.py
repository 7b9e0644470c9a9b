"""Scoring with a reward model: Ratchet's judge against a plain transformers loop, on conversations of mixed lengths.

The plain loop is what model cards show: batches of 8 in the order of the file, padded to the longest. Both read text,
render the same template and end with the same raw logits; they take turns in one process.
"""

import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from judges import make_judge
from measure import alternate, keep_freed_memory, ratio
from pipeline.config import RewardModelJudge
from pipeline.types import Candidate, Group, Judgment, Prompt
from report import table

BATCH, CANDIDATES = 8, 4
WORDS = 2000
TEMPLATE = "{% for m in messages %}{{ '<turn> ' + m['content'] + ' ' }}{% endfor %}<end>"
SHAPES = {
    "A": {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 2},
    "B": {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 4},
}
PROMPT, ANSWER = (60, 0.8), (120, 0.8)
"""Median of the words, and standard deviation of their logarithm."""
LONGEST = 900
GOAL = 2.0

Work = Sequence[Group]


class Plain:
    """The loop."""

    def __init__(self, path: Path, batch_size: int = BATCH) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.batch_size = batch_size

    @torch.inference_mode()
    def score(self, groups: Work) -> list[float]:
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": group.prompt.text}, {"role": "assistant", "content": candidate.text}],
                tokenize=False,
            )
            for group in groups
            for candidate in group.candidates
        ]
        scores: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            inputs = self.tokenizer(
                texts[start : start + self.batch_size], padding=True, add_special_tokens=False, return_tensors="pt"
            )
            scores += self.model(**inputs).logits[:, 0].tolist()
        return scores


class Ours:
    def __init__(self, path: Path, **settings: Any) -> None:
        self.judge = make_judge(RewardModelJudge(type="reward_model", path=str(path), **settings), "ours")

    def score(self, groups: Work) -> list[float]:
        judgments: list[Judgment] = self.judge.judge(groups)
        return [score for judgment in judgments for score in judgment.scores if score is not None]


def save_model(path: Path, shape: str) -> Path:
    """A random reward model, 6 layers deep."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], num_hidden_layers=6, vocab_size=WORDS + 3, num_labels=1, pad_token_id=0,
        max_position_embeddings=4096, initializer_range=0.1,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(path)
    names = ["<pad>", "<turn>", "<end>", *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    return path


def mixed(groups: int, candidates: int, seed: int) -> list[Group]:
    """Prompts and answers of log-normal lengths, as those of real chats are."""
    draw = random.Random(seed)

    def text(median: int, sigma: float) -> str:
        words = min(LONGEST, max(4, round(draw.lognormvariate(math.log(median), sigma))))
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(words))

    return [
        Group(
            Prompt(f"p{number}", text(*PROMPT), (1,)),
            tuple(Candidate(i, (1,), text(*ANSWER), "stop", i) for i in range(candidates)),
        )
        for number in range(groups)
    ]


def measure_reward(shape: str, groups: int, repetitions: int, **settings: Any) -> dict[str, Any]:
    """CPU time of both for the same conversations, paired by repetition; JSON-serialisable."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(Path(folder), shape)
        contestants: Any = {"plain": Plain(path), "ours": Ours(path, **settings)}
        work: Any = [mixed(groups, CANDIDATES, seed) for seed in range(repetitions + 1)]
        samples = alternate(contestants, work, run=lambda contestant, batch: contestant.score(batch))
    gaps = [
        max(abs(one - other) for one, other in zip(ours, plain, strict=True))
        for ours, plain in zip(samples["ours"].results, samples["plain"].results, strict=True)
    ]
    faster = ratio(samples["plain"].cpu, samples["ours"].cpu)
    conversations = groups * CANDIDATES
    return {
        "model": f"hidden {SHAPES[shape]['hidden_size']}", "conversations": conversations, "settings": settings,
        "conversations_per_second": {
            name: conversations / statistics.median(each.cpu) for name, each in samples.items()
        },
        "ratio": {"median": faster.median, "lowest": faster.lowest, "highest": faster.highest},
        "cpu_seconds": {name: each.cpu for name, each in samples.items()},
        "largest_difference": max(gaps), "goal": GOAL, "reached": faster.median >= GOAL,
    }  # fmt: skip


def scoring(quick: bool, repetitions: int) -> dict[str, Any]:
    """Each model in turn, one thread; prints a table, and returns what goes into the JSON."""
    keep_freed_memory()
    groups = {"A": 8} if quick else {"A": 48, "B": 24}
    found = {shape: measure_reward(shape, number, repetitions) for shape, number in groups.items()}
    table(
        "reward-model scoring, float32, one thread",
        ["", "conversations/s", "ratio", "goal", "largest difference"],
        [row for each in found.values() for row in rows_of(each)],
        caption="CPU time; ratios paired by repetition, median [lowest–highest]",
    )
    return found


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    rate, faster = found["conversations_per_second"], found["ratio"]
    spread = f"{faster['median']:.2f}× [{faster['lowest']:.2f}–{faster['highest']:.2f}]"
    goal = f"{'[green]✓' if found['reached'] else '[red]✗'} ≥ {GOAL}×"
    return [
        [f"{found['model']}, plain loop, batch {BATCH}", f"{rate['plain']:.1f}"],
        [f"{found['model']}, Ratchet", f"{rate['ours']:.1f}", spread, goal, f"{found['largest_difference']:.1e}"],
    ]
