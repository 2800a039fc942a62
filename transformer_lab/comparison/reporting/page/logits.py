"""The section on logits: divergence, agreement and ranks, and every position that would choose another token."""

from transformer_lab.comparison.reporting.number_words import number, share
from transformer_lab.comparison.reporting.page.cells import ROWS, Report, cut
from transformer_lab.comparison.reporting.page.html import Column, Html, code, folded, name, table


def logits_section(report: Report) -> Html:
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
    shown, more = cut(report["logits"], ROWS)
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
    chosen, more = cut(flips, ROWS)
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


def _token(token: object) -> object:
    """An id, or the token's text in quotes, so that a space can be seen."""
    return code(repr(token)) if isinstance(token, str) else number(token)
