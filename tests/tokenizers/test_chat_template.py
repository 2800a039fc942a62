"""Conversations as text. Judge: transformers' apply_chat_template; and templates that were written to do harm."""

import json
import time

import pytest
import transformers
from test_tokenizer_folders import folder_of, library

from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError
from transformer_lab.tokenizers import chat_template, chat_text, load_tokenizer

# After the forms that are published; written for this test.
CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}
{{- message['content'] + '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
BRACKETS = """{{ bos_token }}{% for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content|trim + ' [/INST]' }}
    {%- else %}{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}"""
HEADERS = """{%- set ns = namespace(system='none') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message.content %}{% continue %}{% endif %}
    {%- if message.content is string %}
        {{- '<' ~ message.role ~ '>' ~ message.content }}
    {%- else %}
        {%- for part in message.content %}{{- part.text if part.type == 'text' else part | tojson }}{%- endfor %}
    {%- endif %}
{%- endfor %}
{{- ns.system }} {{ strftime_now('%Y') | length }} {{ tools | tojson(indent=2) if tools else 'no tools' }}"""
TEMPLATES = {"chatml": CHATML, "brackets": BRACKETS, "headers": HEADERS}
TALK = [
    {"role": "user", "content": ' Who <b>lights</b> it? "é" '},
    {"role": "assistant", "content": "The sea."},
    {"role": "user", "content": "And?"},
]
PARTS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"x": "<é>"}]},
]
ROLES = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("where", ["jinja", "config", "named"])
@pytest.mark.parametrize("messages", [TALK, TALK[:1], PARTS], ids=["talk", "one", "parts"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_writes_it(name, messages, where, tmp_path):
    if messages is PARTS and name != "headers":
        pytest.skip("this template takes text alone")
    named = [{"name": "default", "template": TEMPLATES[name]}, {"name": "tool_use", "template": "of tools"}]
    config = {"config": {"chat_template": TEMPLATES[name]}, "named": {"chat_template": named}}.get(where, {})
    files = {"chat_template_jinja": TEMPLATES[name]} if where == "jinja" else {}
    folder = folder_of(tmp_path, ROLES | config, library("begin"), **files)
    judge, tokenizer = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for answer in (True, False):
        expected = judge.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        assert chat_text(tokenizer.original_files, messages, answer=answer) == expected
    ids = judge.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode(chat_text(tokenizer.original_files, messages), allow_special=True) == ids
    if where == "named":
        assert chat_text(tokenizer.original_files, messages, tools=[{"type": "function"}]) == "of tools"
    elif name == "headers":
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        expected = judge.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        assert chat_text(tokenizer.original_files, messages, tools=tools) == expected


def by(template, messages=TALK):
    return chat_text({"chat_template.jinja": template.encode()}, messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
        "{{ ''.ljust(10 ** 10) }}",
        "{{ '%2000000000d' % 1 }}",
        "{{ 'a' * 20000000 }}",
    ],
)
def test_a_template_that_wants_too_much(template, tmp_path, monkeypatch):
    program = chat_template._PROCESS.read_text().replace(
        "SECONDS, MEMORY, LONGEST = 5,", "SECONDS, MEMORY, LONGEST = 1,"
    )
    assert program != chat_template._PROCESS.read_text()
    (tmp_path / "impatient.py").write_text(program)
    monkeypatch.setattr(chat_template, "_PROCESS", tmp_path / "impatient.py")
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match="too much time or memory"):
        by(template)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ nothing.of.it }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_that_is_wrong_or_wants_out(template):
    with pytest.raises(InputFileError, match="The chat template cannot be used") as caught:
        by(template)
    assert len(str(caught.value)) < 200
    assert by("{{ raise_exception.__globals__ }}") == ""


def test_a_template_that_refuses():
    with pytest.raises(ConfigurationError, match="refuses these messages: 'Roles must alternate"):
        by(BRACKETS, [TALK[0], TALK[0]])


@pytest.mark.parametrize(
    "messages", [[], "Hello", None, [1], [{"content": "no role"}], [{"role": 3}], {"role": "user"}]
)
def test_what_is_no_conversation(messages):
    with pytest.raises(ConfigurationError, match="A chat is a list of messages"):
        by(CHATML, messages)


def test_what_json_cannot_hold():
    with pytest.raises(ConfigurationError, match="something else than text"):
        by(CHATML, [{"role": "user", "content": object()}])


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": b"{}"},
        {"tokenizer_config.json": b'{"chat_template": [{"name": "other", "template": "x"}]}'},
        {"tokenizer_config.json": b'{"chat_template": [{"name": ["default"], "template": "x"}]}'},
        {"tokenizer_config.json": b'{"chat_template": 3}'},
        {"chat_template.json": b"{}"},
        {"chat_template.jinja": b"\xff"},
    ],
)
def test_no_template(files):
    with pytest.raises(InputFileError, match="template"):
        chat_text(files, TALK)


def test_special_texts_of_a_user_are_theirs_to_write():
    """As in transformers: who hands in a message decides what is in it, special tokens too."""
    assert "<|im_end|>" in by("{{ messages[0].content }}", [{"role": "user", "content": json.dumps("<|im_end|>")}])
