"""The section on generated text: where a participant leaves the truth's, and the texts beside each other."""

from transformer_lab.comparison.reporting.number_words import DASH, number
from transformer_lab.comparison.reporting.page.cells import PARTICIPANTS, TEXT, Report, cut
from transformer_lab.comparison.reporting.page.html import Column, Html, joined, name, paragraph, table, text


def text_section(report: Report) -> Html:
    if not report["text"]:
        return Html("")
    columns = [
        Column("Participant"),
        Column("First differing token", words=True),
        Column("Tokens that agree"),
        Column("Different completions"),
        Column("Sampler", words=True),
    ]
    shown, more = cut(report["text"], PARTICIPANTS)
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
    prompts, more_prompts = cut(report["prompts"], 8)
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
