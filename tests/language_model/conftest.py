import pytest
from reference_models import save_gpt2

import transformer_lab as lab


@pytest.fixture(scope="session")
def tokenizer():
    return lab.train_tokenizer("the cat sat on the mat and the dog sat on the log", vocab_size=262)


@pytest.fixture(scope="session")
def plain(tmp_path_factory, tokenizer):
    """(folder, the model of transformers in float64); the vocabulary is larger than the tokenizer's."""
    folder = tmp_path_factory.mktemp("plain")
    reference = save_gpt2(folder, vocab_size=270)
    tokenizer.save(folder)
    return folder, reference
