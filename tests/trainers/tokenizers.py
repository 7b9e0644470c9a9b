"""Tiny tokenizers of the kinds that disagree about BOS, EOS and spaces, and chat templates that do."""

import string
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ALPHABET = string.ascii_letters + " \n.?!:[]"
"""What every one of them can say without loss."""
TEXT = ["ravin likes ice cream.\n\nassistant: what is it?", "user: the sky is blue.\n\nHuman: is it?"] * 20
BOS, EOS, TURN = "<s>", "</s>", "<|turn|>"
SPECIAL = ["<pad>", BOS, EOS, TURN]


def byte_bpe(*, adds_bos: bool, adds_eos: bool = False, bos: str | None = BOS) -> PreTrainedTokenizerFast:
    """Llama 3's and Qwen's kind: bytes merged, a space belonging to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, 400, adds_bos, adds_eos, bos, sorted(pre_tokenizers.ByteLevel.alphabet()))


def metaspace() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a space is put before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _trained(tokenizer, 200, adds_bos=True, adds_eos=False, bos=BOS, initial_alphabet=list(ALPHABET))


def _trained(
    tokenizer: Tokenizer, size: int, adds_bos: bool, adds_eos: bool, bos: str | None, initial_alphabet: list[str]
) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False, initial_alphabet=initial_alphabet
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    single = f"{BOS if adds_bos else ''} $A {EOS if adds_eos else ''}".strip()
    ids = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=EOS, pad_token="<pad>",
        additional_special_tokens=[TURN], clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "adds BOS": lambda: byte_bpe(adds_bos=True),
    "adds none": lambda: byte_bpe(adds_bos=False),
    "has no BOS": lambda: byte_bpe(adds_bos=False, bos=None),
    "BOS is EOS": lambda: byte_bpe(adds_bos=False, bos=EOS),
    "adds BOS and EOS": lambda: byte_bpe(adds_bos=True, adds_eos=True),
    "puts a space": metaspace,
}

_EACH = "{% for m in messages %}"
_BEGIN = "{% if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"
TEMPLATES = {
    "no BOS, EOS and a line end": _EACH
    + "{{ '<|turn|>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    + _BEGIN,
    "BOS, no EOS": "{{ bos_token or '' }}" + _EACH
    + "{{ '<|turn|>' + m['role'] + '\\n' + m['content'] + '\\n' }}{% endfor %}" + _BEGIN,
    "BOS, EOS of the answers alone, no beginning of the answer": "{{ bos_token or '' }}" + _EACH
    + "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% else %}{{ '[' + m['content'] + ']' }}{% endif %}{% endfor %}",
}  # fmt: skip
"""By what they render around a conversation."""
