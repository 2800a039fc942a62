"""The section on prompts: the texts and ids that every participant was given."""

from collections.abc import Sequence

from transformer_lab.comparison.reporting.page.cells import TEXT, Report, cut, known
from transformer_lab.comparison.reporting.page.html import Column, Html, name, table, text

PROMPTS, IDS = 40, 64  # that are shown; ids of each


def prompts_section(report: Report) -> Html:
    prompts, more = cut(report["prompts"], PROMPTS)
    rows = [
        [
            f"Prompt {place + 1}",
            known(prompt["text"], lambda given: Html(f'<span class="wrap">{name(given, TEXT)}</span>')),
            len(prompt["token_ids"]),
            Html(f'<span class="wrap">{_ids(prompt["token_ids"])}</span>'),
        ]
        for place, prompt in enumerate(prompts)
    ]
    columns = [Column("Prompt"), Column("Text", words=True), Column("Tokens"), Column("Ids", words=True)]
    return table("What every participant was given", columns, rows, more) if rows else Html("")


def _ids(token_ids: Sequence[int]) -> Html:
    more = len(token_ids) - IDS
    return text(" ".join(map(str, token_ids[:IDS])) + (f" and {more:,} more in report.json" if more > 0 else ""), TEXT)
