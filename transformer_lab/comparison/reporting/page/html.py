"""Pieces of HTML from text that nobody vouches for: escaped, shortened, and told apart from markup by their type.

What is of type Html is markup; every other string is text. The markup is also well-formed XML.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from transformer_lab.errors import printable

LONGEST = 160  # letters of a name or a cell


class Html(str):
    """Markup, safe to place into a page as it is."""

    __slots__ = ()


def text(value: object, longest: int = LONGEST) -> Html:
    """`value` as text: cut, control characters and marks of direction written out, escaped. Html stays as it is."""
    if isinstance(value, Html):
        return value
    given = str(value)
    shown = printable(given[:longest]) + ("…" if len(given) > longest else "")
    return Html(escape(shown))


def name(value: object, longest: int = LONGEST) -> Html:
    """The text in a direction of its own: a name in Arabic does not turn its neighbours around."""
    return Html(f"<bdi>{text(value, longest)}</bdi>")


def code(value: object, longest: int = LONGEST) -> Html:
    return Html(f'<code dir="auto">{text(value, longest)}</code>')


def joined(pieces: Iterable[object], between: str = "") -> Html:
    return Html(text(between).join(text(piece) for piece in pieces))


@dataclass(frozen=True)
class Column:
    """title: the heading. words: text, on the left; else numbers, on the right. group: a heading over several."""

    title: str
    words: bool = False
    group: str = ""


def table(
    caption: object, columns: Sequence[Column], rows: Sequence[Sequence[object]], more: int = 0, css: str = ""
) -> Html:
    """A table with a caption, in a region of its own that scrolls and can be reached by the keyboard.

    The first cell of each row is its heading. more: how many rows were left out; said below the table.
    """
    head = _grouped_head(columns) if any(column.group for column in columns) else _row_of_headings(columns)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(_cell(cell, column) for cell, column in zip(cells, columns[1:], strict=True))
        + "</tr>\n"
        for first, *cells in rows
    )
    rest = f'<p class="more">and {more:,} more in report.json</p>' if more else ""
    spoken = text(caption)
    return Html(
        f'<div class="scroll {css}" role="region" aria-label="{spoken}" tabindex="0">\n<table><caption><span>{spoken}'
        f"</span></caption>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody></table></div>\n{rest}"
    )


def _cell(cell: object, column: Column) -> str:
    return f'<td class="t">{text(cell)}</td>' if column.words else f"<td>{text(cell)}</td>"


def _row_of_headings(columns: Sequence[Column]) -> str:
    headings = (
        f'<th scope="col"{_side(columns, place)}>{text(columns[place].title)}</th>' for place in range(len(columns))
    )
    return f"<tr>{''.join(headings)}</tr>"


def _side(columns: Sequence[Column], place: int) -> str:
    return ' class="t"' if columns[place].words or not place else ""


def _grouped_head(columns: Sequence[Column]) -> str:
    """Two rows: groups over their columns; a column without a group is as high as both."""
    above, below = [], []
    for place, column in enumerate(columns):
        side = _side(columns, place)
        if not column.group:
            above.append(f'<th scope="col" rowspan="2"{side}>{text(column.title)}</th>')
            continue
        if not place or columns[place - 1].group != column.group:
            span = sum(other.group == column.group for other in columns)
            above.append(f'<th scope="colgroup" colspan="{span}" class="g">{text(column.group)}</th>')
        below.append(f'<th scope="col"{side}>{text(column.title)}</th>')
    return f"<tr>{''.join(above)}</tr><tr>{''.join(below)}</tr>"


def folded(summary: object, body: Html, is_open: bool = False) -> Html:
    """What can be unfolded; no script is needed for it."""
    begin = '<details open="">' if is_open else "<details>"
    return Html(f"{begin}<summary>{text(summary)}</summary>\n{body}</details>\n")


def definitions(pairs: Iterable[tuple[object, object]]) -> Html:
    return Html("<dl>" + "".join(f"<dt>{text(term)}</dt><dd>{text(said)}</dd>" for term, said in pairs) + "</dl>\n")


def paragraph(said: object, css: str = "", longest: int = 2000) -> Html:
    begin = f'<p class="{css}">' if css else "<p>"
    return Html(f"{begin}{text(said, longest)}</p>\n")
