"""Texts and tokenizers that are hard to split."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CONTROL = "<|im_end|>"
PROSE = (
    "The lighthouse keeper's daughter counted ships until the fog came in. Nobody had told her how long it would last! "
    "She waited; the lamp, which was old, turned and turned. Was that a bell? It's possible, she thought, that 1,234 ships "
    "had passed in 1987.\n\nIn the morning the sea was calm. Gulls stood on the wall. “Nothing happened,” said her father. "
    "Then they both went down to the harbour, bought bread and fish, and talked of other things.\n"
)


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM: bytes, merges inside words, a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[CONTROL], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2 and Gemma: no words, so merges cross spaces; a space is put in front; unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, max_token_length=12, show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return tokenizer


TOKENIZERS = {
    "byte_level": PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token=CONTROL),
    "sentence_piece": PreTrainedTokenizerFast(tokenizer_object=sentence_piece(), eos_token=CONTROL),
}
BYTES = TOKENIZERS["byte_level"]


def tokens(text: str, tokenizer=BYTES) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


PIECES = [
    *("Hello world. ", "How? ", "a b c ", "don't ", "1234567.89", "...", "_" * 20, "x" * 50, CONTROL, "=" * 30),
    *("\n", "\n\n", "\r\n", "\r", "   ", "\t", " " * 70, "\u00a0", "\u2028", "\u200b", "\x00", "\x1f", "\ufeff"),
    *(
        "😀",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "مرحبا بالعالم. ",
        "שלום ",
        "e\u0301",
        "\u0301",
        "\u200d",
        "한국어 ",
        "中文句子。",
        "ﬁ",
        "नमस्ते",
    ),
]
