import pytest
from reference_models import save_gpt2

import transformer_lab as lab

TEXT = """Once there was a lamp on the hill, and the lamp was never dark. "Who lights it?" asked the boy.
The old woman laughed: the sea lights it, and the wind, and you, if you climb. So he climbed. Čtyři děti, 12 osel."""


@pytest.fixture(scope="session")
def tokenizer():
    return lab.train_tokenizer(TEXT, vocab_size=280)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tokenizer):
    """A model whose context is two buckets of JAX, with a tokenizer of exactly its vocabulary and no end token."""
    folder = tmp_path_factory.mktemp("two_buckets")
    save_gpt2(folder, seed=1, vocab_size=tokenizer.vocab_size, n_positions=128, initializer_range=0.4)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def models(folder):
    """(backend, ops) -> the model, loaded once, so that JAX compiles once."""
    loaded = {}

    def model(backend, ops="fused"):
        if (backend, ops) not in loaded:
            loaded[backend, ops] = lab.load_model(folder, backend, ops=ops)
        return loaded[backend, ops]

    return model
