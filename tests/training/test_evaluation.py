"""Loss, perplexity and bits per byte of a text, against a plain sum and against transformers."""

import math

import numpy as np
import pytest
import torch
import transformers

import transformer_lab as lab
from transformer_lab.training.data import TextData
from transformer_lab.training.evaluation import evaluate

TEXT = "Once upon a time there was a king.\n<|endoftext|>\nThe end came late, and the king slept.\n"


@pytest.fixture(scope="module")
def model():
    return lab.load_model("storybook")


@pytest.fixture
def text(tmp_path, monkeypatch, model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 10)
    return TextData(str(path)).whole(model.tokenizer)


def plain(model, ids, length, stride):
    """Each target once, from the window that reaches it first; windows begin at the multiples of the stride."""
    total, done, last = 0.0, 0, len(ids) - 1
    for begin in range(0, last, stride):
        stop = min(begin + length, last)
        if done < stop:
            losses = model.token_losses(ids[begin : stop + 1])[0]
            total += losses[len(losses) - (stop - done) :].sum(dtype=np.float64)
        done = stop
    return total


@pytest.mark.parametrize(("length", "stride"), [(None, None), (32, 32), (32, 8), (50, 49), (7, 1)])
def test_it_is_the_plain_sum(model, text, length, stride):
    found = evaluate(model, text, 5, length, stride)
    ids = text.read(0, text.count)
    expected = plain(model, ids, length or 256, stride or length or 256)
    assert found.tokens == text.count - 1
    assert found.loss == pytest.approx(expected / found.tokens, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / text.text_bytes, rel=1e-6)


def test_windows_do_not_overlap(model, text):
    """The last one too: what is left of 142 targets after a window of 100 is predicted from what is left alone."""
    ids = text.read(0, 143)
    losses = np.concatenate([model.token_losses(ids[:101])[0], model.token_losses(ids[100:])[0]])
    found = evaluate(model, text, 4, 100, max_tokens=142)
    assert (found.tokens, len(losses)) == (142, 142)
    assert found.loss == pytest.approx(losses.mean(dtype=np.float64), rel=1e-6)
    overlapping = np.concatenate([losses[:100], model.token_losses(ids[42:])[0][-42:]]).mean(dtype=np.float64)
    assert abs(overlapping - found.loss) > 1e-3, "and this can fail"


def test_transformers_has_the_same_loss(model, text):
    judge = transformers.GPT2LMHeadModel.from_pretrained(model.folder).float().eval()
    ids = torch.tensor(text.read(0, 201))[None]
    with torch.no_grad():
        expected = float(judge(ids, labels=ids).loss)
    assert evaluate(model, text, 4, 200, max_tokens=200).loss == pytest.approx(expected, rel=1e-5)


def test_a_longer_past_helps(model, text):
    assert evaluate(model, text, 8, 16, 4).loss < evaluate(model, text, 8, 16).loss


def test_it_can_end_earlier(model, text):
    found = evaluate(model, text, 2, 16, max_tokens=40)
    assert (found.tokens, found.bits_per_byte) == (40, None)


@pytest.mark.parametrize(("length", "stride"), [(0, None), (257, None), (16, 17), (16, 0)])
def test_windows_that_do_not_fit(model, text, length, stride):
    with pytest.raises(lab.ConfigurationError, match="tokens"):
        evaluate(model, text, 2, length, stride)
