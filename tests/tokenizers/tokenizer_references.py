"""Independent implementations that judge ours: tiktoken and the `tokenizers` library, and slow obvious ones."""

import itertools
import json
import random
import unicodedata
from collections.abc import Iterable

import regex
import tiktoken
from hypothesis import strategies
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from transformer_lab.tokenizers import ByteBPE
from transformer_lab.tokenizers.byte_alphabet import to_stand_ins
from transformer_lab.tokenizers.gpt2_split import GPT2_SPLIT

TEXTS = [
    "",
    "a",
    " ",
    "Hello world",
    "I'm we'll they've it's 'twas CAN'T don''t 's",
    "  two   spaces    four \n\n\t\r\n x\n",
    "x" * 300 + " " * 300 + "\n" * 50 + "é" * 120,
    "abcabcab" * 40,
    "1234567 3.14 ½ ² ⅷ ௧௨ ٣٤٥",
    "naïve café, Füße; Η γλώσσα; Съешь же; مرحبا بالعالم; नमस्ते दुनिया;",
    "สวัสดีชาวโลก; 今天天气很好。こんにちは 안녕",
    "🙂👍🏽👨‍👩‍👧‍👦🏳️‍🌈 e\u0301 Z͑ͫ̓ͪ \ufe0f\u200d",
    "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u1680h\u180ei\ufeffj",
    "".join(map(chr, range(256))),
    "\x1c\x1d\x1e\x1f a\x1c b \x1f",
    "before<|endoftext|>after <|endoftext <|endoftext|",
    "def f(x):\n    return {'a': x ** 2}  # squared\n",
    "\U0001d400\U00020000\U0010ffff\ue000",
    "'ſ 'S K 's’s",
]

# Libraries differ in the Unicode version of their tables, so random text holds what Python's own (older) tables assign.
assigned_text = strategies.text(
    strategies.characters(exclude_categories=("Cs", "Cn")) | strategies.sampled_from(" \n\t'séß'll09<|>"), max_size=80
)

# Any text at all, and often what means something to a tokenizer: with | between, in Python's words.
REMARKABLE = r"""
 |  |\n|\r\n|\t|a|the| king|THE|it's|I'M|12|1234567|½|é|e\u0301|ß|İ|Σ|ﬁ|①|Ａ|你好|한국어|ำ|\u0301|🙂|👨\u200d👩
\0|\x1c|\u00a0|\u2028|\u3000|▁|Ġ|Â|<s>|</s>|<unk>|<0x0A>|<x>|##|</w>|.|,|!?|_|-|$|+
\u0295|\u0295Ab|\U0001faea|\u088f|\U00016ea0|\U00011de3|\U00011938|\u32ff|\ua7ce
"""
_remarkable = (
    REMARKABLE.strip("\n").replace("\n", "|").encode("latin-1", "backslashreplace").decode("unicode_escape").split("|")
)
any_text = strategies.lists(
    strategies.text(strategies.characters(exclude_categories=("Cs",)), max_size=8)
    | strategies.sampled_from(_remarkable),
    max_size=14,
).map("".join)


def tiktoken_encoding(tokenizer: ByteBPE, expression: str = GPT2_SPLIT) -> tiktoken.Encoding:
    """tiktoken with the same vocabulary. It takes the id of the merged bytes as the rank, so ids must follow merges."""
    specials = tokenizer.special_tokens
    ordinary = [token_id for token_id in range(tokenizer.vocab_size) if token_id not in set(specials.values())]
    return tiktoken.Encoding(
        "ours",
        pat_str=expression,
        mergeable_ranks={tokenizer.decode_bytes([token_id]): token_id for token_id in ordinary},
        special_tokens=specials,
    )


def plain_encode(tokenizer: ByteBPE, text: str, ranked: bool = True) -> list[int]:
    """The algorithm as one would write it first; with ranked=False wrongly: the first listed pair from the left."""
    definition = tokenizer.definition
    ranks = {pair: rank for rank, pair in enumerate(definition.merges)}
    ids = []
    for piece in regex.findall(GPT2_SPLIT, text):
        tokens = list(to_stand_ins(piece.encode()))
        while True:
            found = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(tokens)) if pair in ranks]
            if not found:
                break
            _, i = min(found) if ranked else found[0]
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
        ids += [definition.vocab[token] for token in tokens]
    return ids


def library_training(
    texts: Iterable[str], vocab_size: int, special_tokens: Iterable[str] = ("<|endoftext|>",)
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocab, merges) of the `tokenizers` library's trainer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def random_assigned_text(seed: int, length: int) -> str:
    """Text with every kind of assigned character, many of them white space, letters and signs at the borders."""
    chooser = random.Random(seed)
    characters = []
    while len(characters) < length:
        top = chooser.choice((0x80, 0x100, 0x3000, 0x10000, 0x110000))
        character = chr(chooser.randrange(top))
        if unicodedata.category(character) not in ("Cs", "Cn"):
            characters.append(character)
    return "".join(characters)
