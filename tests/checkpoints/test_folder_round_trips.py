"""A model folder in, the same folder out: twelve kinds as transformers writes or reads them, and it is the judge.

It loads the folder before and after a round trip through load_model and save: the same ids for texts, the same chat,
the same weights, the same generation, which ends at the same tokens; and no field and no file is lost.
"""

import json
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from reference_models import save_gpt2, save_llama
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import transformer_lab as lab

TEXT = "the old king said to the old man: the king is old\n and 12 kings are older"
TEXTS = [TEXT, "the king", " old  <think>x</think>", "a</s>b", "", "é 🙂"]
SIZE = 300


def byte_level(template=False):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def byte_fallback():
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"theoldkingsai"]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    vocab |= {left + right: len(vocab) + number for number, (left, right) in enumerate(merges)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_piece():
    vocab = {"[UNK]": 0, "the": 1, "old": 2, "##er": 3, "king": 4, "##s": 5, "[SEP]": 6}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[SEP]"])
    return tokenizer


FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 77}
CHAT = "{% for m in messages %}{{ m.role + '</s>' + m.content }}{% endfor %}{{ 'ok' if add_generation_prompt }}"


def llama(folder, tokenizer=None, config=FAST, generation=None, files=(), **fields):
    save_llama(folder, seed=1, vocab_size=SIZE, max_position_embeddings=128, **fields)
    return _files(folder, tokenizer or byte_level(), config, generation, files)


def gpt2(folder, tokenizer=None, config=FAST, generation=None, files=(), **fields):
    save_gpt2(folder, seed=1, vocab_size=SIZE, n_positions=128, **fields)
    return _files(folder, tokenizer or byte_level(), config, generation, files)


def _files(folder, tokenizer, config, generation, files):
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in dict(files).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    path = folder / "generation_config.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(values | (generation or {})))
    return folder


def sharded(folder):
    llama(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def in_bfloat16(folder):
    llama(folder)
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)


def gpt2_pair(folder):
    """As GPT-2 itself was published: vocab.json and merges.txt."""
    gpt2(folder)
    one_file = json.loads((folder / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(one_file["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in one_file["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | roles))
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))


THINK = {"280": {"content": "<think>", "special": False, "normalized": False, "lstrip": False, "rstrip": False}}
ENDS = {"eos_token_id": [40, 41, 42, 43, 44, 45, 260, 261, 262, 263, 264, 265]}
KINDS = {
    "gpt2": gpt2,
    "gpt2, a pair of files": gpt2_pair,
    "gpt2, fields that nothing here needs": lambda f: gpt2(f, resid_pdrop=0.3, task_specific_params={"x": {"a": 1}}),
    "gpt2, untied": lambda f: gpt2(f, tie_word_embeddings=False),
    "llama": llama,
    "llama, tied": lambda f: llama(f, tie_word_embeddings=True),
    "llama, begun with a token": lambda f: llama(f, byte_level(template=True)),
    "llama, several end tokens": lambda f: llama(f, **ENDS),
    "llama, end tokens for generation alone": lambda f: llama(f, eos_token_id=2, generation=ENDS | {"top_k": 5}),
    "llama, a token more beside tokenizer.json": lambda f: llama(f, config=FAST | {"added_tokens_decoder": THINK}),
    "llama, a chat template": lambda f: llama(f, files={"chat_template.jinja": CHAT}),
    "llama, a chat template in its configuration": lambda f: llama(f, config=FAST | {"chat_template": CHAT}),
    "llama, bytes as tokens": lambda f: llama(f, byte_fallback(), FAST | {"unk_token": "<unk>"}),
    "llama, word pieces": lambda f: llama(f, word_piece(), {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "llama, in shards": sharded,
    "llama, in bfloat16": in_bfloat16,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_comes_back(name, tmp_path):
    (tmp_path / "a").mkdir()
    KINDS[name](tmp_path / "a")
    model = lab.load_model(tmp_path / "a", tokenizer="huggingface")
    model.save(tmp_path / "b")
    before, after = (transformers.AutoTokenizer.from_pretrained(tmp_path / x) for x in "ab")
    for text in TEXTS:
        ids = before(text)["input_ids"]
        assert after(text)["input_ids"] == ids
        if text:
            assert model.prompt_ids(text, special=True) == ids
            assert after.decode(ids) == before.decode(ids)
    if before.chat_template:
        messages = [{"role": "user", "content": "the king"}]
        chat = before.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert after.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == chat
        assert model.chat_ids(messages) == chat
    theirs = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / x, dtype=torch.float32) for x in "ab"]
    states = [one.state_dict() for one in theirs]
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][key], states[1][key]) for key in states[0])
    prompt = model.prompt_ids("the old king")
    for seed in range(3):
        start = [*prompt, 250 + seed]
        found = [_greedy(one, start) for one in theirs]
        assert found[0] == found[1] == model.generate(start, max_new_tokens=24).token_ids
    kept = [json.loads((tmp_path / x / "config.json").read_text()) for x in "ab"]
    lost = kept[0].keys() - kept[1].keys() - {"torch_dtype"}
    assert not lost and {key for key in kept[0] if kept[0][key] != kept[1].get(key)} <= {"dtype", "torch_dtype"}
    assert theirs[0].generation_config.to_dict() == theirs[1].generation_config.to_dict()
    for file in (tmp_path / "a").iterdir():
        if not file.name.endswith((".safetensors", "index.json")):
            assert (tmp_path / "b" / file.name).exists()


def _greedy(model, start):
    """Without the end token, as our token_ids are."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    mask = {"attention_mask": torch.ones(1, len(start), dtype=torch.int64)}
    ids = model.generate(torch.tensor([start]), max_new_tokens=24, do_sample=False, pad_token_id=0, **mask)[0].tolist()
    new = ids[len(start) :]
    return new[:-1] if new and new[-1] in ends else new


def test_the_end_tokens_of_these_folders_come(tmp_path):
    """Else nothing would be shown by generations that end alike."""
    lengths = []
    for name in ("llama", "llama, several end tokens", "llama, end tokens for generation alone"):
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        KINDS[name](folder)
        model = lab.load_model(folder, tokenizer="huggingface")
        start = model.prompt_ids("the old king")
        lengths.append([len(model.generate([*start, 250 + seed], max_new_tokens=24).token_ids) for seed in range(3)])
    assert all(any(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(lengths[:2])), lengths
    assert lengths[1] == lengths[2]
