"""What the `tokenizers` library does not survive, refused by name before it reads the file.

Its errors, and most of its panics, come back as exceptions. Some files end the process instead, which no caller can
catch: memory that cannot be had, and a stack that is full. Each check below stands for one way that was found with
damaged files at random (400,000 of them, version 0.23); with the checks, no other was found. Knows the files, and not
the library.
"""

import base64
import binascii
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers.json_fields import require_few
from transformer_lab.tokenizers.tokenizer_json import MOST_ADDED_TOKENS, MOST_MERGES

LARGEST_ID = 10_000_000  # far above any vocabulary
LARGEST_GROWTH = 100_000  # bytes for a byte; by the rules below, published tokenizers come to some thousands at most
LONGEST_PIECE = 2_000  # bytes of a token of Unigram; SentencePiece makes them at most 512 long
LARGEST_ADDED_TEXT = 100_000_000  # bytes of all added tokens after normalization
# What one step makes of a byte, at most, where its type alone decides.
_GROWTHS = {
    **dict.fromkeys(("Strip", "StripAccents", "Nmt", "Fuse", "ByteFallback", "Split", "Digits", "Punctuation"), 1.0),
    **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"), 1.0),
    **dict.fromkeys(("UnicodeScripts", "FixedLength"), 1.0),
    **dict.fromkeys(("Lowercase", "WordPiece", "BPEDecoder", "CTC"), 2.0),
    **dict.fromkeys(("NFC", "NFD"), 3.0),
    **dict.fromkeys(("NFKC", "NFKD"), 11.0),  # U+FDFA, three bytes, becomes 33
}
_GROWTH_OF_OTHERS = 4.0  # ByteLevel: a byte becomes a letter of two, and a space may be put before each piece


def require_survivable(data: Mapping[str, Any], file: Path) -> None:
    """Raises InputFileError, naming the file and the field, for a tokenizer.json that could end the process."""
    model = data.get("model")
    model = model if isinstance(model, dict) else {}
    _require_safe_merges(model, file)
    _require_small_ids(model, data.get("added_tokens"), file)
    _require_short_pieces(model, file)
    normalizing = _growth(data.get("normalizer"), file, "normalizer")
    splitting = _growth(data.get("pre_tokenizer"), file, "pre_tokenizer")
    _require_bounded(normalizing * splitting, file, "normalizer" if normalizing > splitting else "pre_tokenizer")
    _require_bounded(_growth(data.get("decoder"), file, "decoder"), file, "decoder")
    _require_small_added_tokens(data.get("added_tokens"), normalizing, file)


def _require_safe_merges(model: Mapping[str, Any], file: Path) -> None:
    """Refuses merges that would make the library take half a gigabyte, or end the process.

    It cuts as many bytes as continuing_subword_prefix has from the second token of every merge, without looking; cut
    inside a character, that is no text any more, which version 0.23 does not survive.
    """
    merges = model.get("merges")
    if not isinstance(merges, list):
        return
    require_few(len(merges), MOST_MERGES, file, "model.merges")
    prefix = model.get("continuing_subword_prefix")
    if not isinstance(prefix, str) or not prefix:
        return
    for number, entry in enumerate(merges):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        right = pair[-1] if isinstance(pair, list) and pair else None
        if isinstance(right, str) and not right.startswith(prefix):
            message = f"{file}, field model.merges[{number}]: {shown(right)} does not begin with {shown(prefix)}."
            raise InputFileError(message)


def _require_small_ids(model: Mapping[str, Any], added: object, file: Path) -> None:
    """The library makes a list of all ids that no token has: 8 GB for an id of two thousand million."""
    vocab = model.get("vocab")
    found = list(vocab.items()) if isinstance(vocab, dict) else []
    if isinstance(added, list):
        found += [(token.get("content"), token.get("id")) for token in added if isinstance(token, dict)]
    for text, token_id in found:
        if isinstance(token_id, int) and token_id > LARGEST_ID:
            given = f"the id of {shown(text)} is {shown(token_id)}"
            message = f"{file}, field model.vocab: {given}; at most {LARGEST_ID:,} is read."
            raise InputFileError(message)


