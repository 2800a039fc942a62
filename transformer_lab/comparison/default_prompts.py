"""What is compared if nobody says what: prompts that reach further than one that comes to mind.

The first is longer than every block and bucket of our implementations up to 128 tokens; their lengths are odd and even,
so that no remainder is always empty; ids are spread over the vocabulary.
"""

from typing import Any

import numpy as np

LONG = (
    "Once upon a time there was a king who had three sons, and the youngest of them was called Hans. One evening, when "
    "the snow lay deep around the castle, an old woman knocked at the gate and asked for bread. The two elder sons "
    'laughed at her and sent her away; but Hans gave her his own supper, and led her to the fire. "You shall not lose '
    'by it," said she. "When you come to the end of the wood, look for the seventh oak, and dig between its roots. '
    "There lies an iron box with a key of gold. Tell nobody of it, neither the miller nor the priest, and do not open "
    'it before the cock has crowed three times." Then she stood up, thanked him, and went out into the night, and the '
    "wind carried the snow over her footsteps, so that no one could say which way she had gone."
)
TEXTS = (
    LONG,
    '"Who is there?" asked the old woman, and opened the door.',
    "The fox said to the wolf that he knew of a house in the wood where there was bread",
    "When the princess awoke, the sun",
)
LENGTHS = (141, 64, 17, 2)
REPEATED = 5  # of so many ids one stood there before, because what is used twice has two gradients


def default_prompts(tokenizer: Any, vocab_size: int, longest: int) -> list[str | list[int]]:
    """The texts; those of more than `longest` tokens cut, as token ids. Without a tokenizer, ids of all the
    vocabulary."""
    if tokenizer is not None:
        encoded = [list(tokenizer.encode(text)) for text in TEXTS]
        return [text if len(ids) <= longest else ids[:longest] for text, ids in zip(TEXTS, encoded, strict=True)]
    drawn = np.random.default_rng(0).permutation(vocab_size)
    rows: list[str | list[int]] = []
    first = 0
    for length in LENGTHS:
        row = np.resize(np.roll(drawn, -first), length)
        row[REPEATED::REPEATED] = row[:-REPEATED:REPEATED][: len(row[REPEATED::REPEATED])]
        row = row[:longest]
        if not first:  # a table whose first or last row is wrong is seen
            row[4 % len(row)], row[7 % len(row)] = 0, vocab_size - 1
        rows.append(row.tolist())
        first += length
    return rows
