"""GGUF, the file format of llama.cpp: read, and unpacked into a folder in Hugging Face layout.

file.py           the format: named values and tensors
header.py         the values, asked for by name and type
architectures.py  which of our families an architecture is, and which of its values is which field of config.json
rotary.py         rotary positions, as the header has them
tensors.py        the tensors as parameters of ours
byte_level.py, sentencepiece.py, tokenizer.py     its tokenizer as tokenizer.json
folder.py         all of that together
"""
