"""lab.routing, its page and its table: complete, plain, escaped, closed to the outside."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console
from small_mixtures import built, ids, mixture, weights

import transformer_lab as lab
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.init import initialise
from transformer_lab.routes.console import print_routing, print_split
from transformer_lab.routes.page.document import page

HOSTILE = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def model():
    """The first layer is dense; the others are mixtures of 6 and of 4 experts."""
    config, _ = weights(layers=3)
    tokenizer = lab.train_tokenizer("The king said: 12 men came to the sea. " * 9, 290)
    ffns = (Dense(24), mixture(capacity=Capacity(0.7)), mixture(4, 1))
    blocks = tuple(replace(block, ffn=ffn) for block, ffn in zip(config.blocks, ffns, strict=True))
    config = replace(config, vocab_size=tokenizer.vocab_size, blocks=blocks)
    made = assemble(config, dict(initialise(config, 0)), built().backend, tokenizer)
    made.source = HOSTILE
    return made


@pytest.fixture(scope="module")
def report(model):
    return lab.routing(model, ["The king said: 12", "men came"])


def test_what_is_in_the_report(model, report):
    content = report.to_dict()
    tokens = len(model.tokenizer.encode("The king said: 12")) + len(model.tokenizer.encode("men came"))
    assert content["tokens"] == tokens == sum(content["classes"].values()) and content["texts"] == 2
    assert [layer["layer"] for layer in report.layers] == [1, 2]
    assert [layer["experts"] for layer in report.layers] == [6, 4]
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    for layer in report.layers:
        classes = layer["by_class"]
        assert {name: found["tokens"] for name, found in classes.items()} == content["classes"]
        together = [sum(found["asked"][expert] for found in classes.values()) for expert in range(layer["experts"])]
        assert together == layer["asked"]
    assert report.layers[0]["dropped_slots"] > 0


def test_every_text_runs_alone(model):
    one, other = "The king said: 12", "men came"
    both, each = lab.routing(model, [one, other]).layers, [lab.routing(model, text).layers for text in (one, other)]
    for place in (0, 1):
        loads = [sum(pair) for pair in zip(*(found[place]["load"] for found in each), strict=True)]
        assert both[place]["load"] == loads


def test_without_a_tokenizer_and_by_default():
    found = lab.routing(built(), ids(9)).to_dict()
    assert found["classes"] == {} and found["layers"][0]["by_class"] is None and found["tokens"] == 9
    assert lab.routing(built()).to_dict()["tokens"] > 60


def test_by_name_with_options():
    found = lab.routing("storybook", "The king", weights="random", ffn="moe", router="olmoe", precision="float64")
    assert found.to_dict()["model"]["precision"] == "float64" and len(found.layers) == 6
    assert found.layers[0]["slots"] == 8 and found.layers[0]["margins"] is None  # all eight of eight


class Loaded(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.links = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]


def test_the_page_is_well_formed_and_closed(report, tmp_path):
    report.to_html(tmp_path / "routing.html")
    html = (tmp_path / "routing.html").read_text(encoding="utf-8")
    ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    found = Loaded(html)
    assert not found.tags & {"script", "iframe", "img", "object"} and all(link[0] == "#" for link in found.links)
    assert "\x1b" not in html and "&lt;script&gt;" in html
    styles = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    hashes = {f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}" for style in styles}
    assert hashes == set(re.findall(r"sha256-[\w+/=]+", html))
    # One map for each number of experts; for each layer who uses which, and, where tokens have several, which together.
    assert html.count('<svg xmlns="http://www.w3.org/2000/svg" class="heat-map"') == 2 + 2 + 1


def test_the_page_says_the_numbers(report):
    root = ElementTree.fromstring(page(report.to_dict()).removeprefix("<!DOCTYPE html>\n"))
    table = next(iter(root.iter("table")))
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in table.find("tbody")]
    assert [row[0] for row in rows] == ["1", "2"]
    for row, layer in zip(rows, report.layers, strict=True):
        assert row[1] == str(layer["experts"]) and float(row[2]) == layer["experts_per_token"]
        assert float(row[4]) == pytest.approx(layer["load_entropy"], rel=1e-2)
        assert row[5] == str(len(layer["dead"]))


def test_the_console(report, model):
    out = io.StringIO()
    print_routing(report.to_dict(), Console(file=out, width=80))
    assert "\x1b" not in out.getvalue() and "2 of 6" in out.getvalue() and "1 of 4" in out.getvalue()
    out = io.StringIO()
    print_split(lab.routing_split(model, model, "men came").to_dict(), Console(file=out, width=80))
    assert "with the experts of a" in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 80
