r"""The expressions that published tokenizers split text with, as their files write them.

They share one idea, GPT-2's (`gpt2_split.py`), and two virtues. A space begins a piece where no white space stands
before it, so a long text may be cut there (`safe_cuts.py`). And the time they take grows with the text and no faster:
at every place one of the alternatives matches, and what one reads in vain the next ones take. An expression that is not
known to be like that is watched by a clock, and takes three times as long.
"""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# GPT-4 (cl100k) and Llama 3: numbers of up to three digits, contractions in any case, line ends together.
LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# Qwen 2 and 3: every digit by itself.
QWEN2 = LLAMA3.replace("{1,3}", "")
# GPT-4 in the words of tiktoken, with quantifiers that give nothing back.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# GPT-4o: a capital letter begins a piece.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# Mistral's Tekken: without contractions, every digit by itself.
TEKKEN = O200K.replace(_CONTRACTION, "").replace("{1,3}", "")
# DeepSeek-V3, behind splits of numbers and of ideographs. Its file has line ends where others have \r and \n.
DEEPSEEK_V3 = "|".join(
    [
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
        r"[^{ends}\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[{ends}]*",
        r"\s*[{ends}]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
).replace("{ends}", "\r\n")
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

ALL = frozenset({GPT2, LLAMA3, QWEN2, CL100K, O200K, TEKKEN, DEEPSEEK_V3, CLIP})