def _require_short_pieces(model: Mapping[str, Any], file: Path) -> None:
    """Unigram keeps its tokens in a tree as deep as the longest is long, and clears it by recursion."""
    vocab = model.get("vocab")
    if not isinstance(vocab, list):  # as it is in Unigram alone
        return
    for number, entry in enumerate(vocab):
        token = entry[0] if isinstance(entry, list) and entry else None
        if isinstance(token, str) and len(token) > LONGEST_PIECE // 4 and len(_bytes(token)) > LONGEST_PIECE:
            message = f"{file}, field model.vocab[{number}]: {shown(token)} has more than {LONGEST_PIECE:,} bytes."
            raise InputFileError(message)


def _require_small_added_tokens(added: object, normalizing: float, file: Path) -> None:
    """Every added token is normalized, one by one, when the file is read."""
    if not isinstance(added, list):
        return
    require_few(len(added), MOST_ADDED_TOKENS, file, "added_tokens")
    texts = [token.get("content") for token in added if isinstance(token, dict)]
    if normalizing * sum(len(_bytes(text)) for text in texts if isinstance(text, str)) > LARGEST_ADDED_TEXT:
        message = f"{file}, field added_tokens: more than {LARGEST_ADDED_TEXT:,} bytes when they are normalized."
        raise InputFileError(message)


def _require_bounded(growth: float, file: Path, field: str) -> None:
    if growth > LARGEST_GROWTH:
        message = (
            f"{file}, field {field}: its steps could make a text more than {LARGEST_GROWTH:,} times as long, for which "
            "there would be no memory."
        )
        raise InputFileError(message)


def _growth(step: object, file: Path, field: str) -> float:
    """How many bytes a normalizer, pre-tokenizer or decoder could make of one byte, at most; steps multiply.

    What is damaged grows nothing: the library refuses it. The library goes by the type, or by the fields where the type
    is missing or unknown; here the larger of both counts.
    """
    if not isinstance(step, dict):
        return 1.0
    by_fields: dict[str, float] = {}
    for several in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(steps := step.get(several), list):
            by_fields["Sequence"] = math.prod(_growth(each, file, field) for each in steps)
    if "prepend" in step:
        by_fields["Prepend"] = 1.0 + len(_bytes(step["prepend"]))
    if "pattern" in step:
        by_fields["Replace"] = _replacing(step["pattern"], step.get("content"))
    if "precompiled_charsmap" in step:
        by_fields["Precompiled"] = _precompiled(step["precompiled_charsmap"], file, field)
    known = by_fields | _GROWTHS
    kind = step.get("type")
    by_type = known.get(kind, _GROWTH_OF_OTHERS) if isinstance(kind, str) else _GROWTH_OF_OTHERS
    return max([by_type, *by_fields.values()])


def _replacing(pattern: object, content: object) -> float:
    """An expression, and an empty text, may be found between any two bytes."""
    found = pattern.get("String") if isinstance(pattern, dict) else None
    new = len(_bytes(content))
    return max(1.0, new / len(_bytes(found))) if isinstance(found, str) and found else 1.0 + new


def _precompiled(charsmap: object, file: Path, field: str) -> float:
    """The longest of the texts that SentencePiece's table of characters holds, each ended by a zero byte.

    Before them stands a tree, and before that the tree's size in four bytes, for which the library takes memory without
    looking whether so much is there.
    """
    encoded = _bytes(charsmap)
    try:
        table = base64.b64decode(encoded + b"=" * (-len(encoded) % 4))  # the library does not ask for them
    except binascii.Error:
        return 1.0
    size = int.from_bytes(table[:4], "little")
    if 4 + size > len(table):
        message = (
            f"{file}, field {field}.precompiled_charsmap: its tree has {size:,} bytes, but {len(table):,} are there."
        )
        raise InputFileError(message)
    return 1.0 + max(map(len, table[4 + size :].split(b"\0")))


def _bytes(text: object) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def require_lasting(normalized: Iterable[tuple[str, str]], file: Path) -> None:
    """Refuses an added token of which normalization leaves nothing: the library finds it again and again at one place.

    normalized: (content, what normalization makes of it) of the added tokens that are looked for after normalization.
    """
    for content, left in normalized:
        if not left:
            message = f"{file}, field added_tokens: normalization leaves nothing of {shown(content)}."
            raise InputFileError(message)
