"""GPT-2's alphabet: 256 printable characters that stand for the 256 bytes.

Byte-level BPE works on bytes, but vocabularies are stored as JSON text. GPT-2 (Radford et al. 2019) therefore writes
every byte as one visible character. A byte that is already a visible Latin-1 character stands for itself; the 68
others (control characters, the space, the soft hyphen ...) take the characters from U+0100 on, in order. That is why
a token with a leading space is printed as `Ġthe`: the space, byte 0x20, is the 33rd byte that needs a stand-in.

This file knows nothing of merges or ids.
"""

_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _stand_ins() -> list[str]:
    characters = []
    replaced = 0
    for byte in range(256):
        if byte in _VISIBLE:
            characters.append(chr(byte))
        else:
            characters.append(chr(0x100 + replaced))
            replaced += 1
    return characters


CHARACTER_OF_BYTE: list[str] = _stand_ins()
BYTE_OF_CHARACTER: dict[str, int] = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}


def is_stand_in_text(text: str) -> bool:
    """True if every character of `text` stands for a byte."""
    return BYTE_OF_CHARACTER.keys() >= set(text)


def to_stand_ins(data: bytes) -> str:
    """The bytes as stand-in characters: `to_stand_ins(b" the")` is `"Ġthe"`."""
    return "".join(map(CHARACTER_OF_BYTE.__getitem__, data))


def from_stand_ins(token: str) -> bytes:
    """The bytes that a vocabulary entry stands for; an entry with any other character stands for its own UTF-8."""
    try:
        return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")
