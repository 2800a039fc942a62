"""Learns the merges of a byte-level BPE from text: again and again, join the commonest pair of neighbours.

    corpus  "low low lower"  ->  words with their counts:  low 1, Ġlow 1, Ġlower 1   (Ġ is the space)
    pairs   (l, o): 3, (o, w): 3, (Ġ, l): 2, ...           the commonest, the first of equals: (l, o) becomes `lo`
    words   lo w, Ġ lo w, Ġ lo w e r                       then (lo, w): 3, and so on

Counting all pairs anew for each merge would take hours. So the counts are kept, an index says which words hold a pair,
and a heap gives the commonest pair; its entries may be out of date and are checked when they come up.

Sennrich, Haddow and Birch 2016, arXiv 1508.07909. Memory holds the distinct words, never the corpus.
Knows nothing of encoding.
"""

import codecs
import heapq
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, pairwise
from pathlib import Path

from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.tokenizers.added_tokens import AddedToken
from transformer_lab.tokenizers.byte_alphabet import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE
from transformer_lab.tokenizers.byte_bpe import ByteBPE
from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.gpt2_split import gpt2_split
from transformer_lab.tokenizers.pre_tokenization import replace_lone_surrogates
from transformer_lab.tokenizers.safe_cuts import last_safe_cut, sections

_log = logging.getLogger(__name__)

# Bytes per read. More is read at once only where no safe place to cut comes along.
_READ_BYTES = 2**20

Corpus = str | Path | Iterable[str | Path]
Progress = Callable[[int, int], object]
Pair = tuple[int, int]


