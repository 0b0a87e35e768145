"""What `data.show` prints, as one page that needs nothing else: tables, drawings as SVG, rows. No scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from data.overview import Source
from data.row_view import Piece, RowView, Stretch
from data.show import Shown, layout

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #6a737d; --line: #d0d7de;
  --bar: #3b6ea8; --loss: #fff1c2; --loss-line: #b35900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --faint: #9aa4af; --line: #30363d;
  --bar: #7aa7dd; --loss: #4a3a10; --loss-line: #ffb84d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.bar { fill: var(--bar); } .rest { fill: var(--line); }
.row { border: 1px solid var(--line); border-radius: 6px; padding: .5rem 1rem; margin: 1rem 0; }
.title, figcaption, .note { color: var(--faint); font-size: 13px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.7 ui-monospace, monospace;
  border-left: 3px solid var(--line); padding-left: .75rem; margin: .25rem 0 .75rem; }
mark { color: inherit; background: var(--loss); border-bottom: 2px solid var(--loss-line); }
.special { border: 1px solid var(--line); border-radius: 3px; color: var(--faint); }
.read { text-decoration: line-through; color: var(--faint); }
"""
BAR, STEP, HEIGHT = 26, 38, 120  # pixels: of a bar, from one to the next, of the highest
NAME = 20  # characters that fit beside a bar


def html(shown: Shown) -> str:
    """The page, as text."""
    many = len(shown.sources) > 1
    parts = [
        f"<h1>{escape(shown.recipe)}</h1>",
        f"<p>{escape(layout(shown))}; tokenizer {escape(shown.tokenizer)}, {shown.vocab_size:,} ids</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in shown.notes),
        "<h2>Sources</h2>",
        _table(shown.sources),
        *(f'<p class="note">{escape(source.name)}: {escape(source.about)}</p>' for source in shown.sources),
    ]
    if many:
        parts += ["<h2>Shares of the rows</h2>", _bars([(source.name, source.share) for source in shown.sources])]
    for source in shown.sources:
        of = f" of {escape(source.name)}" if many else ""
        parts += [f"<h2>Lengths of the documents{of}</h2>", _histogram(source)]
        if source.packings:
            parts += [f"<h2>Padding by packing{of}</h2>", _bars(source.packings.items())]
    parts += [f"<h2>Rows from step {shown.step:,} on</h2>", LEGEND, *map(_row, shown.rows)]
    title = f"<title>{escape(shown.recipe)}</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


LEGEND = (
    '<p class="note"><mark>Underlined</mark> is what is to be predicted; <span class="special">framed</span> are '
    'tokens that text cannot spell; <span class="read">struck out</span> is what is read in place of the token behind '
    "it.</p>"
)


def _table(sources: Sequence[Source]) -> str:
    counts = ("documents", "tokens", "bytes a token", "rows an epoch")
    lines = [("source", *counts, "share", "epochs read", "epochs at most", "padding", "predicted")]
    for source in sources:
        size = "unknown" if source.bytes_per_token is None else f"{source.bytes_per_token:.3f}"
        most = "no limit" if source.max_epochs is None else f"{source.max_epochs:g}"
        lines.append(
            (
                escape(source.name),
                *(f"{count:,}" for count in (source.documents, source.tokens)),
                *(size, f"{source.rows:,}", f"{source.share:.2%}", f"{source.epochs:.2f}", most),
                *(f"{share:.2%}" for share in (source.padding, source.predicted)),
            )
        )
    cells = (
        "".join(f"<{tag}>{value}</{tag}>" for value in line)
        for tag, line in zip(["th", *["td"] * len(sources)], lines, strict=True)
    )
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _bars(shares: Iterable[tuple[str, float]]) -> str:
    """Horizontal bars, each a share of the whole."""
    found = list(shares)
    parts = []
    for place, (name, share) in enumerate(found):
        y = place * BAR
        parts += [
            f'<text x="0" y="{y + 16}">{escape(_shortened(name))}<title>{escape(name)}</title></text>',
            f'<rect class="rest" fill="#d0d7de" x="160" y="{y + 4}" width="400" height="16"/>',
            f'<rect class="bar" fill="#3b6ea8" x="160" y="{y + 4}" width="{400 * share:.2f}" height="16"/>',
            f'<text x="570" y="{y + 16}">{share:.2%}</text>',
        ]
    return _drawing(640, BAR * len(found), ", ".join(f"{name} {share:.2%}" for name, share in found), parts)


def _histogram(source: Source) -> str:
    """How many documents have from 1, 2, 4, ... tokens on."""
    top = max(count for _, count in source.lengths)
    parts = []
    for place, (shortest, count) in enumerate(source.lengths):
        x, height = place * STEP + 4, HEIGHT * count / top
        parts += [
            f'<rect class="bar" fill="#3b6ea8" x="{x}" y="{HEIGHT + 20 - height:.2f}" width="{BAR}" '
            f'height="{height:.2f}">'
            f"<title>{count:,} documents of {shortest:,} to {2 * shortest - 1:,} tokens</title></rect>",
            f'<text x="{x + BAR / 2}" y="{HEIGHT + 14 - height:.2f}" text-anchor="middle">{_short(count)}</text>',
            f'<text x="{x + BAR / 2}" y="{HEIGHT + 36}" text-anchor="middle">{_power(shortest)}</text>',
        ]
    told = ", ".join(f"{count:,} from {shortest:,} on" for shortest, count in source.lengths)
    caption = "<figcaption>documents with so many tokens, or up to twice as many</figcaption>"
    width = STEP * len(source.lengths) + 8
    return f"<figure>{_drawing(width, HEIGHT + 44, told, parts)}{caption}</figure>"


def _shortened(name: str) -> str:
    """As much of a name as stands beside a bar."""
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _power(length: int) -> str:
    """A power of two: 1k is 1,024."""
    for bits, unit in ((30, "G"), (20, "M"), (10, "k")):
        if length >> bits:
            return f"{length >> bits}{unit}"
    return str(length)


def _short(count: int) -> str:
    """A count in four characters or so."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count // size}{unit}"
    return str(count)


def _drawing(width: float, height: float, told: str, parts: Iterable[str]) -> str:
    """An SVG; `told` says for those who do not see it what it shows."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(told)}">{"".join(parts)}</svg>'


def _row(row: RowView) -> str:
    share = row.padding / (row.tokens + row.padding)
    title = (
        f"row {row.row:,} of epoch {row.epoch:,} of {escape(row.source)}: {row.tokens:,} tokens, {row.predicted:,} to "
        f"predict, {share:.1%} padding"
    )
    stretches = "".join(map(_stretch, row.stretches))
    return f'<div class="row"><div class="title">{title}</div>{stretches}</div>'


def _stretch(stretch: Stretch) -> str:
    pieces = "".join(map(_piece, stretch.pieces))
    text = f'<div class="text" dir="auto">{pieces}</div>' if pieces else ""
    return f'<div class="title">{escape(stretch.title)}</div>{text}'


def _piece(piece: Piece) -> str:
    content = escape(piece.text)
    if piece.special:
        content = f'<span class="special">{content}</span>'
    if piece.read is not None:
        content = f'<span class="read">{escape(piece.read)}</span> {content}'
    return f"<mark>{content}</mark>" if piece.loss else content
