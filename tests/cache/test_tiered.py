"""The cache with tiers: what is read back is what was computed, or it is not read back."""

import gc
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cache_models import BACKENDS, LEARNED, ROTARY, arrays_of, fed, ids, model, uncached

from transformer_lab.cache import tiered
from transformer_lab.cache.none import NoCache
from transformer_lab.cache.paged import Paged
from transformer_lab.cache.prefix import Prefix
from transformer_lab.cache.provenance import described
from transformer_lab.cache.tiered import Tiered
from transformer_lab.cli import main
from transformer_lab.errors import ConfigurationError
from transformer_lab.tiers.tiers import Found, Tiers

SIZE = 4
TEXT, AFTER = ids(1, 30), [ids(2, 4)]


def cold(folder, **more):
    return Tiered(SIZE, **{"warm_bytes": 0, "cold_folder": folder} | more)


def seen(policy, prompts=(TEXT,), config=ROTARY, **more):
    """A run of its own over these prompts: (its logits, the pool when all is in the files)."""
    built = model(config, policy, **more)
    logits = fed(built, list(prompts), [ids(70 + row, 4) for row in range(len(prompts))])
    pool = built.engine.memory
    pool.tiers.flush()
    assert pool.tiers.check() == []
    return logits, pool


def judged(policy, prompts=(TEXT,), config=ROTARY, **more):
    """How many tokens were found; each logit must be that of an uncached pass, bit for bit."""
    logits, pool = seen(policy, prompts, config, **more)
    plain = model(config, NoCache(), **more)
    assert (logits == uncached(plain, list(prompts), [ids(70 + row, 4) for row in range(len(prompts))])).all()
    return pool.counts.found