def train_tokenizer(
    texts_or_paths: Corpus,
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    progress: Progress | None = None,
) -> ByteBPE:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenization, learned from text.

    texts_or_paths: a str is text; a pathlib.Path is a UTF-8 file, or a folder whose *.txt files are taken in the order
        of their names; or an iterable of these, used once. Every text and every file stands for itself: no word
        reaches across. Files are read in pieces, cut where it does not change the words.
    vocab_size: the number of ids wanted, at least 256 + special tokens. A small corpus may not have that many pairs;
        the vocabulary is then smaller (see `vocab_size` of the result), and a logged warning says so.
    special_tokens: get the first ids, in this order, before the 256 bytes and the merges. Where one stands in the
        text it ends a document, and is not counted.
    progress: called as progress(done, total) with the number of ids made so far and vocab_size.

    The pair with the highest count is merged first; among equals the one with the smaller left id, then the smaller
    right id, so the corpus decides everything. This is also the rule of the `tokenizers` library's BpeTrainer: on the
    same texts (ByteLevel without prefix space, initial alphabet of all bytes) the merges and ids are the same.

    Raises ConfigurationError for a wrong vocab_size, special token or kind of source, InputFileError for a file that
    is missing or not UTF-8.
    """
    specials = _checked_special_tokens(special_tokens)
    smallest = 256 + len(specials)
    if type(vocab_size) is not int or vocab_size < smallest:
        message = (
            f"vocab_size is {vocab_size!r}, but 256 bytes and {len(specials)} special tokens need at least {smallest}."
        )
        raise ConfigurationError(message)

    words = count_words(_documents(texts_or_paths, specials))
    tokens, merges = learn_merges(words, vocab_size, specials, progress)
    if len(tokens) < vocab_size:
        _log.warning(
            "The corpus is too small for %d tokens: no pair is left to merge after %d. "
            "The tokenizer has a vocabulary of %d.",
            vocab_size,
            len(tokens),
            len(tokens),
        )
    definition = TokenizerDefinition(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=[(tokens[left], tokens[right]) for left, right in merges],
        added_tokens=[AddedToken(text, token_id) for token_id, text in enumerate(specials)],
    )
    return ByteBPE(definition)


def _checked_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    if isinstance(special_tokens, str):
        message = f"special_tokens must be a list of texts, got the text {special_tokens!r} alone."
        raise ConfigurationError(message)
    specials = list(special_tokens)
    for token in specials:
        if not isinstance(token, str) or not token or token in BYTE_OF_CHARACTER or specials.count(token) > 1:
            message = f"The special token {token!r} must be a text, not empty, not a single byte, and listed once."
            raise ConfigurationError(message)
    return specials


# Reading the corpus


def _documents(source: Corpus, specials: Sequence[str]) -> Iterator[str]:
    """The texts between special tokens, in parts that may be split into words one by one."""
    if isinstance(source, str) and len(source) < 1000 and "\n" not in source and _names_a_path(source):
        message = f"{source!r} is taken as text, but a file or folder has that name: write pathlib.Path({source!r})."
        raise ConfigurationError(message)
    for item in (source,) if isinstance(source, str | Path) else _iterate(source):
        if isinstance(item, str):
            yield from _between_specials(iter((item,)), specials)
        elif isinstance(item, Path):
            for file in _files(item):
                yield from _between_specials(_read_pieces(file), specials)
        else:
            message = f"train_tokenizer takes texts (str) and pathlib.Path, got {type(item).__name__}."
            raise ConfigurationError(message)


def _iterate(source: Iterable[str | Path]) -> Iterator[str | Path]:
    try:
        return iter(source)
    except TypeError:
        message = f"train_tokenizer takes texts (str) and pathlib.Path, got {type(source).__name__}."
        raise ConfigurationError(message) from None


def _names_a_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _files(path: Path) -> list[Path]:
    if os.path.isdir(path):
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            message = f"The folder {path} holds no *.txt files."
            raise InputFileError(message)
        return files
    if not os.path.isfile(path):  # a missing file, or a pipe, which might never end
        message = f"The text file {path} does not exist or is not a regular file."
        raise InputFileError(message)
    return [path]


def _read_pieces(file: Path) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, line ends as they are. Send a number of bytes to say how much to read."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    position = 0
    size = _READ_BYTES
    try:
        with open(file, "rb") as stream:
            while data := stream.read(size):
                waiting = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data)
                except UnicodeDecodeError as error:
                    message = f"{file} is not UTF-8 text: byte {position - waiting + error.start} is wrong."
                    raise InputFileError(message) from None
                position += len(data)
                size = (yield text) or _READ_BYTES
        if decoder.getstate()[0]:
            message = f"{file} ends within a character: it is cut off, or not UTF-8 text."
            raise InputFileError(message)
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror or error}."
        raise InputFileError(message) from None


def _between_specials(pieces: Iterator[str], specials: Sequence[str]) -> Iterator[str]:
    """Cuts a text that comes in pieces at the special tokens and at safe places, the same wherever the pieces end."""
    longest = max(map(len, specials), default=0)
    pattern = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True)))) if specials else None
    buffer = next(pieces, "")
    searched = 0  # no safe cut lies before this place of the buffer
    while True:
        more = _next_piece(pieces, len(buffer))
        # A special token that begins before this place is in the buffer as a whole.
        certain = len(buffer) - longest if more is not None else len(buffer)
        start = 0
        for match in pattern.finditer(buffer) if pattern else ():
            if more is not None and match.start() > certain:
                break
            yield buffer[start : match.start()]
            start = match.end()
        if more is None:
            yield buffer[start:]
            return
        cut = last_safe_cut(buffer, max(start, searched), certain)
        if cut > start:
            yield buffer[start:cut]
            start = cut
        searched = max(certain - start, 0)
        buffer = buffer[start:] + more


def _next_piece(pieces: Iterator[str], waiting: int) -> str | None:
    """The next piece, None at the end. Reads as much again as is waiting: a text without any safe place to cut would
    otherwise be copied over and over."""
    try:
        send = getattr(pieces, "send", None)
        return send(max(waiting, _READ_BYTES)) if send else next(pieces)
    except StopIteration:
        return None


def count_words(documents: Iterable[str]) -> Counter[bytes]:
    """How often each piece of the pre-tokenization occurs, as UTF-8 bytes."""
    counts: Counter[str] = Counter()
    for document in documents:
        for section in sections(document, size=2**16):
            counts.update(gpt2_split(section))
    words: Counter[bytes] = Counter()
    for word, number in counts.items():
        try:
            words[word.encode("utf-8")] += number
        except UnicodeEncodeError:
            words[replace_lone_surrogates(word).encode("utf-8")] += number
    return words


# Learning


def learn_merges(
    words: Counter[bytes], vocab_size: int, specials: Sequence[str] = (), progress: Progress | None = None
) -> tuple[list[str], list[Pair]]:
    """(tokens, merges): the vocabulary in the order of the ids, and the merged pairs of ids in the order of learning.

    The bytes get their ids in the order of their stand-in characters (`!` before the space), as in GPT-2.
    """
    tokens = [*specials, *sorted(CHARACTER_OF_BYTE)]
    id_of_token = {token: token_id for token_id, token in enumerate(tokens)}
    byte_ids = [id_of_token[character] for character in CHARACTER_OF_BYTE]
    word_ids = [[byte_ids[byte] for byte in word] for word in words]
    word_counts = list(words.values())

    pair_counts: dict[Pair, int] = defaultdict(int)
    words_with: dict[Pair, set[int]] = defaultdict(set)
    for w, ids in enumerate(word_ids):
        for pair in pairwise(ids):
            pair_counts[pair] += word_counts[w]
            words_with[pair].add(w)

    # Entries (-count, pair, running number, words). A pair's count only shrinks after its entry is made, so an entry
    # that comes up with a count that is no longer true goes back with the true one.
    number = count()
    heap = [(-pair_counts[pair], pair, next(number), where) for pair, where in words_with.items()]
    del words_with
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(tokens) < vocab_size:
        negative_count, pair, entry_number, where = heapq.heappop(heap)
        if pair_counts[pair] != -negative_count:
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair, entry_number, where))
            continue
        token = tokens[pair[0]] + tokens[pair[1]]
        new_id = id_of_token.setdefault(token, len(tokens))
        if new_id == len(tokens):
            tokens.append(token)
        merges.append(pair)
        new_words: dict[Pair, set[int]] = defaultdict(set)
        for w in where:
            _merge_in_word(w, word_ids[w], word_counts[w], pair, new_id, pair_counts, new_words)
        for new_pair, new_where in new_words.items():
            if pair_counts[new_pair] > 0:
                heapq.heappush(heap, (-pair_counts[new_pair], new_pair, next(number), new_where))
        if progress is not None:
            progress(len(tokens), vocab_size)
    return tokens, merges


def _merge_in_word(
    w: int,
    ids: list[int],
    weight: int,
    pair: Pair,
    new_id: int,
    pair_counts: dict[Pair, int],
    new_words: dict[Pair, set[int]],
) -> None:
    """Joins `pair` in one word from left to right, and carries the change into the counts and the index."""
    left, right = pair
    i = 0
    last = len(ids) - 1
    while i < last:
        try:
            i = ids.index(left, i, last)
        except ValueError:
            return
        if ids[i + 1] != right:
            i += 1
            continue
        pair_counts[pair] -= weight
        if i > 0:
            before = ids[i - 1]
            pair_counts[before, left] -= weight
            pair_counts[before, new_id] += weight
            new_words[before, new_id].add(w)
        if i + 1 < last:
            behind = ids[i + 2]
            pair_counts[right, behind] -= weight
            pair_counts[new_id, behind] += weight
            new_words[new_id, behind].add(w)
        ids[i : i + 2] = [new_id]
        last -= 1
        i += 1
