"""report.html: one self-contained page made from a report's dict alone, so also from a report.json of another day.

It needs no script and loads nothing. Long tables are cut where the page would grow too large, and say so. What stands
in the report was written by others: all of it is escaped. It measures nothing.
"""

import base64
import hashlib
import re

from transformer_lab.comparison.reporting.number_words import number
from transformer_lab.comparison.reporting.page.cells import Report
from transformer_lab.comparison.reporting.page.charts import charts_section
from transformer_lab.comparison.reporting.page.environment import environment_section
from transformer_lab.comparison.reporting.page.exact_mode import exact_section
from transformer_lab.comparison.reporting.page.generated_text import text_section
from transformer_lab.comparison.reporting.page.html import Html, name, paragraph, text
from transformer_lab.comparison.reporting.page.logits import logits_section
from transformer_lab.comparison.reporting.page.participants import participants_section
from transformer_lab.comparison.reporting.page.prompts import prompts_section
from transformer_lab.comparison.reporting.page.reached import reached_section
from transformer_lab.comparison.reporting.page.semantics import semantics_section
from transformer_lab.comparison.reporting.page.style import STYLE
from transformer_lab.comparison.reporting.page.sweeps import sweeps_section
from transformer_lab.comparison.reporting.page.taps import gradients_section, taps_section
from transformer_lab.comparison.reporting.page.verdict_box import favicon, verdict_box


def page(report: Report) -> str:
    """The page as text, for a file in UTF-8. `report` is what Report.to_dict() gives, or a report.json read back."""
    sections: list[tuple[str, str, Html]] = []
    for key, title, section in (
        ("semantics", "Differences in meaning", semantics_section),
        ("participants", "Participants", participants_section),
        ("reached", "What was reached", reached_section),
        ("depth", "Along the depth", charts_section),
        ("exact", "Exact mode", exact_section),
        ("taps", "Every tap", taps_section),
        ("logits", "Logits", logits_section),
        ("text", "Text", text_section),
        ("gradients", "Gradients", gradients_section),
        ("sweeps", "Sweeps", sweeps_section),
        ("prompts", "Prompts", prompts_section),
        ("environment", "Environment", environment_section),
    ):
        if made := section(report):
            sections.append((key, title, made))
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    main = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{title}</h2>\n{made}</section>\n'
        for key, title, made in sections
    )
    source = report["model"]["source"]
    body = (
        f'<a class="skip" href="#main">Skip to the verdict</a>\n<header>\n<h1>Comparison of {name(source)}</h1>\n'
        f'{_facts(report)}</header>\n<nav aria-label="On this page"><ul>{links}</ul></nav>\n'
        f'<main id="main" tabindex="-1">\n{verdict_box(report)}{main}</main>\n'
        "<footer>Made by transformer_lab. The same numbers, in full, are in report.json.</footer>\n"
    )
    # Styles are allowed by their hash: nothing else on the page may load, run or send anything.
    styles = {STYLE, *re.findall(r"<style>(.*?)</style>", body, re.DOTALL)}
    hashes = " ".join(
        sorted(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in styles)
    )
    policy = f"default-src 'none'; style-src {hashes}; img-src data:; base-uri 'none'; form-action 'none'"
    status = report["verdict"]["status"]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n<meta name="referrer" content="no-referrer"/>\n'
        f"<title>{status.capitalize()}: comparison of {text(source)}</title>\n"
        f'<link rel="icon" href="{favicon(report)}"/>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _facts(report: Report) -> Html:
    model, prompts = report["model"], report["prompts"]
    tokens = sum(len(prompt["token_ids"]) for prompt in prompts)
    facts = [
        (model["parameters"], "parameters"),
        (model["layers"], "layers"),
        (len(prompts), "prompts" if len(prompts) != 1 else "prompt"),
        (tokens, "tokens"),
        (report["seconds"], "seconds"),
    ]
    said = [f"{number(value)} {unit}" for value, unit in facts if value is not None]
    if model["precision"]:
        said.insert(2, str(model["precision"]))
    return paragraph(" · ".join(said), "facts")
