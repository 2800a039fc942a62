"""Damaged chat templates and what surrounds them: the template's text, its file, the roles of tokens, the messages.

A template is a program, so most damage gives another program; whatever it does, it is text or a refusal.
"""

import json

from damage import damage, damage_bytes, odd

from transformer_lab.errors import LabError
from transformer_lab.tokenizers import chat_text

TEMPLATE = """{%- if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set rest = messages[1:] %}
{%- else %}{% set rest = messages %}{% endif %}{%- for m in rest %}
{%- if m.role not in ('user', 'assistant') %}{{ raise_exception('no ' + m.role) }}{% endif %}
{{- bos_token + '[' + m['role'] | upper + ']' }}
{{- m.content if m.content is string else m.content | tojson }}{% endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}"""
PARTS = [
    "{{ 'x' * 10**9 }}", "{% for i in range(10**12) %}{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% include '/etc/passwd' %}", "{#", "\0",
    "{{ 1 / 0 }}", "{{ [1] * 10**10 }}", "{{ '%1000000000d' % 1 }}", "{{ 'a'.center(10**12) }}", "{{ '\\ud800' }}",
    "{{ lipsum(n=10**6) }}", "{% generation %}", "{{ undefined_name.x }}", "{{ messages | map(attribute='x') | list }}",
    "{{ strftime_now('%' * 9999) }}", "{{ strftime_now('\\ud800') }}", "{% break %}", "{{ raise_exception(messages) }}",
]  # fmt: skip
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


def chat_kind(rng, folder):
    """A chat of a damaged template, or one of damaged messages."""
    text, messages, config, tools = TEMPLATE, MESSAGES, CONFIG, None
    chance = rng.random()
    if chance < 0.4:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(PARTS) + text[at + rng.choice([0, 1, 20]) :]
    elif chance < 0.6:
        text = damage_bytes(rng, text.encode()).decode("utf-8", "replace")
    elif chance < 0.8:
        messages = damage(rng, MESSAGES)
    elif chance < 0.9:
        tools = rng.choice([[{"name": "f"}], [odd(rng)], odd(rng)])
    files = {"tokenizer_config.json": json.dumps(config).encode()}
    place = rng.randrange(4)
    if place == 0:
        files["chat_template.jinja"] = text.encode("utf-8", "surrogatepass") if chance < 0.95 else b"\xff"
    elif place == 1:
        files["chat_template.json"] = json.dumps({"chat_template": text} if chance < 0.95 else odd(rng)).encode()
    else:
        named = [{"name": "default", "template": text}, {"name": "tool_use", "template": "{{ tools }}"}]
        given = text if place == 2 else damage(rng, named) if chance > 0.9 else named
        files["tokenizer_config.json"] = json.dumps(config | {"chat_template": given}).encode()

    def read():
        try:
            assert isinstance(chat_text(files, messages, tools), str)
        except LabError as error:
            message = f"{folder}: {error.args[0]}"  # it was handed the files, without their folder
            raise type(error)(message) from error

    return read
