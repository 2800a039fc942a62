"""Text to token ids and back: BPE by hand, its training, and the `tokenizers` library behind one interface.

Reading order: byte_alphabet, gpt2_split, pre_tokenization, merging, bpe, bpe_training; the rest is files and edges.
Depends on nothing else in this project, and only `huggingface.py` names the library.
"""

from transformer_lab.tokenizers.bpe import BPE
from transformer_lab.tokenizers.bpe_training import train_tokenizer
from transformer_lab.tokenizers.byte_bpe import ByteBPE
from transformer_lab.tokenizers.chat_template import chat_text
from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.interface import TextStream, Tokenizer
from transformer_lab.tokenizers.loading import (
    TOKENIZER_FILES,
    TOKENIZER_KINDS,
    embedded_tokenizer_names,
    is_folder_source,
    load_tokenizer,
    load_tokenizer_folder,
)

__all__ = [
    "BPE",
    "END_OF_TEXT",
    "TOKENIZER_FILES",
    "TOKENIZER_KINDS",
    "ByteBPE",
    "TextStream",
    "Tokenizer",
    "TokenizerDefinition",
    "chat_text",
    "embedded_tokenizer_names",
    "is_folder_source",
    "load_tokenizer",
    "load_tokenizer_folder",
    "train_tokenizer",
]
