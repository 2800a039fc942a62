import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tokenizer_references.py, whatever the import mode

from transformer_lab.tokenizers import ByteBPE, Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def gpt2() -> ByteBPE:
    tokenizer = load_tokenizer("gpt2")
    assert isinstance(tokenizer, ByteBPE)
    return tokenizer


@pytest.fixture(scope="session")
def gpt2_library() -> Tokenizer:
    return load_tokenizer("gpt2", kind="huggingface")


@pytest.fixture(scope="session", params=["byte_bpe", "huggingface"])
def either(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue("gpt2" if request.param == "byte_bpe" else "gpt2_library")
