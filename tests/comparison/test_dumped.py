"""Dumps: what other programs write is read as it is, ours are read by others' libraries, and damage is named."""

import random
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from random_models import random_arrays
from small_models import small_model

from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.participants.dumped import Dumped, write_dump
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError, InputFileError, LabError, UnavailableError
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble

IDS = [3, 1, 4, 1]
EXACT = np.random.default_rng(0).integers(-64, 64, (4, 6)) / 16.0  # the same in every format
SCORES = np.where(np.tri(4), EXACT[:, :4], -np.inf)[None]


def taps(dtype=np.float32):
    return {"logits": EXACT.astype(dtype), "blocks.0.attn.scores": SCORES.astype(dtype), "embed": EXACT.astype(dtype)}


def save(path, arrays):
    """By libraries that are not ours."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def assert_shown(dump, dtype=np.float32, ids=IDS):
    found = list(dump.taps(np.array(ids)))
    assert [name for name, _ in found] == ["embed", "blocks.0.attn.scores", "logits"]
    for (name, array), expected in zip(found, (EXACT, SCORES, EXACT), strict=True):
        assert array.dtype == dtype, name
        assert array.shape in (expected.shape, (1, *expected.shape))  # as it was stored
        np.testing.assert_array_equal(array.reshape(expected.shape), expected, err_msg=name)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("dtype", "read", "precision"),
    [
        (np.float64, np.float64, "float64"),
        (np.float32, np.float32, "float32"),
        (np.float16, np.float32, "bfloat16"),
        (ml_dtypes.bfloat16, np.float32, "bfloat16"),
    ],
)
def test_every_format(tmp_path, ending, dtype, read, precision):
    path = save(tmp_path / f"run{ending}", {"token_ids": np.array(IDS)} | taps(dtype))
    if ending == ".npz" and dtype is ml_dtypes.bfloat16:  # NumPy stores it as bytes without a name
        with pytest.raises(InputFileError, match="'logits' in it has the format void16"):
            Dumped(path)
        return
    dump = Dumped(path)
    assert (dump.name, dump.kind, dump.precision) == (f"run{ending}", "file", precision)
    assert (dump.version, dump.device, dump.config, dump.prompts) == (None, None, None, [IDS])
    assert_shown(dump, read)


def test_the_narrowest_format_names_the_precision_unless_one_is_given(tmp_path):
    mixed = taps() | {"logits": EXACT.astype(ml_dtypes.bfloat16), "final_norm": EXACT}
    path = save(tmp_path / "a.safetensors", {"token_ids": np.array(IDS)} | mixed)
    assert Dumped(path).precision == "bfloat16"
    assert Dumped(path, precision="float32", name="mine").precision == "float32"
    assert Dumped(path, name="mine").name == "mine"
    with pytest.raises(ConfigurationError, match="The precision of mine is 'half'; choose one of float32"):
        Dumped(path, "half", "mine")


def test_what_torch_writes(tmp_path):
    tensors = {name: torch.tensor(array, dtype=torch.bfloat16) for name, array in taps().items()}
    safetensors.torch.save_file({"token_ids": torch.tensor([IDS])} | tensors, tmp_path / "a.safetensors")
    assert_shown(Dumped(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.uint16])
def test_token_ids_in_any_whole_numbers(tmp_path, ending, dtype):
    assert Dumped(save(tmp_path / f"a{ending}", {"token_ids": np.array(IDS, dtype)} | taps())).prompts == [IDS]


def test_other_layouts_of_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", token_ids=np.array(IDS), **taps())
    assert_shown(Dumped(tmp_path / "a.npz"))
    arrays = {name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">")) for name, array in taps().items()}
    np.savez(tmp_path / "b.npz", token_ids=np.array(IDS).astype(">i8"), **arrays)
    assert_shown(Dumped(tmp_path / "b.npz"))


def test_several_prompts_are_several_files_of_a_folder(tmp_path):
    for number, ids in enumerate(([5, 6], [7, 8, 9], [5, 6, 7])):
        logits = np.full((len(ids), 6), float(number))
        save(
            tmp_path / f"{number}{('.npz', '.safetensors')[number % 2]}", {"token_ids": np.array(ids), "logits": logits}
        )
    (tmp_path / "notes.txt").write_text("not a dump")
    (tmp_path / ".half.npz").write_text("not yet one")
    dump = Dumped(tmp_path)
    assert dump.name == tmp_path.name and dump.precision == "float64"
    assert dump.prompts == [[5, 6], [7, 8, 9], [5, 6, 7]]
    for number, ids in enumerate(dump.prompts):
        ((_, logits),) = dump.taps(np.array(ids))
        assert (logits == number).all()
    with pytest.raises(InputFileError, match=r"no run of the 2 token ids \[6, 5\]; it holds \[5, 6\]; \[7, 8, 9\]; "):
        list(dump.taps(np.array([6, 5])))


# --- ours, for others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_our_dumps_are_read_by_others_and_by_us(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    write_dump(
        path, IDS, {"logits": torch.tensor(EXACT[None]), "blocks.0.attn.scores": SCORES, "embed": EXACT.T.copy().T}
    )
    assert_shown(Dumped(path), np.float64)
    found = np.load(path) if ending == ".npz" else safetensors.numpy.load_file(path)
    assert set(found) == {"token_ids", "embed", "blocks.0.attn.scores", "logits"}
    np.testing.assert_array_equal(found["token_ids"], IDS)
    np.testing.assert_array_equal(found["blocks.0.attn.scores"], SCORES)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_is_not_written(tmp_path):
    with pytest.raises(ConfigurationError, match=r"a\.pt is not the name of a dump; it ends in \.npz or"):
        write_dump(tmp_path / "a.pt", IDS, {})
    with pytest.raises(ConfigurationError, match="'logit', which is no tap"):
        write_dump(tmp_path / "a.npz", IDS, {"logit": EXACT})
    with pytest.raises(UnavailableError, match="cannot be written"):
        write_dump(tmp_path / "nowhere" / "a.npz", IDS, {})
    assert list(tmp_path.iterdir()) == []


# --- what is refused -------------------------------------------------------------------------------------------------


class Unpickled:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"logits": EXACT}, "it has no token_ids"),
        ({"token_ids": np.array([1.0, 2.0])}, "its token_ids are float64 [2]; one row of whole numbers"),
        ({"token_ids": np.zeros((2, 4), int)}, "its token_ids are int64 [2, 4]"),
        ({"token_ids": np.zeros(0, int)}, "its token_ids are int64 [0]"),
        (
            {"token_ids": np.array(IDS), "logits": EXACT.astype(ml_dtypes.float8_e4m3fn)},
            "'logits' in it has the format ",
        ),
        ({"token_ids": np.array(IDS), "logit": EXACT}, ": it shows 'logit', which is no tap; is 'logits' meant?"),
    ],
)
def test_what_a_file_must_hold(tmp_path, ending, arrays, said):
    path = save(tmp_path / f"a{ending}", arrays)
    with pytest.raises(InputFileError) as error:
        Dumped(path)
    assert str(path) in str(error.value) and said in str(error.value)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"logits": EXACT[:3]}, "shows logits as [3, 6]; expected is [1, 4, 6]"),
        ({"blocks.0.attn.scores": SCORES}, "shows blocks.0.attn.scores as [1, 4, 4]; expected is [1, 2, 4, 4]"),
        (
            {"blocks.0.ffn.acts": EXACT},
            "shows 'blocks.0.ffn.acts', which is no tap of this model; is 'blocks.0.ffn.act'",
        ),
        ({"blocks.7.ffn.act": EXACT}, "shows 'blocks.7.ffn.act', which is no tap of this model; is 'blocks.0.ffn.act'"),
    ],
)
def test_what_has_no_place_in_the_model_is_the_files_mistake(tmp_path, ending, arrays, said):
    config = small_model(vocab_size=6, context_length=8, hidden_size=8, num_layers=1, num_heads=2, ffn=Dense(size=6))
    ops = component("backend", "numpy", precision="float64", ops="manual")
    truth = OwnModel(assemble(config, random_arrays(config, 0, 0.3), ops))
    dump = Dumped(save(tmp_path / f"a{ending}", {"token_ids": np.array(IDS)} | arrays))
    with pytest.raises(InputFileError) as error:
        examine(dump, truth, [np.array(IDS)])
    assert f"a{ending} {said}" in str(error.value)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.int8, np.uint8, bool])
def test_choices_are_whole_numbers(tmp_path, ending, dtype):
    chosen = np.array([0, 1, 1, 0], dtype)
    path = tmp_path / f"a{ending}"
    write_dump(path, IDS, {"blocks.0.ffn.chosen": chosen, "logits": EXACT})
    found = dict(Dumped(path).taps(np.array(IDS)))
    assert found["blocks.0.ffn.chosen"].dtype.kind == np.dtype(dtype).kind
    np.testing.assert_array_equal(found["blocks.0.ffn.chosen"], chosen)
    assert Dumped(path).precision == "float64"


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.npz").write_text("text")
    (tmp_path / "b.safetensors").write_text("text")
    (tmp_path / "a.pt").write_bytes(b"\x80\x02")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    np.savez(tmp_path / "d.npz", token_ids=np.array(IDS), logits=np.array([Unpickled()], object))
    np.save(tmp_path / "e.npy", EXACT)
    (tmp_path / "e.npy").rename(tmp_path / "e.npz")
    for name, said in (
        ("none.npz", "There is no file"),
        ("a.npz", "it is damaged or no archive of NumPy"),
        ("b.safetensors", "not a usable safetensors file"),
        ("a.pt", "it does not end in .npz or .safetensors"),
        ("empty", "it holds no file that ends in .npz or .safetensors"),
        ("c.npz", "'readme.txt' in it is not an array of NumPy"),
        ("d.npz", "'logits' in it is object [1], which its bytes are not"),
        ("e.npz", "it is damaged or no archive of NumPy"),
    ):
        with pytest.raises(InputFileError) as error:
            Dumped(tmp_path / name)
        assert said in str(error.value) and str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_damaged_file_is_named_and_nothing_else_happens(tmp_path, ending):
    whole = save(tmp_path / f"whole{ending}", {"token_ids": np.array(IDS)} | taps()).read_bytes()
    choose, path, refused = random.Random(0), tmp_path / f"a{ending}", 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(choose.randint(1, 3)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        path.write_bytes(data[: choose.choice([len(data), len(data), choose.randrange(len(data))])])
        try:
            dump = Dumped(path)
            for ids in dump.prompts:
                list(dump.taps(np.array(ids)))
        except LabError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 100


def test_a_header_that_lies(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("logits.npy", "w") as handle:
        header = {"descr": "<f8", "fortran_order": False, "shape": (4, 10**15)}
        np.lib.format.write_array_header_1_0(handle, header)
        handle.write(EXACT.tobytes())
    with pytest.raises(InputFileError, match=r"'logits' in it is float64 \[4, 1000000000000000\], which its bytes"):
        Dumped(tmp_path / "a.npz")
