"""The benchmark of published tokenizers compares ids first, and stores what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from transformer_lab.tokenizers import train_tokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import published_tokenizers as benchmark  # noqa: E402

TEXT = "It was the best of times, it was the worst of times; she sells sea shells.\n" * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(TEXT, 280).save(folder / "small")
    (folder / "story.txt").write_text(TEXT, encoding="utf-8")
    return folder


def test_everything_is_stored(folder):
    arguments = ["--folder", folder, "--text", folder / "story.txt", "--megacharacters", "0.003", "--rounds", "1"]
    command = [sys.executable, BENCHMARKS / "published_tokenizers.py", *arguments, "--output", folder / "result.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (folder / "result.json").read_text(encoding="utf-8")
    assert str(folder) not in text
    result = json.loads(text)
    assert list(result["tokenizers"]) == ["small"]
    small = result["tokenizers"]["small"]
    assert small["file"]["tokens"] == 280
    assert set(small["loading"]["times the library's"]) == {"load", "first ids"}
    for encoding in (small["encoding"]["english"], small["encoding"]["mixed"]):
        assert set(encoding["megabytes_per_second"]) == {"ours, cold", "ours, warm", "tokenizers"}
        assert all(ratio > 0 for ratio in encoding["times as fast as the library"].values())


def test_other_ids_are_noticed_before_anything_is_timed(folder, monkeypatch):
    other = tokenizers.Tokenizer.from_file(str(folder / "small" / "tokenizer.json"))
    other.normalizer = tokenizers.normalizers.Lowercase()
    monkeypatch.setattr(benchmark, "load_library", lambda folder: other)
    monkeypatch.setattr(benchmark, "seconds", None)
    with pytest.raises(SystemExit, match="small: the ids of the english text differ"):
        benchmark.compare_encoding(folder / "small", {"english": TEXT}, 1)


def test_the_mixed_text_is_the_same_every_time_and_has_a_third_of_each():
    english = "e" * 3000
    text = benchmark.mixed_text(english, 3000)
    assert text == benchmark.mixed_text(english, 3000)
    turn = benchmark.TURN
    assert text[:turn] == english[:turn]
    assert text[turn : 2 * turn].isascii()
    assert not text[2 * turn : 3 * turn].isascii()
    assert 2500 < len(text) < 4000
