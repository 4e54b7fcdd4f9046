"""What pages are made of: tables, sections, and the style; every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from hpcrl.viewing.svg import COLOURS

#: Colours are told apart without colour vision (Okabe and Ito 2008), lighter on dark pages.
STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1a1a1a; --faint: #666; --line: #ddd; --bar: #0072b2;
  --warn: #fff3cd; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #b87a00; --c5: #56b4e9;
  --c6: #777; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #e6e6e6; --faint: #a0a0a0; --line: #3a3d44; --bar: #4aa3df; --warn: #4a3f14;
    --c0: #4aa3df; --c1: #ff8a3d; --c2: #2fc99a; --c3: #e5a3c8; --c4: #e69f00; --c5: #8fd0f5; --c6: #aaa; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 1240px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { margin: .3rem 0; overflow-wrap: anywhere; }
.faint, figcaption, th { color: var(--faint); }
.tiles, .charts { display: grid; gap: 1rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin: 1rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.15rem; overflow-wrap: anywhere; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; font-variant-numeric: tabular-nums; min-width: 4.5rem; }
th { font-weight: normal; }
.texts td { white-space: normal; overflow-wrap: anywhere; min-width: 7.5rem; }
.texts td:first-child { white-space: nowrap; }
.texts th { white-space: normal; }
.warn { background: var(--warn); padding: .4rem .8rem; border-radius: 6px; margin: .4rem 0; }
.share { background: var(--bar); height: .7rem; border-radius: 2px; display: inline-block; margin-right: .4rem; }
.shares { --whole: 5rem; }
@media (min-width: 60rem) { .shares { --whole: 20rem; } }
figure { margin: 0; min-width: 0; }
svg { width: 100%; height: auto; display: block; max-width: 560px; }
svg text { fill: var(--faint); font-size: 11px; }
svg polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
svg .grid { stroke: var(--line); stroke-width: .7; }
svg .bar { fill: var(--bar); }
.legend { font-size: .85rem; color: var(--faint); }
.legend span { margin-right: 1rem; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: .8rem; height: .25rem; margin-right: .3rem; vertical-align: middle; }
""" + "".join(
    f"polyline.c{n} {{ stroke: var(--c{n}); }}\n"
    f"circle.c{n} {{ fill: var(--c{n}); }}\n"
    f"i.c{n} {{ background: var(--c{n}); }}\n"
    for n in range(COLOURS)
)


def page(title: str, body: Iterable[str]) -> str:
    """A whole document, which needs nothing beside it.

    Args:
        title: plain text.
        body: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The heading of the page, of plain text."""
    return f"<h1>{escape(text)}</h1>"


def section(title: str, *parts: str) -> str:
    """A heading and HTML below it; nothing where there is none."""
    inside = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def paragraph(text: str, kind: str = "") -> str:
    """Plain text, of a class of the style."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(rows: Iterable[Sequence[str]], headings: Sequence[str] = (), kind: str = "") -> str:
    """Plain text in cells, of a class of the style; nothing where there is no row."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    return _table(body, head, kind) if body else ""


def pairs(facts: Mapping[str, str]) -> str:
    """Names and plain texts."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>\n" for name, text in facts.items())
    return _table(body, "", "texts") if body else ""


def shares(splits: Mapping[str, Mapping[str, float]], names: Iterable[str]) -> str:
    """Shares of 0 to 1 as bars: a column for each split, a row for each name; nothing where there is no split."""
    if not splits:
        return ""
    rows = []
    for name in names:
        cells = [split.get(name, 0.0) for split in splits.values()]
        if any(cells):
            bars = "".join(
                f'<td><span class="share" style="width:calc({share:.3f} * var(--whole))"></span>{share:.1%}</td>'
                for share in cells
            )
            rows.append(f"<tr><th>{escape(name)}</th>{bars}</tr>\n")
    head = "<th></th>" + "".join(f"<th>{escape(role)}</th>" for role in splits)
    return _table("".join(rows), head, "shares")


def tiles(facts: Mapping[str, str]) -> str:
    """Names and plain texts, large."""
    inside = "".join(
        f'<div><span class="faint">{escape(name)}</span><b>{escape(text)}</b></div>' for name, text in facts.items()
    )
    return f'<div class="tiles">{inside}</div>'


def charts(figures: Iterable[str]) -> str:
    """Figures beside and below each other; nothing where there is none."""
    inside = "\n".join(figure for figure in figures if figure)
    return f'<div class="charts">\n{inside}\n</div>' if inside else ""


def folded(title: str, inside: str) -> str:
    """HTML that is shown when it is asked for; nothing where there is none."""
    return f"<details><summary>{escape(title)}</summary>\n{inside}\n</details>" if inside else ""


def _table(body: str, head: str, kind: str = "") -> str:
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    attribute = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{attribute}>{head}<tbody>\n{body}</tbody></table></div>'
