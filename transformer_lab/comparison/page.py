"""report.html: one self-contained page made from a report's dict alone, so also from a report.json of another day.

It needs no script and loads nothing. Long tables are cut where the page would grow too large, and say so. What stands
in the report was written by others: all of it is escaped. It measures nothing.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from transformer_lab.comparison.html import (
    Column,
    Html,
    code,
    definitions,
    folded,
    joined,
    name,
    paragraph,
    table,
    text,
)
from transformer_lab.comparison.number_words import DASH, cosine, number, share
from transformer_lab.comparison.page_charts import drawn_participants, overview, participant_charts
from transformer_lab.comparison.page_style import STYLE
from transformer_lab.comparison.summary import Summary, largest_ratio, rows_of, summaries

# So many rows of one kind are shown in all; they keep the page below 1 MB. GPT-2 small with five participants fits.
TAP_ROWS, GRADIENT_ROWS, EXACT_ROWS, ROWS = 900, 760, 400, 200
PARTICIPANTS = 20  # in tables with a column or a text for each
TEXT, IDS = 1200, 64  # letters of a text and ids of a prompt

SOUND_ICON = '<circle cx="16" cy="16" r="13"/><path d="M9.5 16.5l4.5 4.5 8.5-9.5"/>'
DEFECT_ICON = '<path d="M16 3.5L30 28H2z"/><path d="M16 12v8M16 24v.1"/>'

Report = Mapping[str, Any]


def page(report: Report) -> str:
    """The page as text, for a file in UTF-8. `report` is what Report.to_dict() gives, or a report.json read back."""
    sections: list[tuple[str, str, Html]] = []
    for key, title, section in (
        ("semantics", "Differences in meaning", _semantics),
        ("participants", "Participants", _participants),
        ("depth", "Along the depth", _charts),
        ("exact", "Exact mode", _exact),
        ("taps", "Every tap", _taps),
        ("logits", "Logits", _logits),
        ("text", "Text", _text),
        ("gradients", "Gradients", _gradients),
        ("sweeps", "Sweeps", _sweeps),
        ("prompts", "Prompts", _prompts),
        ("environment", "Environment", _environment),
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
        f'<main id="main" tabindex="-1">\n{_verdict(report)}{main}</main>\n'
        "<footer>Made by transformer_lab. The same numbers, in full, are in report.json.</footer>\n"
    )
    # Styles are allowed by their hash: nothing else on the page may load, run or send anything.
    styles = {STYLE, *re.findall(r"<style>(.*?)</style>", body, re.DOTALL)}
    hashes = " ".join(
        sorted(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in styles)
    )
    policy = f"default-src 'none'; style-src {hashes}; img-src data:; base-uri 'none'; form-action 'none'"
    status = "defect" if _is_defect(report) else "sound"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n<meta name="referrer" content="no-referrer"/>\n'
        f"<title>{status.capitalize()}: comparison of {text(source)}</title>\n"
        f'<link rel="icon" href="{_favicon(report)}"/>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


# --- The top -------------------------------------------------------------------------------------------------------


def _is_defect(report: Report) -> bool:
    return report["verdict"]["status"] != "sound"


def _favicon(report: Report) -> str:
    shape, colour = (DEFECT_ICON, "#c22") if _is_defect(report) else (SOUND_ICON, "#0a7a55")
    svg = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' fill='none' stroke-width='3' "
        f"stroke='{colour}'>{shape}</svg>"
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


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


def _verdict(report: Report) -> Html:
    verdict, defect = report["verdict"], _is_defect(report)
    silent = verdict["exact_identical"] is None
    exact = paragraph("Exact mode was not compared, so nothing is said of the definition.", "note") if silent else ""
    return Html(
        f'<section class="verdict {"defect" if defect else "sound"}" aria-labelledby="verdict">'
        f'<svg class="icon" viewBox="0 0 32 32" aria-hidden="true">{DEFECT_ICON if defect else SOUND_ICON}</svg>\n'
        f'<div><h2 id="verdict">{"A defect was found" if defect else "Sound"}</h2>\n'
        f"{paragraph(verdict['sentence'])}{exact}"
        f"{_first_divergence(report)}</div></section>\n"
    )


def _first_divergence(report: Report) -> Html:
    found = report["first_divergence"]
    if not found:
        return Html("")
    value, expected, who = found["value"], found["expected"], str(found["participant"])
    precision = "" if str(found["precision"]) in who else f", {found['precision']}"
    pairs: list[tuple[str, object]] = [
        ("Where", Html(f"{code(found['tap'])} on {name(who)}{text(precision)}")),
        ("Error over bound", Html(f'<strong class="over">{number(found["ratio"])}</strong>')),
        ("Element", f"{found['position']} of prompt {found['prompt'] + 1}" if found["prompt"] is not None else DASH),
        ("Value", number(value, 8)),
        ("Expected", f"{number(expected, 8)}, from the same inputs in float64"),
        ("Bound", f"{number(found['bound'])}, the farthest that rounding can take it"),
    ]
    return Html(f"<h3>First divergence</h3>\n{definitions(pairs)}")


def _semantics(report: Report) -> Html:
    if not report["semantics"]:
        return Html("")
    names = _names(report, [name for row in report["semantics"] for name in row["values"]])
    columns = [Column("Field"), *(Column(name, words=True) for name in names)]
    shown, more = _cut(report["semantics"], ROWS)
    rows = [[code(row["field"]), *(_known(row["values"].get(name), code) for name in names)] for row in shown]
    said = paragraph("These configurations do not mean the same; no arithmetic makes up for it.")
    return Html(said + table("What the configurations say differently", columns, rows, more))


# --- Participants --------------------------------------------------------------------------------------------------


def _participants(report: Report) -> Html:
    columns = [
        Column("Participant"),
        Column("Error / bound"),
        Column("Where", words=True),
        Column("Nearest to the truth"),
        Column("RMS error at the logits"),
        Column("KL from the truth, nats"),
        Column("Top-1 agreement"),
        Column("First differing token", words=True),
    ]
    by_name = {participant["name"]: participant for participant in report["participants"]}
    shown, more = _cut(summaries(report), ROWS)
    rows = [
        [
            Html(f"{name(row.name)}<br/><small>{text(_what(by_name[row.name]))}</small>"),
            _ratio(row.ratio),
            _known(row.where, code),
            f"{row.nearest} of {row.taps} taps" if row.taps else DASH,
            number(row.rms),
            number(row.kl),
            share(row.top_1),
            first_difference(row),
        ]
        for row in shown
    ]
    caption = "Each participant against the truth: the float64 run by the plain operations"
    return Html(table(caption, columns, rows, more) + folded("How to read these numbers", _glossary()))


def _what(participant: Mapping[str, Any]) -> str:
    precision = participant["precision"] if str(participant["precision"]) not in participant["name"] else None
    known = (participant["kind"], participant["version"], participant["device"], precision)
    return ", ".join(str(value) for value in known if value is not None)


def first_difference(row: Summary) -> str:
    """At which generated token a participant leaves the truth, in the prompt where that is earliest."""
    if row.first_difference is not None:
        return f"token {row.first_difference + 1:,}"
    return DASH if row.tokens is None else f"none in {row.tokens:,}"


def _glossary() -> Html:
    return definitions(
        (
            ("The truth", "the float64 run of the same model, by the plain operations on NumPy"),
            ("Total error", "a participant's value minus the truth's"),
            ("Added error", "its value minus what float64 makes of the very inputs that the operation was given"),
            ("Inherited error", "the rest: what earlier operations had put into those inputs"),
            ("Bound", "how far rounding can take the operation in its precision, from its dimensions and its inputs"),
            ("Error / bound", "the added error over the bound, the largest element; above 1 it cannot be rounding"),
            ("ULP", "units in the last place: how many numbers of the precision lie between"),
            ("SNR", "signal to noise: 20 log10 of the RMS of the values over the RMS of the error, in dB"),
            ("KL", "from the truth: how much the participant's distribution loses against the truth's, in nats"),
            ("Doubtful", "an exact-mode rounding too close to a boundary for float64; it is computed again in full"),
        )
    )


def _charts(report: Report) -> Html:
    all_together, one_by_one = overview(report), participant_charts(report)
    if not (all_together or one_by_one):
        return Html("")
    largest = largest_ratio(report["taps"])
    said = ""
    if largest:
        who, where = name(largest["participant"]), code(largest["tap"])
        said = paragraph(Html(f"Largest error over its bound: {text(number(largest['ratio']))}, at {where} on {who}."))
    heading = "<h3>One by one: the ratio of every tap; the error that operations add, inherit, and both together</h3>\n"
    left_out = len(report["participants"]) - len(drawn_participants(report))
    more = paragraph(f"and {left_out:,} more participants in report.json", "more") if left_out > 0 else ""
    return joined((said, all_together, Html(heading if one_by_one else ""), one_by_one, more))


# --- Tables --------------------------------------------------------------------------------------------------------


def _exact(report: Report) -> Html:
    exact = report["exact"]
    if not exact:
        return Html("")
    names = exact["participants"]
    taps = sum(row["roundings"] is not None for row in exact["taps"])  # gradients have no certificate
    also = " and for every gradient" if taps < len(exact["taps"]) else ""
    same = f"gave the same bits at every tap{also}" if exact["identical"] else "did not give the same bits"
    same = same if len(names) > 1 else "is alone in exact mode: there is nothing to hold its bits against"
    said = f"{', '.join(map(str, names))} {same}."
    if exact["roundings"]:
        said += (
            f" Certificate: {exact['roundings']:,} values were rounded; {number(exact['doubtful'])} of them lay closer "
            "to a boundary between two float32 than float64 can tell, and were computed again in full."
        )
    others = _names(report, [name for row in exact["taps"] for name in row["differing"]])
    group = "elements that differ from the first participant" if others else ""
    columns = [Column("Tap"), Column("Roundings"), Column("Doubtful"), *(Column(name, group=group) for name in others)]
    shown, more = _cut(exact["taps"], EXACT_ROWS)
    rows = [
        [code(row["tap"]), number(row["roundings"]), number(row["doubtful"])]
        + [_zero_expected(row["differing"].get(name)) for name in others]
        for row in shown
    ]
    made = table("Exact mode, tap by tap", columns, rows, more, "tall")
    return Html(paragraph(said) + folded(f"The certificate of {taps:,} taps{also}", made, len(rows) <= 12))


# The columns that a tap and the gradient of a parameter have in common: field, heading, how it is written.
ERRORS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("max_abs", "max abs", number),
    ("max_rel", "max rel", number),
    ("ulp_max", "ULP max", number),
    ("ulp_p99", "ULP p99", number),
    ("rms", "RMS", number),
    ("snr_db", "SNR, dB", number),
    ("cosine", "cosine", cosine),
)
PARTS = (
    ("added_max_abs", "max abs", "added error"),
    ("added_rms", "RMS", "added error"),
    ("inherited_max_abs", "max abs", "inherited error"),
    ("inherited_rms", "RMS", "inherited error"),
)


def _taps(report: Report) -> Html:
    columns = [
        Column("Tap"),
        Column("error / bound"),
        Column("nearest"),
        *(Column(title, group="total error") for _, title, _ in ERRORS),
        *(Column(title, group=group) for _, title, group in PARTS),
    ]

    def cells(row: Mapping[str, Any]) -> list[object]:
        nearest = Html('<span class="yes">nearest</span>') if row["nearest"] else ""
        errors = [write(row[field]) for field, _, write in ERRORS]
        return [code(row["tap"]), _ratio(row["ratio"]), nearest, *errors, *(number(row[field]) for field, *_ in PARTS)]

    return _per_participant(report, "taps", "taps", columns, cells, TAP_ROWS)


def _gradients(report: Report) -> Html:
    columns = [Column("Parameter"), Column("error / bound"), *(Column(title) for _, title, _ in ERRORS)]

    def cells(row: Mapping[str, Any]) -> list[object]:
        return [code(row["parameter"]), _ratio(row["ratio"]), *(write(row[field]) for field, _, write in ERRORS)]

    return _per_participant(report, "gradients", "gradients", columns, cells, GRADIENT_ROWS)


def _per_participant(
    report: Report,
    field: str,
    what: str,
    columns: Sequence[Column],
    cells: Callable[[Mapping[str, Any]], list[object]],
    most: int,
) -> Html:
    """A folded table for each participant. They share `most` rows; of more, those with the largest ratios stay."""
    names = _names(report, [row["participant"] for row in report[field]])
    if not names:
        return Html("")
    each = most // len(names)
    parts = []
    for who in names:
        rows = rows_of(report[field], who)
        kept = rows
        if len(rows) > each:
            order = sorted(range(len(rows)), key=lambda place: rows[place]["ratio"] or 0.0, reverse=True)
            kept = [rows[place] for place in sorted(order[:each])]
        largest = largest_ratio(rows)
        said = f"{text(who)}: {len(rows):,} {what}"
        if largest:
            place = largest["tap" if field == "taps" else "parameter"]
            said += f", error / bound at most {number(largest['ratio'])}, at {text(place)}"
        made = table(
            f"{what.capitalize()} of {who}", columns, [cells(row) for row in kept], len(rows) - len(kept), "tall"
        )
        parts.append(folded(Html(said), made))
    left_out = len({row["participant"] for row in report[field]} - set(names))
    if left_out:
        parts.append(paragraph(f"and {left_out:,} more participants in report.json", "more"))
    return joined(parts)


def _logits(report: Report) -> Html:
    if not report["logits"]:
        return Html("")
    columns = [
        Column("Participant"),
        Column("from the truth", group="KL, nats"),
        Column("to the truth", group="KL, nats"),
        Column("top-1", group="agreement"),
        Column("top-5", group="agreement"),
        Column("largest", group="rank shift"),
        Column("mean", group="rank shift"),
        Column("flips"),
    ]
    shown, more = _cut(report["logits"], ROWS)
    rows = [
        [
            name(row["participant"]),
            number(row["kl_from_truth"]),
            number(row["kl_to_truth"]),
            share(row["top_1"]),
            share(row["top_5"]),
            number(row["rank_shift_max"]),
            number(row["rank_shift_mean"]),
            len(row["flips"]),
        ]
        for row in shown
    ]
    made = table("Logits against the truth's", columns, rows, more)
    flips = [(row["participant"], flip) for row in report["logits"] for flip in row["flips"]]
    if not flips:
        return made
    columns = [
        Column("Participant"),
        Column("Prompt"),
        Column("Position"),
        Column("Truth's token", words=True),
        Column("Its token", words=True),
        Column("Margin"),
    ]
    chosen, more = _cut(flips, ROWS)
    rows = [
        [
            name(who),
            flip["prompt"] + 1,
            flip["position"],
            _token(flip["truth_token"]),
            _token(flip["token"]),
            number(flip["margin"]),
        ]
        for who, flip in chosen
    ]
    caption = "Flips: positions whose most likely token is another one. Margin: by how much the truth prefers its own"
    flipped = table(caption, columns, rows, more, "tall")
    return Html(made + folded(f"{len(flips):,} flips", flipped, len(flips) <= 12))


def _text(report: Report) -> Html:
    if not report["text"]:
        return Html("")
    columns = [
        Column("Participant"),
        Column("First differing token", words=True),
        Column("Tokens that agree"),
        Column("Different completions"),
        Column("Sampler", words=True),
    ]
    shown, more = _cut(report["text"], PARTICIPANTS)
    rows = [
        [
            name(row["participant"]),
            "none" if row["first_difference"] is None else f"token {row['first_difference'] + 1:,}",
            f"{number(row['agreement'])} of {number(row['tokens'])}",
            f"{number(row['distinct'])} in {number(row['runs'])} runs",
            {True: "same choice", False: Html('<span class="over">differs</span>'), None: DASH}[row["sampler"]],
        ]
        for row in shown
    ]
    made = [table("Generated text against the truth's", columns, rows, more)]
    prompts, more_prompts = _cut(report["prompts"], 8)
    for place, prompt in enumerate(prompts):
        texts = [(row["participant"], row["texts"][place]) for row in shown if place < len(row["texts"])]
        if all(generated is None for _, generated in texts):
            continue
        first = next(generated for _, generated in texts if generated is not None)
        rows = [[name(who), DASH if generated is None else _marked(generated, first)] for who, generated in texts]
        columns = [Column("Participant"), Column("Text", words=True)]
        begin = f"Prompt {place + 1}" + (f": {prompt['text'][:60]}" if prompt["text"] is not None else "")
        made.append(Html(f"<h3>{text(begin)}</h3>\n"))
        made.append(
            table(f"Continuations of prompt {place + 1}; the first difference from the first is marked", columns, rows)
        )
    if more_prompts:
        made.append(paragraph(f"and {more_prompts:,} more prompts in report.json", "more"))
    return joined(made)


def _marked(given: str, first: str) -> Html:
    """The text, with the word in which it leaves `first` marked."""
    given, first = given[:TEXT], first[:TEXT]
    if given == first:
        return Html(f'<span class="wrap">{name(given, TEXT)}</span>')
    same = next((i for i, (a, b) in enumerate(zip(given, first, strict=False)) if a != b), min(len(given), len(first)))
    start = given.rfind(" ", 0, same) + 1  # a token often begins with the space before its word
    end = next((i for i in range(same + 1, len(given)) if given[i].isspace()), len(given))
    marked = text(given[start:end], TEXT) or "ends here"
    return Html(
        f'<span class="wrap"><bdi>{text(given[:start], TEXT)}<mark><span class="hidden">first difference: </span>'
        f"{marked}</mark>{text(given[end:], TEXT)}</bdi></span>"
    )


def _sweeps(report: Report) -> Html:
    if not report["sweeps"]:
        return Html("")
    columns = [
        Column("Change", words=True),
        Column("Participant", words=True),
        Column("Elements that differ"),
        Column("Largest difference"),
        Column("at the logits"),
        Column("Error / bound"),
        Column("Where", words=True),
        Column("Note", words=True),
    ]
    shown, more = _cut(report["sweeps"], ROWS)
    rows = [
        [
            text(row["change"]),
            name(row["participant"]),
            _differing(row["differing"], row["elements"]),
            number(row["max_abs"]),
            number(row["logits_max_abs"]),
            _ratio(row["ratio"]),
            _known(row["tap"], code),
            _known(row["note"], lambda note: Html(f'<span class="wrap">{text(note)}</span>')),
        ]
        for row in shown
    ]
    said = paragraph("The same participant once more, with one thing changed. In exact mode nothing may differ.")
    return Html(said + table("What a change of circumstances changes", columns, rows, more, "tall"))


def _prompts(report: Report) -> Html:
    prompts, more = _cut(report["prompts"], 40)
    rows = [
        [
            f"Prompt {place + 1}",
            _known(prompt["text"], lambda given: Html(f'<span class="wrap">{name(given, TEXT)}</span>')),
            len(prompt["token_ids"]),
            Html(f'<span class="wrap">{_ids(prompt["token_ids"])}</span>'),
        ]
        for place, prompt in enumerate(prompts)
    ]
    columns = [Column("Prompt"), Column("Text", words=True), Column("Tokens"), Column("Ids", words=True)]
    return table("What every participant was given", columns, rows, more) if rows else Html("")


def _environment(report: Report) -> Html:
    environment, model = report["environment"], report["model"]
    pairs: list[tuple[str, object]] = [
        ("Model", model["source"]),
        ("sha256 of the weights", _known(model["sha256"], code)),
    ]
    for key in ("python", "platform", "processor", "cores", "threads"):
        pairs.append((key.capitalize(), environment[key]))
    pairs += [("Package " + str(key), value) for key, value in islice(environment["packages"].items(), ROWS)]
    for blas in environment["blas"][:20]:
        known = (blas["version"], blas["architecture"], blas["threads"] and f"{blas['threads']} threads")
        pairs.append((f"BLAS {blas['library']}", ", ".join(str(value) for value in known if value)))
    pairs += [("Variable " + str(key), code(value)) for key, value in islice(environment["variables"].items(), ROWS)]
    for participant in report["participants"][:PARTICIPANTS]:
        if operations := participant["operations"]:
            said = ", ".join(f"{operation}: {version}" for operation, version in sorted(operations.items()))
            pairs.append((f"Operations of {participant['name']}", text(said, TEXT)))
    made = definitions((term, said) for term, said in pairs if said is not None and said != DASH)
    if environment["command"]:
        command = shlex.join(map(str, environment["command"]))
        made = Html(
            f'{made}<h3>To run it again</h3>\n<div class="scroll" role="region" aria-label="The command" tabindex="0">'
            f"<pre><code>{text(command, 4000)}</code></pre></div>\n"
        )
    return made


# --- Cells ---------------------------------------------------------------------------------------------------------


def _cut(rows: Iterable[Any], most: int) -> tuple[list[Any], int]:
    """The first `most` rows, and how many are left out."""
    rows = list(rows)
    return rows[:most], max(0, len(rows) - most)


def _names(report: Report, mentioned: Iterable[str]) -> list[str]:
    """Those mentioned, each once and not too many, the participants first and in their order."""
    found = dict.fromkeys(mentioned)
    order = [participant["name"] for participant in report["participants"] if participant["name"] in found]
    return list(dict.fromkeys([*order, *found]))[:PARTICIPANTS]


def _known(value: Any, write: Callable[[Any], object] = text) -> object:
    return DASH if value is None else write(value)


def _ratio(value: float | None) -> object:
    """Above 1 it differs in more than its colour."""
    if value is None or not value > 1:
        return number(value)
    spoken = '<span aria-hidden="true">▲</span><span class="hidden">above the bound</span>'
    return Html(f'<span class="over">{number(value)} {spoken}</span>')


def _zero_expected(value: int | None) -> object:
    return Html(f'<span class="over">{number(value)} ▲</span>') if value else number(value)


def _differing(differing: int | None, elements: int | None) -> str:
    if not differing or not elements:
        return number(differing)
    return f"{differing:,} of {elements:,}"


def _token(token: object) -> object:
    """An id, or the token's text in quotes, so that a space can be seen."""
    return code(repr(token)) if isinstance(token, str) else number(token)


def _ids(token_ids: Sequence[int]) -> Html:
    more = len(token_ids) - IDS
    return text(" ".join(map(str, token_ids[:IDS])) + (f" and {more:,} more in report.json" if more > 0 else ""), TEXT)
