"""Damaged checkpoints of a training run: training.json, optimizer.npz, and the files of the model in it."""

import io
import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from damage import damage, damage_bytes, dumped, odd, put

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.init import initialise
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.learned import Learned
from transformer_lab.training import checkpoint

_BLOCK = Sequential(SoftmaxAttention(2, 4), Dense(8), LayerNorm())
CONFIG = ModelConfig(20, 8, 8, (_BLOCK,), LayerNorm(), Learned())
FACTS = {
    "identity": {"seed": 0, "backend": "numpy"}, "surroundings": {"numpy": "2.0"}, "best": {"step": 3, "loss": 1.5},
    "loss": 1.25, "evaluation": {"loss": 1.5, "tokens": 100},
}  # fmt: skip
DTYPES = ["<f8", "<f2", ">f4", "|O", "<U9", "|V0", "<i4", "(2,)<f4", "<M8[s]", [["a", "<f4"]], 3]


@cache
def template():
    """name -> content of a whole checkpoint, made once."""
    params = dict(initialise(CONFIG, 0))
    trees = dict.fromkeys(("params", "first", "second", "average"), params)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint.save(Path(folder), 3, CONFIG, trees, FACTS, None)
        return {file.name: file.read_bytes() for file in path.iterdir()}


def damaged_moments(rng, data):
    """An archive with damage in its bytes, or one that is whole and holds something else."""
    chance = rng.random()
    if chance < 0.3:
        return damage_bytes(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(members))
    if chance < 0.5:
        members[name] = damage_bytes(rng, members[name])
    elif chance < 0.7:
        header = {"descr": "<f4", "fortran_order": False, "shape": (8, 8)}
        header |= {
            rng.choice(list(header)): rng.choice([*DTYPES, (10**15,), (-1, 8), (True,), (), "x", None, odd(rng)])
        }
        text = (
            rng.choice([repr(header), repr(header)[:-3], "(" * 9999, "{'shape': (1L,)}", "9" * 9999]).encode() + b"\n"
        )
        text = text[:60_000]
        members[name] = b"\x93NUMPY" + rng.choice([b"\1\0", b"\2\0", b"\3\0", b"\7\7"])
        members[name] += len(text).to_bytes(2, "little") + text + bytes(rng.choice([0, 256]))
    elif chance < 0.8:
        members[rng.choice(["third/x.npy", "first/x.npy", "readme", "\x1b[2J.npy", "/etc/passwd.npy"])] = members[name]
    elif chance < 0.9:
        del members[name]
    made, packed = io.BytesIO(), rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(made, "w", packed) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        if chance > 0.98:  # little that becomes much
            with archive.open("third/x.npy", "w") as handle:
                header = {"descr": "<f4", "fortran_order": False, "shape": (25, 1_000_000)}
                np.lib.format.write_array_header_1_0(handle, header)
                for _ in range(100):
                    handle.write(bytes(1_000_000))
    return made.getvalue()


def checkpoint_kind(rng, folder):
    """Damage in one of the files of a checkpoint, mostly in the two that only a checkpoint has."""
    files = dict(template())
    name = rng.choice([checkpoint.FACTS, checkpoint.STATE, checkpoint.FACTS, checkpoint.STATE, *files])
    if name == checkpoint.STATE:
        files[name] = damaged_moments(rng, files[name])
    elif name.endswith(".json"):
        facts = json.loads(files[name])
        if rng.random() < 0.5:
            facts[rng.choice(list(facts))] = odd(rng)
        files[name] = dumped(rng, damage(rng, facts) if rng.random() < 0.5 else facts)
    else:
        files[name] = damage_bytes(rng, files[name])
    place = folder / checkpoint.FOLDER / "step-00000003"
    place.mkdir(parents=True)
    put(place, files)

    def read():
        (found,) = checkpoint.found(folder)
        facts = found.facts()
        assert isinstance(facts.get("surroundings", {}), dict) and json.dumps(facts)
        if facts.get("best") is not None:
            assert facts["best"]["step"] < 10**999 and isinstance(facts["best"]["loss"], float)
        trees = checkpoint.load(found, CONFIG, np.float32)
        assert trees.keys() >= {"params", "first", "second"}
        assert all(tree.keys() == trees["params"].keys() for tree in trees.values())

    return read