@pytest.mark.parametrize("precision", ["exact", "float32"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_another_run_finds_it_and_has_the_same_bits(tmp_path, backend, precision):
    first, _ = seen(cold(tmp_path), backend=backend, precision=precision)
    second, pool = seen(cold(tmp_path), backend=backend, precision=precision)
    assert pool.counts.found == 28 and pool.tiers.ledger.cold.hits.tokens == 28
    assert (first == second).all()


def test_what_differs_in_anything_that_counts_is_not_found(tmp_path):
    """Each of these was taken for the same somewhere: other weights under one name, other precisions, other passes."""
    assert judged(cold(tmp_path)) == 0
    assert judged(cold(tmp_path)) == 28
    assert judged(cold(tmp_path), seed=5) == 0
    assert judged(replace(cold(tmp_path), block=8)) == 0
    assert seen(cold(tmp_path), precision="float32")[1].counts.found == 0
    assert seen(cold(tmp_path), precision="float64")[1].counts.found == 0
    assert judged(cold(tmp_path), backend="torch") == 0
    narrow = replace(ROTARY, blocks=tuple(replace(b, attention=replace(b.attention, window=5)) for b in ROTARY.blocks))
    assert judged(cold(tmp_path), config=narrow) == 0
    assert judged(cold(tmp_path), [TEXT[4:]]) == 0  # the same tokens at other positions
    assert judged(cold(tmp_path), [[*TEXT[:9], *ids(3, 12)]]) == 8
    assert judged(cold(tmp_path)) == 28


def test_the_manual_operations_are_others(tmp_path):
    seen(cold(tmp_path), precision="float32", ops="fused")
    assert seen(cold(tmp_path), precision="float32", ops="manual")[1].counts.found == 0


def test_other_weights_in_a_running_model(tmp_path):
    built = model(ROTARY, cold(tmp_path))
    fed(built, [TEXT], AFTER)
    built.engine.memory.tiers.flush()
    built.replace_weights(arrays_of(ROTARY, seed=5))
    logits = fed(built, [TEXT], AFTER)
    assert built.engine.memory.counts.found == 0
    assert (logits == uncached(model(ROTARY, NoCache(), seed=5), [TEXT], AFTER)).all()


def test_hits_and_misses_in_one_batch(tmp_path):
    seen(cold(tmp_path))
    prompts = [ids(5, 21), TEXT, ids(6, 2), [*TEXT[:9], *ids(7, 3)], TEXT[:15]]
    assert judged(cold(tmp_path), prompts) == 28 + 8 + 12


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_churn_above_the_pool_and_then_the_first_prompt(tmp_path, eviction):
    """A pool of two blocks: what it gave away comes back from memory or, with none, from the files."""
    for warm in (10**6, 0):
        policy = cold(tmp_path / str(warm), kept_tokens=8, warm_bytes=warm, eviction=eviction)
        built = model(ROTARY, policy)
        for seed in (1, *range(10, 16), 1):
            found = built.engine.memory.counts.found
            text = ids(seed, 14)
            assert (fed(built, [text], AFTER) == uncached(built, [text], AFTER)).all()
        pool = built.engine.memory
        assert pool.counts.found - found == 12 and pool.counts.forgotten > 0
        hits = pool.tiers.ledger
        assert (hits.warm.hits.blocks > 0) == bool(warm) and pool.tiers.check() == []
        assert pool.blocks.held == 0


@pytest.mark.parametrize("where", [-3, 60])  # in the payload, in the header
def test_a_flipped_bit_costs_a_block_and_no_answer(tmp_path, where):
    _, pool = seen(cold(tmp_path))
    key, _ = list(pool._keys(TEXT))[3]
    file = tmp_path / f"{key.hex()}.block"
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    file.write_bytes(content)
    logits, pool = seen(cold(tmp_path))
    assert pool.counts.found == 12 and pool.tiers.ledger.cold.damaged == 1
    assert (logits == seen(cold(tmp_path / "elsewhere"))[0]).all()
    assert judged(cold(tmp_path)) == 28  # it has been written again


def test_hits_that_are_computed_again_agree(tmp_path):
    for backend in BACKENDS:
        seen(cold(tmp_path), backend=backend)
        _, pool = seen(cold(tmp_path, shadow=1.0), backend=backend)
        (outcome,) = pool.shadow.outcomes.values()
        assert (outcome.checked, outcome.agreed, outcome.largest) == (7, 7, 0.0)
        assert pool.sound and pool.to_dict()["shadow"]["cold"]["checked"] == 7


@pytest.mark.parametrize("precision", ["exact", "float32"])
def test_a_tier_that_lies_is_found_out(tmp_path, monkeypatch, precision):
    """What comes back is another block, with right checksums: only computing it again can tell."""
    right, _ = seen(cold(tmp_path), precision=precision)
    true_get = Tiers.get

    def lying(self, key, token_ids):
        found = true_get(self, key, token_ids)
        return found and Found({name: array + np.float32(0.5) for name, array in found.arrays.items()}, found.tier)

    monkeypatch.setattr(Tiers, "get", lying)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong, pool = seen(cold(tmp_path), precision=precision)
        assert (wrong != right).any()  # so it matters
    with pytest.warns(RuntimeWarning, match=r"from the cold tier .* is off by up to .*Remove the files in"):
        logits, pool = seen(cold(tmp_path, shadow=1.0), precision=precision)
    assert (logits == right).all() and not pool.sound
    assert pool.shadow.outcomes["cold"].agreed == 0


@pytest.mark.parametrize(
    "mistake",
    ["no weights", "no configuration", "no tokens before", "layers swapped", "another block"],
)
def test_planted_mistakes_change_an_answer(tmp_path, monkeypatch, mistake):
    """Each mistake makes one of the judgements above fail: they see it."""
    if mistake == "no weights":
        monkeypatch.setattr("transformer_lab.cache.provenance.weights_digest", lambda ops, config, params: "")
        seen(cold(tmp_path))
        with pytest.raises(AssertionError):
            judged(cold(tmp_path), seed=5)
        return
    if mistake == "no configuration":
        true = tiered.provenance
        monkeypatch.setattr(tiered, "provenance", lambda *given: replace(true(*given), configuration=""))
        seen(cold(tmp_path))
        narrow = tuple(replace(b, attention=replace(b.attention, window=5)) for b in ROTARY.blocks)
        with pytest.raises(AssertionError):
            judged(cold(tmp_path), config=replace(ROTARY, blocks=narrow))
        return
    if mistake == "no tokens before":
        monkeypatch.setattr(tiered, "next_key", lambda key, part, passes: tiered.first_key(_named(part)))
        seen(cold(tmp_path), config=LEARNED)
        with pytest.raises(AssertionError):
            judged(cold(tmp_path), [TEXT[4:]], config=LEARNED)
        return
    seen(cold(tmp_path))
    if mistake == "layers swapped":
        true_write = tiered.TieredPool._write

        def swapped(self, blocks, fetched):
            other = {"0": "1", "1": "0"}
            true_write(self, blocks, [{f"{other[n[0]]}{n[1:]}": a for n, a in each.items()} for each in fetched])

        monkeypatch.setattr(tiered.TieredPool, "_write", swapped)
    else:
        true_write = tiered.TieredPool._write
        monkeypatch.setattr(
            tiered.TieredPool, "_write", lambda self, b, fetched: true_write(self, b, [*fetched[:-1], fetched[0]])
        )
    with pytest.raises(AssertionError):
        judged(cold(tmp_path))


def _named(part):
    from transformer_lab.tiers.key import Provenance

    return Provenance(str(part), "", "", "", "")


def test_a_tier_that_nobody_reads_is_told(tmp_path):
    built = model(ROTARY, cold(tmp_path, kept_tokens=4))
    with pytest.warns(RuntimeWarning, match=r"The cold tier .* was written \d+ times, and none of \d+ lookups"):
        for seed in range(20, 50):
            built.generate(ids(seed, 21), 1)
            built.engine.memory.tiers.flush()


def test_the_end_of_a_process_is_enough(tmp_path):
    """Nobody closes a cache: what is on its way is written when its process ends, or its model goes."""
    built = model(ROTARY, cold(tmp_path, warm_bytes=10**6))
    built.generate(TEXT, 1)
    del built
    gc.collect()
    assert judged(cold(tmp_path)) == 28


def test_a_second_command_line_finds_what_the_first_computed(tmp_path):
    """Whole processes: the text is the same, and the files are read and not written again."""
    folder, texts = tmp_path / "cold $HOME, [x]", []
    words = [sys.executable, "-m", "transformer_lab", "max_new_tokens=8", "prompt=" + "The king had a daughter. " * 20]
    for more in (["cache=contiguous"], *2 * [["cache=tiered", f"cache.cold_folder={folder}"]]):
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, check=True)
        texts.append(done.stdout)
        files = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.block")} if folder.is_dir() else {}
        assert more == ["cache=contiguous"] or len(files) >= 1
    assert texts[0] == texts[1] == texts[2]
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("result.json"))]
    found = [record["output"].get("cache", {}).get("prompt_tokens", {}).get("found") for record in records]
    assert sorted(found, key=str) == [0, found[-1], None] and found[-1] >= 64
    assert records[-1]["output"]["cache"]["tiers"]["cold"]["hits"]["tokens"] == found[-1]
    assert f"{found[-1]} of" in done.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warm_bytes": -1}, r"cache\.warm_bytes is -1; it must be a whole number of bytes"),
        ({"cold_bytes": 1.5}, r"cache\.cold_bytes is 1\.5"),
        ({"shadow": 2}, r"cache\.shadow is 2; it must be a share"),
        ({"below": "int8", "shadow": 0.5}, r"only whole blocks can be computed again"),
        ({"below": "int4"}, r"cache\.below is 'int4'; choose one of whole, int8"),
        ({"cold_folder": " "}, r"cache\.cold_folder is empty"),
        ({"eviction": "random"}, r"cache\.eviction is 'random'; choose one of lru, lfu"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        Tiered(**fields)


@pytest.mark.parametrize("name", ["warm_bytes", "cold_bytes"])
def test_a_tier_without_room_for_a_block_is_refused(tmp_path, name):
    """And what an earlier run left there stays."""
    seen(cold(tmp_path))
    with pytest.raises(ConfigurationError, match=rf"cache\.{name} is 10, and a block of 4 tokens takes 512 bytes"):
        model(ROTARY, cold(tmp_path, **{name: 10}))
    assert judged(cold(tmp_path)) == 28


def test_a_block_is_no_longer_than_a_text():
    built = model(ROTARY, Tiered(10**5))
    assert built.engine.memory.size == 64
    assert (fed(built, [TEXT], AFTER) == uncached(built, [TEXT], AFTER)).all()


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("warm", [0, 5 * 512, 10**6])
def test_the_beginning_of_a_text_outlives_its_end(tmp_path, eviction, warm):
    """Without its beginning nothing of it can be found; a text of seven blocks, and room for five in the files."""
    seen(cold(tmp_path / "ample"))
    size = max(path.stat().st_size for path in (tmp_path / "ample").glob("*.block"))
    policy = cold(tmp_path / "narrow", warm_bytes=warm, eviction=eviction, cold_bytes=5 * size)
    assert judged(policy) == 0
    for _ in range(3):
        assert judged(policy) >= 16


def test_nothing_of_a_tier_that_lied_is_used_again(tmp_path, monkeypatch):
    plain, prompts = model(ROTARY, NoCache()), [TEXT, TEXT[:13], ids(9, 20)]
    seen(cold(tmp_path), prompts)
    true_get = Tiers.get

    def lying(self, key, token_ids):
        found = true_get(self, key, token_ids)
        return found and Found({name: array + np.float32(0.5) for name, array in found.arrays.items()}, found.tier)

    monkeypatch.setattr(Tiers, "get", lying)
    monkeypatch.setattr(tiered.Shadow, "chosen", lambda self, number: number == 9)
    built = model(ROTARY, cold(tmp_path))
    with pytest.warns(RuntimeWarning, match="texts of this run that began as earlier ones may be wrong"):
        first = fed(built, prompts, [ids(70, 4)] * 3)
    assert (first != uncached(plain, prompts, [ids(70, 4)] * 3)).any()
    for _ in range(2):
        assert (fed(built, prompts, [ids(70, 4)] * 3) == uncached(plain, prompts, [ids(70, 4)] * 3)).all()
    assert built.engine.memory.counts.found > 0 and built.engine.memory.blocks.held == 0


PART = """
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transformer_lab.ffn.dense import Dense


@dataclass(frozen=True, eq=False)
class Mine(Dense):
    table: Any = field(default=None, repr=False)

    def __call__(self, ops, params, x, tap):
        return Dense.__call__(self, ops, params, x, tap) * FACTOR * float(self.table.sum())
"""


def test_the_code_and_all_that_a_part_holds_are_in_the_key(tmp_path, monkeypatch):
    """A part of somebody's own was changed between two runs, and the old numbers were found."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def found(name, factor, ones):
        (tmp_path / f"{name}.py").write_text(PART.replace("FACTOR", str(factor)))
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        table = np.zeros(3000)
        table[1500 : 1500 + ones] = 1.0
        part = importlib.import_module(name).Mine(32, table=table)
        config = replace(ROTARY, blocks=tuple(replace(block, ffn=part) for block in ROTARY.blocks))
        return judged(cold(tmp_path / "blocks"), config=config)

    sys.dont_write_bytecode = True
    assert found("part_of_mine", 1.0, 1) == 0
    assert found("part_of_mine", 1.0, 1) == 28
    assert found("part_of_mine", 1.5, 1) == 0
    assert found("part_of_mine", 1.5, 2) == 0  # a field that repr leaves out, of which it would show three numbers
    assert found("part_of_mine", 1.5, 2) == 28


def scaled(factor):
    return lambda x: x * factor


def test_functions_count_with_what_they_hold():
    """Two of the same name and code compute otherwise by what is around them."""
    said = {described(one, set()) for one in (scaled(1.0), scaled(2.0), partial(max, 1), partial(max, 2))}
    assert len(said) == 4 and described(scaled(2.0), set()) in said
    assert described({"f": ROTARY}, set()) == described({"f": replace(ROTARY)}, set())


def test_the_code_of_this_package_is_in_the_key(tmp_path, monkeypatch):
    assert judged(cold(tmp_path)) == 0
    monkeypatch.setattr("transformer_lab.cache.provenance._digest_of_folder", lambda folder: "another version")
    assert judged(cold(tmp_path)) == 0
    monkeypatch.undo()
    assert judged(cold(tmp_path)) == 28


def test_weights_that_are_exchanged_while_a_text_is_under_way(tmp_path):
    """What it computed since then is under no key of the old weights."""
    built = model(ROTARY, cold(tmp_path))
    sequences = built.engine.begin([TEXT[:9]], 20)
    built.replace_weights(arrays_of(ROTARY, 5))
    for token in TEXT[9:]:
        sequences.feed([token])
    sequences.end()
    built.engine.memory.tiers.close()
    assert judged(cold(tmp_path)) == 0 and judged(cold(tmp_path), seed=5) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", [2, 6])  # in the prompt, and behind it
@pytest.mark.parametrize("precision", ["exact", "float32"])
def test_an_interrupted_pass_ends_as_an_interruption(tmp_path, backend, at, precision):
    built = model(ROTARY, cold(tmp_path), backend, precision)
    plain = model(ROTARY, NoCache(), backend, precision)
    extend, passes = built.engine.extend, []

    def interrupted(*arguments):
        result = extend(*arguments)
        passes.append(None)
        if len(passes) == at:
            raise KeyboardInterrupt
        return result

    built.engine.extend = interrupted
    with pytest.raises(KeyboardInterrupt):
        sequences = built.engine.begin([TEXT[:13]], 8)
        for token in range(5):
            sequences.feed([token])
    if at > 4:
        sequences.end()
    assert built.engine.memory.blocks.held == 0
    off = np.abs(fed(built, [TEXT], AFTER) - uncached(plain, [TEXT], AFTER)).max()
    assert off == 0 if precision == "exact" else off < 1e-3


def test_an_interruption_while_blocks_are_read_leaves_none_behind(tmp_path, monkeypatch):
    seen(cold(tmp_path), [TEXT, ids(9, 20)])
    built, get, calls = model(ROTARY, cold(tmp_path)), Tiers.get, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 9:  # of the second text
            raise KeyboardInterrupt
        return get(*arguments)

    monkeypatch.setattr(Tiers, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fed(built, [TEXT, ids(9, 20)], AFTER * 2)
    assert built.engine.memory.blocks.held == 0
    assert (fed(built, [TEXT], AFTER) == uncached(built, [TEXT], AFTER)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["paged", "prefix", "tiered"])
def test_threads_that_share_a_model_have_texts_of_their_own(tmp_path, backend, policy):
    cache = {"paged": Paged(4), "prefix": Prefix(4), "tiered": cold(tmp_path, kept_tokens=8)}[policy]
    built, plain = model(ROTARY, cache, backend), model(ROTARY, NoCache(), backend)
    prompts = [[*TEXT[:count], count] for count in range(3, 27, 3)]
    right, wrong = [uncached(plain, [prompt], AFTER) for prompt in prompts], []

    def work(first):
        for number in range(first, len(prompts), 4):
            logits = fed(built, [prompts[number]], AFTER)
            wrong.extend([number] if (logits != right[number]).any() else [])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert wrong == [] and built.engine.memory.blocks.held == 0
    if policy == "tiered":
        built.engine.memory.tiers.flush()
        for prompt in prompts:
            judged(cache, [prompt], backend=backend)


def test_the_command_line_says_that_a_tier_is_off(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert main(["cache=tiered", "cache.cold_folder=file", "max_new_tokens=2", "prompt=The king"]) == 0
    said = capsys.readouterr().err
    assert f"Warning: The cold tier in {tmp_path / 'file'} is switched off: " in said and ".py" not in said


def test_a_folder_that_cannot_be_written_costs_only_the_tier(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(RuntimeWarning, match=r"cold tier in .* is switched off"):
        built = model(ROTARY, cold(tmp_path / "file"))
        assert (fed(built, [TEXT], AFTER) == uncached(built, [TEXT], AFTER)).all()


def _tampered(draw, folder):
    """Something that may happen to a folder between two texts."""
    files = sorted(folder.glob("*.block"))
    what = draw.choice(["nothing", "swapped", "cut", "flipped", "removed", "no index", "junk for an index"])
    if what == "swapped" and len(files) > 1:
        one, other = draw.sample(files, 2)
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
    elif what == "cut" and files:
        os.truncate(draw.choice(files), draw.randrange(400))
    elif what == "flipped" and files:
        file = draw.choice(files)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    elif what == "removed" and files:
        draw.choice(files).unlink()
    elif what == "no index":
        (folder / "index.sqlite").unlink(missing_ok=True)
    elif what == "junk for an index":
        (folder / "index.sqlite").write_bytes(draw.randbytes(5000))


@pytest.mark.filterwarnings("ignore:The (cold|warm) tier")
@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(10, 80))])
def test_no_folder_however_it_is_treated_changes_a_bit(tmp_path, seed):
    """Texts that begin alike, to around a block's border, over budgets from one block up, with new processes between
    them and with what may happen to files."""
    draw, beginning, plain = random.Random(seed), ids(seed, 40), model(ROTARY, NoCache())

    def begun():
        budgets = {"kept_tokens": draw.choice([1, 8, 8192]), "warm_bytes": draw.choice([0, 3000, 10**6])}
        more = {"cold_bytes": draw.choice([1200, 5000, 10**8]), "shadow": draw.choice([0.0, 0.5])}
        return model(ROTARY, cold(tmp_path, eviction=draw.choice(["lru", "lfu"]), **budgets, **more))

    built = begun()
    for _ in range(4):
        lengths = [draw.choice([3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 32, 33]) for _ in range(draw.randrange(1, 4))]
        prompts = [beginning[:length] + ids(draw.randrange(99), draw.randrange(9)) for length in lengths]
        after = [ids(90 + row, 3) for row in range(len(prompts))]
        assert (fed(built, prompts, after) == uncached(plain, prompts, after)).all()
        pool = built.engine.memory
        pool.tiers.flush()
        assert pool.tiers.check() == [] and pool.sound and pool.blocks.held == 0
        _tampered(draw, tmp_path)
        built = begun() if draw.random() < 0.5 else built


def test_a_pool_whose_tiers_are_closed_goes_on_without_them(tmp_path):
    built = model(ROTARY, cold(tmp_path))
    under_way = built.engine.begin([TEXT], 2)
    built.engine.memory.tiers.close()
    under_way.end()
    assert (fed(built, [TEXT], AFTER) == uncached(built, [TEXT], AFTER)).all()
    assert judged(cold(tmp_path)) == 0


FORKING = """
import os, signal, sys
import transformer_lab as lab
from transformer_lab.cache.tiered import Tiered

model = lab.load_model("storybook", cache=Tiered(1, warm_bytes=0, cold_folder=sys.argv[1]))
child = os.fork()
if child == 0:
    signal.alarm(60)
    text = model.generate("The king said to his three sons " * 6, max_new_tokens=2).text  # more than the queue takes
    model.engine.memory.close()
    os._exit(0 if text else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_goes_on_without_the_tiers(tmp_path):
    """It has no thread that writes, and waited for one for ever."""
    done = subprocess.run([sys.executable, "-c", FORKING, tmp_path / "blocks"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "blocks").glob("*.block"))


def test_exchanged_weights_close_the_tiers_of_those_before(tmp_path, monkeypatch):
    """In the folder where they were opened, wherever the process stands now."""
    monkeypatch.chdir(tmp_path)
    gc.collect()
    built, threads = model(ROTARY, cold("blocks", warm_bytes=10**6)), threading.active_count()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for seed in range(5):
        built.generate(TEXT, 1)
        built.replace_weights(arrays_of(ROTARY, seed))
    assert threading.active_count() <= threads and not os.listdir(".")
    assert judged(cold(tmp_path / "blocks")) == 28 and judged(cold(tmp_path / "blocks"), seed=3) == 28


@pytest.mark.filterwarnings("error")  # an exception in a finalizer is an error of the test too
def test_a_forgotten_model_whose_folder_is_gone_ends_in_silence(tmp_path):
    built = model(ROTARY, cold(tmp_path / "blocks", warm_bytes=10**6))
    built.generate(TEXT, 1)
    shutil.rmtree(tmp_path / "blocks")
    (tmp_path / "blocks").write_text("in its place")
    del built
    gc.collect()


def test_which_hits_are_computed_again_differs_from_process_to_process(tmp_path):
    """With one choice for all, a run of 61 hits at 0.05 never looked at one."""
    pools = [model(ROTARY, cold(tmp_path, shadow=0.05)).engine.memory for _ in range(60)]
    assert any(pool.shadow.chosen(hit) for pool in pools for hit in range(1, 9))
    for pool in pools:
        pool.close()
