"""Caches, batches, decoding, sampling and stopping: what a single pass over a prompt never shows.

Most are patches of transformer_lab/generation and cache, so all our backends have them; where one alone does, `says`
tells.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from corpus import probes
from corpus.form import Bug, Plant, everywhere, into, method, shared
from corpus.models import SHORT, THREE, ids
from transformer_lab.cache.layer import Fresh
from transformer_lab.model.tokens import tokens_of

bug = partial(Bug, kind="caches_and_decoding", probe=probes.generation())
ENGINE, GENERATE = "transformer_lab.generation.engine", "transformer_lab.generation.generate"
SAMPLING, CONTINUATION = "transformer_lab.generation.sampling", "transformer_lab.generation.continuation"
STOPPING, CACHE = "transformer_lab.generation.stopping", "transformer_lab.cache.contiguous"
SAME_BEGINNING = [[7, *ids(20, 21)], [7, *ids(20, 22)]]
STORY = ["The king said to his son"]


def planted(*patches: Any, model: str = "gpt2", prompts: Any = SHORT, **rest: Any) -> Plant:
    return shared(*patches, model=model, prompts=prompts, **rest)


# --- the engine and its cache -----------------------------------------------------------------------------------------


def prefix_by_its_first_token(right: Any, self: Any, prompts: Any, new_tokens: int) -> Any:
    known = self.__dict__.setdefault("known", {})
    first = known.setdefault(tuple((prompt[0], len(prompt)) for prompt in prompts), prompts)
    sequences = right(self, first, new_tokens)
    sequences.rows = [list(prompt) for prompt in prompts]
    return sequences


def one_position_on(right: Any, self: Any, pieces: Any, starts: Any) -> None:
    right(self, pieces, [start + (start > 0) for start in starts])


def clamped_to_row_39(right: Any, self: Any, ops: Any, fresh: Any, tokens: Any) -> Any:
    if fresh.key.shape[2] == 1:
        tokens = tokens._replace(start=ops.xp.clip(tokens.start, None, 39))
    return right(self, ops, fresh, tokens)


def neighbours_values(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    if query.shape[2] == 1:
        value = ops.xp.roll(value, 1, axis=0)
    return right(ops, query, key, value, start, scale, *rest)


def logits_at_the_end_of_the_padding(right: Any, self: Any, *given: Any) -> None:
    right(self, *given)
    extend = self.extend

    def wrong(params: Any, token_ids: Any, start: Any, last: Any, cache: Any) -> Any:
        return extend(params, token_ids, start, last * 0 + (token_ids.shape[1] - 1), cache)

    self.extend = wrong


def second_call_one_late(right: Any, self: Any, tokens: Any, count: int) -> Any:
    late = self.__dict__.get("called", False)
    self.called = True
    for row in self.rows if late else ():
        row.insert(0, 0)
    found = right(self, tokens, count)
    for row in self.rows if late else ():
        row.pop(0)
    return found


def scores_one_late(right: Any, self: Any, tokens: Any, count: int) -> Any:
    found, scores = right(self, tokens, count)
    return found, np.roll(scores, 1, axis=1)


def first_row_of_the_cache_lost(right: Any, self: Any, tokens: Any) -> None:
    """The beginning of the text leaves the cache with the first decoded token."""
    if self.cache is not None:
        ops = self.engine.ops
        starts = ops.asarray(np.zeros(len(self.rows), np.int64))
        blank = ops.xp.zeros_like(self.cache[0].keys.values[:, :, :1])
        nothing = Fresh(blank, blank, blank)
        first = tokens_of(ops, ops.asarray(np.zeros((len(self.rows), 1), np.int64)), starts)
        self.cache = [layer.update(ops, nothing, first)[0] for layer in self.cache]
    right(self, tokens)


# --- the rows of a generation -----------------------------------------------------------------------------------------


def one_generator(right: Any, self: Any, prompt: Any, limit: int, seed: int, *rest: Any) -> None:
    right(self, prompt, limit, seed, *rest)
    self.noise = GENERATORS.setdefault(seed, self.noise)


GENERATORS: dict[int, Any] = {}


def fresh_generators(right: Any, self: Any, *given: Any) -> None:
    GENERATORS.clear()
    right(self, *given)


def choosing(logprob: Any) -> Any:
    """The choice of the next tokens with log-probabilities from logprob(rows of logits, place, token, sampling)."""

    def wrong(right: Any, self: Any, sequences: Any) -> Any:
        from transformer_lab.generation import sampling

        tokens, pieces = [], []
        for place, (row, logits) in enumerate(zip(self.rows, sequences.logits, strict=True)):
            token, piece = 0, ""
            if row.finish_reason is None:
                token = sampling.choose(logits, self.sampling, row.history, row.noise)
                piece = row.accept(token, logprob(sequences.logits, place, token, self.sampling), logits)
            tokens.append(token)
            pieces.append(piece)
        return tokens, pieces

    return method(GENERATE, "Decoding", "_choose", wrong)


def at_the_temperature(logits: Any, place: int, token: int, rules: Any) -> float:
    from transformer_lab.generation.sampling import log_probability

    return log_probability(logits[place] / (rules.temperature or 1.0), token)


def of_the_first_row(logits: Any, place: int, token: int, rules: Any) -> float:
    from transformer_lab.generation.sampling import log_probability

    return log_probability(logits[0], token)


def end_token_kept(right: Any, self: Any, token: int, logprob: float, logits: Any) -> str:
    if token in self.end_of_text_ids:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
    return right(self, token, logprob, logits)


def with_the_first_end_token_alone(right: Any, folder: Any) -> Any:
    original = right(folder)
    return replace(original, end_of_text_ids=original.end_of_text_ids[:1])


def stop_within_a_piece(right: Any, self: Any, text: str) -> str:
    places = [place for stop in self.strings if (place := text.find(stop)) >= 0]
    self.found = self.found or bool(places)
    return text[: min(places)] if places else text


def stop_string_shown(right: Any, self: Any, text: str) -> str:
    before = self._held + text
    shown = right(self, text)
    if not self.found:
        return shown
    return shown + next((stop for stop in self.strings if before[len(shown) :].startswith(stop)), "")


# --- the sampler ------------------------------------------------------------------------------------------------------


def always_divided(right: Any, logits: Any, history: Any, penalty: float) -> Any:
    result = logits.astype(np.float64)
    result[np.unique(np.asarray(history, np.int64))] /= penalty
    return result


def once_for_each_occurrence(right: Any, logits: Any, history: Any, penalty: float) -> Any:
    result = logits.astype(np.float64)
    for token in history:
        result[token] = result[token] / penalty if result[token] > 0 else result[token] * penalty
    return result


def nucleus_before_temperature(right: Any, logits: Any, rules: Any) -> Any:
    from dataclasses import replace

    if rules.top_p is None:
        return right(logits, rules)
    kept, _ = right(logits, replace(rules, temperature=1.0, top_k=None, min_p=None))
    among = np.full(len(logits), -np.inf)
    among[kept] = logits[kept]
    found, weights = right(among, replace(rules, top_p=None))
    return found[weights > 0], weights[weights > 0]


def min_p_absolute(right: Any, logits: Any, rules: Any) -> Any:
    from dataclasses import replace

    found, weights = right(logits, replace(rules, min_p=None))
    keep = weights / weights.sum() >= (rules.min_p or 0.0)
    keep[np.argmax(weights)] = True
    return found[keep], weights[keep]


def ties_kept(right: Any, values: Any, k: int) -> Any:
    kept = np.flatnonzero(values >= np.sort(values)[-k])
    return kept[np.argsort(-values[kept], kind="stable")]


def likeliest_in_bfloat16(right: Any, logits: Any, rules: Any, *rest: Any) -> int:
    if rules.temperature == 0.0:
        bits = np.asarray(logits, np.float32).view(np.uint32)
        logits = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return int(right(logits, rules, *rest))


BUGS = (
    bug(
        "prefix cache found by length and first token",
        says="The keys of an earlier prompt are used again if the first token and the length are the same: a prefix "
        "cache whose hash is too short, as has been found in servers. The second prompt gets the first one's text.",
        place="generation",
        needs="two prompts of one length that begin alike",
        plant=planted(method(ENGINE, "Engine", "begin", prefix_by_its_first_token), prompts=SAME_BEGINNING),
    ),
    bug(
        "position one too far after the prefill",
        says="The first decoded token is placed one behind its place, and an empty row of the cache is seen: "
        "cache_position counted after the append.",
        place="generation",
        plant=planted(method(ENGINE, "Sequences", "_run", one_position_on), model="llama"),
    ),
    bug(
        "cache too short, writes clamped to its last row",
        says="Tokens behind position 39 are written over row 39, as JAX's dynamic_update_slice does in silence when a "
        "cache is too short.",
        place="generation",
        plant=planted(method(CACHE, "ContiguousLayer", "update", clamped_to_row_39), model="llama"),
    ),
    bug(
        "a row reads its neighbour's values",
        says="In decoding, a batch reads its keys by row and its values by the row before: an index of rows that was "
        "not carried along when the batch was rearranged. One backend alone.",
        place="blocks.*.attn.out",
        needs="sweeps=['unequal']",
        plant=into("numpy", "gpt2", THREE, attention=neighbours_values, more={"sweeps": ["unequal"], "new_tokens": 8}),
        probe=probes.cached,
    ),
    bug(
        "first token chosen at the end of the padding",
        says="Prompts are padded on the right, and the logits of the last column are taken; on JAX a single prompt is "
        "padded, too. The classic of batched generation with padding on the wrong side.",
        place="generation",
        plant=planted(
            method(ENGINE, "Engine", "__init__", logits_at_the_end_of_the_padding),
            model="llama",
            backends=("numpy", "jax"),
        ),
    ),
    bug(
        "second compiled call of decoding one position late",
        says="A compiled loop of 16 tokens is called again with a start that counts the last token twice. JAX alone.",
        place="generation",
        plant=planted(
            method(ENGINE, "Sequences", "greedy", second_call_one_late), model="llama", backends=("numpy", "jax")
        ),
    ),
    bug(
        "log-probabilities one token late",
        says="The compiled loop returns with each token the log-probability of the one before. JAX alone; the text is "
        "right.",
        place="log-probabilities",
        plant=planted(method(ENGINE, "Sequences", "greedy", scores_one_late), backends=("numpy", "jax")),
    ),
    bug(
        "first row of the cache lost",
        says="The row of the first token is cleared when decoding begins: a window that is shifted too early, which "
        "takes the attention sink away.",
        place="generation",
        plant=planted(method(ENGINE, "Sequences", "feed", first_row_of_the_cache_lost), model="llama"),
    ),
    bug(
        "one generator for all rows",
        says="Rows of a batch draw in turn from one generator, so that a text depends on its neighbours.",
        place="sampler",
        needs="sampling, several prompts",
        plant=planted(
            method(CONTINUATION, "Continuation", "__init__", one_generator),
            method(GENERATE, "Decoding", "__init__", fresh_generators),
            prompts=THREE,
        ),
        probe=probes.generation(together=True, temperature=1.0, seed=3, new_tokens=12),
    ),
    bug(
        "log-probabilities after the temperature",
        says="Reported log-probabilities are those of the logits divided by the temperature, not of the raw ones; vLLM "
        "had to make it an option.",
        place="log-probabilities",
        needs="sampling",
        plant=planted(choosing(at_the_temperature)),
        probe=probes.generation(temperature=0.5, seed=3, new_tokens=12),
    ),
    bug(
        "log-probabilities of the first row",
        says="All rows of a batch report log-probabilities by the first row's logits.",
        place="log-probabilities",
        needs="several prompts",
        plant=planted(choosing(of_the_first_row), prompts=THREE),
        probe=probes.generation(together=True, new_tokens=8),
    ),
    bug(
        "only the first end token ends a text",
        says="config.json lists two, as Llama 3's does; the second is generated like any other, and the text goes on.",
        place="generation",
        plant=planted(
            everywhere("transformer_lab.checkpoints.original", "read_original", with_the_first_end_token_alone),
            model="llama with two end tokens",
        ),
    ),
    bug(
        "end token kept in the result",
        says="The token that ends the text is among the tokens that are returned.",
        place="generation",
        plant=planted(
            method(CONTINUATION, "Continuation", "accept", end_token_kept), model="llama with two end tokens"
        ),
    ),
    bug(
        "stop string found only within one token's text",
        says="A stop string that comes in two tokens is not seen.",
        place="stopping",
        needs="a stop string",
        plant=planted(method(STOPPING, "StopStrings", "push", stop_within_a_piece), model="storybook", prompts=STORY),
        probe=probes.generation(stop="here, and", new_tokens=24),
    ),
    bug(
        "stop string left in the text",
        says="The text is cut behind the stop string and not before it.",
        place="stopping",
        needs="a stop string",
        plant=planted(method(STOPPING, "StopStrings", "push", stop_string_shown), model="storybook", prompts=STORY),
        probe=probes.generation(stop="been here", new_tokens=24),
    ),
    bug(
        "repetition penalty divides negative logits",
        says="A negative logit is divided by the penalty, which makes the token likelier; the first published code of "
        "CTRL's penalty did, and transformers took it over for a while.",
        place="sampler",
        needs="sampling",
        plant=planted(everywhere(SAMPLING, "penalise", always_divided)),
        probe=probes.candidates(temperature=1.0, repetition_penalty=1.5),
    ),
    bug(
        "repetition penalty for each occurrence",
        says="A token that occurred three times is penalised three times.",
        place="sampler",
        needs="sampling",
        plant=planted(everywhere(SAMPLING, "penalise", once_for_each_occurrence)),
        probe=probes.candidates(temperature=1.0, repetition_penalty=1.5),
    ),
    bug(
        "top-p before the temperature",
        says="The nucleus is taken from the probabilities at temperature 1; llama.cpp's order of samplers, which is "
        "another rule than the one that is documented here.",
        place="sampler",
        needs="sampling",
        plant=planted(everywhere(SAMPLING, "candidates", nucleus_before_temperature)),
        probe=probes.candidates(temperature=2.0, top_p=0.8),
    ),
    bug(
        "min-p without the largest probability",
        says="The threshold is min_p itself and not min_p times the largest probability.",
        place="sampler",
        needs="sampling",
        plant=planted(everywhere(SAMPLING, "candidates", min_p_absolute)),
        probe=probes.candidates(temperature=2.0, min_p=0.1),
    ),
    bug(
        "top-k keeps all ties",
        says="All tokens as likely as the last of the k are kept, as `scores < kth` in transformers has it.",
        place="sampler",
        needs="sampling",
        plant=planted(everywhere(SAMPLING, "largest", ties_kept)),
        probe=probes.candidates(temperature=1.0, top_k=20),
    ),
    bug(
        "greedy choice among logits in bfloat16",
        says="Logits are rounded to bfloat16 before the likeliest is taken, so that near ties go to the lowest id.",
        place="generation",
        plant=planted(
            everywhere(SAMPLING, "choose", likeliest_in_bfloat16),
            model="storybook",
            prompts=["The fox said to the wolf"],
        ),
        probe=probes.generation(new_tokens=24),
    ),
)
