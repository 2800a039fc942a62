"""The arguments of generate and stream: one list, in a fixed order, by position or by name."""

import inspect
import re
from dataclasses import dataclass, fields

import pytest

import transformer_lab as lab
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model.arguments import arguments_of
from transformer_lab.language_model.request import Request

# As documented: programs pass these by position, so nothing may come in between.
DOCUMENTED = {
    "max_new_tokens": 64,
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "repetition_penalty": None,
    "seed": 0,
    "stop": None,
    "hash_logits": False,
    "prompt_special": False,
    "prompt_template": True,
}
# Each changes what comes out, so that none can be taken for another.
GIVEN = {
    "max_new_tokens": 6,
    "temperature": 3.0,
    "top_k": 90,
    "top_p": 0.97,
    "min_p": 0.001,
    "repetition_penalty": 1.4,
    "seed": 3,
    "stop": ["zz"],
    "hash_logits": True,
    "prompt_special": True,
    "prompt_template": False,
}


@pytest.fixture(scope="module")
def model(plain):
    return lab.load_model(plain[0])


def methods(model):
    return {"generate": model.generate, "stream": lambda *values, **named: finished(model.stream(*values, **named))}


def finished(stream):
    assert all(stream)
    return stream.result


def outcome(generation):
    return generation.text, generation.token_ids, generation.logprobs, generation.logits_sha256


@pytest.mark.parametrize("name", ["generate", "stream"])
def test_the_signature_is_the_documented_one(model, name):
    for method, owner in ((getattr(model, name), []), (getattr(lab.LanguageModel, name), ["self"])):
        parameters = inspect.signature(method).parameters
        assert list(parameters) == [*owner, "prompt", *DOCUMENTED]
        assert {key: parameters[key].default for key in DOCUMENTED} == DOCUMENTED
        assert parameters["prompt"].default is inspect.Parameter.empty
        assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    assert method.__name__ == name and method.__doc__


@pytest.mark.parametrize("name", ["generate", "stream"])
def test_by_position_and_by_name_is_the_same(model, name):
    call = methods(model)[name]
    expected = outcome(call(prompt="the cat", **GIVEN))
    for count in range(len(GIVEN) + 1):
        by_name = dict(list(GIVEN.items())[count:])
        assert outcome(call("the cat", *list(GIVEN.values())[:count], **by_name)) == expected
    swapped = outcome(call("the cat", 6, 3.0, 90, 0.001, 0.97, *list(GIVEN.values())[5:]))  # top_p and min_p
    assert swapped != expected


def test_each_field_takes_the_value_at_its_place():
    request = Request("a", *GIVEN.values())
    assert request == Request("a", **GIVEN) and request.prompt == "a"
    assert {name: getattr(request, name) for name in GIVEN} == GIVEN


def test_every_rule_of_sampling_is_an_argument():
    """So a new rule is a field of Sampling, and nothing has to be added to generate and stream."""
    assert issubclass(Request, Sampling)
    rules = [field.name for field in fields(Sampling)]
    assert rules == list(DOCUMENTED)[1:6]


@pytest.mark.parametrize("name", ["generate", "stream"])
@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("temprature", "temperature"), ("topk", "top_k"), ("max_tokens", "max_new_tokens"), ("stops", "stop")],
)
def test_a_wrong_keyword_is_answered_with_the_nearest(model, name, wrong, nearest):
    with pytest.raises(lab.ConfigurationError, match=rf"^There is no setting {wrong}\. Did you mean {nearest}\?$"):
        methods(model)[name]("the cat", **{wrong: 1})


@pytest.mark.parametrize("name", ["generate", "stream"])
def test_a_keyword_that_is_near_to_nothing_is_answered_with_all(model, name):
    with pytest.raises(lab.ConfigurationError, match=r"^There is no setting qqqqqq\. Known here: prompt, max_new_tok"):
        methods(model)[name]("the cat", qqqqqq=1)
    with pytest.raises(lab.ConfigurationError, match=r"^There is no setting promt\. Did you mean prompt\?$"):
        methods(model)[name](promt="the cat")


@pytest.mark.parametrize("name", ["generate", "stream"])
@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, "missing a required argument: 'prompt'"),
        (("a", 1), {"max_new_tokens": 1}, "multiple values for argument 'max_new_tokens'"),
        (("a", *GIVEN.values(), 1), {}, "too many positional arguments"),
    ],
    ids=["none", "twice", "too many"],
)
def test_a_wrong_number_of_arguments(model, name, values, named, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        methods(model)[name](*values, **named)


def test_a_field_that_is_added_is_an_argument_of_every_method():
    @dataclass(frozen=True)
    class Question:
        text: str
        times: int = 2

    class Echo:
        @arguments_of(Question)
        def said(self, question):
            """Says it."""
            return question.text * question.times

    assert Echo().said("a") == "aa" and Echo().said("a", 3) == Echo().said(times=3, text="a") == "aaa"
    assert Echo.said(Echo(), "b") == "bb" and Echo.said.__doc__ == "Says it."
    assert str(inspect.signature(Echo().said)) == "(text: str, times: int = 2)"
    with pytest.raises(lab.ConfigurationError, match="Did you mean times"):
        Echo().said("a", time=3)


def test_what_is_asked_of_several_prompts():
    request = Request(["a", [1, 2]], seed=[4, 5], stop="end")
    assert request.several and request.prompts == ["a", [1, 2]] and request.seeds() == [4, 5]
    assert request.stop_strings() == ["end"]
    alone = Request([1, 2], seed=7, stop=(text for text in ("x", "y")))
    assert not alone.several and alone.prompts == [[1, 2]] and alone.seeds() == [7]
    assert alone.stop_strings() == ["x", "y"]
