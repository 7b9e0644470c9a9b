"""Tokenizers for policies trained from scratch, made from the corpus itself.

Both kinds share their special tokens, put a BOS (and never an EOS) before a text when asked for special tokens, have
no chat template, and decode to exactly the text that was encoded.
"""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.config import ScratchPolicy

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = [PAD, BOS, EOS, UNKNOWN]


def build_tokenizer(config: ScratchPolicy, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer ``config`` asks for; the same texts always give the same one."""
    tokenizer = character_tokenizer(texts) if config.tokenizer == "characters" else bpe_tokenizer(texts, config)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,  # would eat the spaces before full stops
    )


def character_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """One token a character; a character that is not in ``texts`` is unknown."""
    characters = sorted(set("".join(texts)))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def bpe_tokenizer(texts: Sequence[str], config: ScratchPolicy) -> Tokenizer:
    """Byte-pair encoding over bytes, so that nothing is unknown. The 256 bytes are always in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
