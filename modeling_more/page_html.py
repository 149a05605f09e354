"""Show what a pipeline found as HTML for the page: opinions, weights, evidence; what others wrote is text in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote, urlsplit

Entry = Mapping[str, Any]
Result = Mapping[str, Any]

NO_RELATION = "None"
_WIKI = re.compile(r"([a-z]{2,3}(?:_[a-z]+){0,3}|simple)wiki:(.+)", re.ASCII)
_MOST_LINK = 2000  # characters of an address

STYLE = """
table.more-table { width: 100%; border-collapse: collapse; font-size: .95rem }
table.more-table, table.more-table :is(thead, tbody, tr) { border: 0 !important }
table.more-table :is(th, td) { text-align: left; padding: .4rem .8rem .4rem 0 !important; vertical-align: top;
    overflow-wrap: anywhere; border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important }
table.more-table th, .more-small { color: var(--body-text-color) !important; opacity: .75; font-weight: 600 }
.more-small { font-size: .85rem; font-weight: 400 }
.more-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .45rem .8rem;
    align-items: center }
.more-bar { height: .7rem; border-radius: .35rem; background: var(--border-color-primary); overflow: hidden }
.more-bar > div { height: 100%; border-radius: .35rem; background: #2f6db3 }
.more-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 0 1.2rem }
.more-cards h4 { margin: .2rem 0 .5rem }
.more-card { display: flex; gap: .8rem; padding: .7rem; margin-bottom: .6rem; border-radius: .5rem;
    border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary) }
.more-card img { width: 5.5rem; height: 5.5rem; object-fit: contain; flex: none; border-radius: .3rem; margin: 0;
    background: var(--background-fill-primary) }
.more-card > div { min-width: 0; overflow-wrap: anywhere }
@media (max-width: 480px) { table.more-table { font-size: .85rem }
    table.more-table :is(th, td) { padding-right: .45rem !important } }
.more-card p { margin: .2rem 0 0 } .more-card a { text-decoration: underline }
"""


def link_of(entry: Entry) -> str | None:
    """Return the address of an entry's article where its source tells it, else None.

    A source is an address itself, or what `dataset_scripts/wikipedia_*.py` write: the name of a wiki with the number
    of an article there or, in a corpus of images, its title.
    """
    source = str(entry.get("source") or "").strip()
    if not source or len(source) > _MOST_LINK or not source.isprintable():
        return None
    if source.startswith(("https://", "http://")):
        try:
            host = urlsplit(source).hostname
        except ValueError:
            return None
        return source if host and not re.search(r"[\s<>\"'\\]", source) else None
    if (named := _WIKI.fullmatch(source)) is None:
        return None
    home = f"https://{named[1].replace('_', '-')}.wikipedia.org"
    if "image" in entry:
        return f"{home}/wiki/{quote(named[2].replace(' ', '_'))}"
    return f"{home}/?curid={named[2]}" if re.fullmatch(r"\d{1,12}", named[2], re.ASCII) else None


def percent(number: float) -> str:
    """Return a probability as whole percents; one that is not certain never reads as 0 or 100."""
    rounded = round(100 * number)
    if rounded == 100 and number < 1:
        return ">\u00a099\u00a0%"
    return "<\u00a01\u00a0%" if rounded == 0 and number > 0 else f"{rounded}\u00a0%"


def entities_table(result: Result) -> str:
    """Return a table of the entities with their probabilities and, of a mixture, what each expert says of each."""
    experts: Mapping[str, Sequence[Entry]] = result.get("experts") or {}
    columns = {"mixture" if experts else "type": result["entities"], **experts}
    spans: dict[tuple[int, int], str] = {}
    for found in columns.values():
        spans |= {(one["start"], one["end"]): one["text"] for one in found}
    if not spans:
        return _small("No entity was found.")
    rows = []
    for span in sorted(spans):
        cells = [_opinion(found, span) for found in columns.values()]
        rows.append(f"<tr><td>{escape(spans[span])}</td>{''.join(cells)}</tr>")
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("entity", *columns))
    return f'<table class="more-table"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _opinion(found: Sequence[Entry], span: tuple[int, int]) -> str:
    own = [one for one in found if (one["start"], one["end"]) == span]
    told = f"<b>{escape(own[0]['type'])}</b> {escape(percent(own[0]['score']))}" if own else "–"
    return f"<td>{told}</td>"


def relation_table(relation: Result) -> str:
    """Return the relation of a pair with its probability and, of a mixture, what each expert says."""
    told = _relation_name(relation["relation"])
    pair = f"{escape(relation['head_text'])} → {escape(relation['tail_text'])}"
    experts = [(name, _relation_name(said)) for name, said in (relation.get("experts") or {}).items()]
    rows = [(pair, f"<b>{told}</b> {escape(percent(relation['score']))}")]
    rows += [(f"{escape(name)} says", said) for name, said in experts]
    body = "".join(f"<tr><td>{name}</td><td>{said}</td></tr>" for name, said in rows)
    return f'<table class="more-table"><tbody>{body}</tbody></table>'


def _relation_name(relation: str) -> str:
    return "no relation" if relation == NO_RELATION else escape(relation)


def weights_bars(weights: Mapping[str, float] | None) -> str:
    """Return the weights of a mixture's experts as bars; nothing for a model that is no mixture."""
    if not weights:
        return ""
    rows = "".join(
        f'<span>{escape(name)}</span><div class="more-bar"><div style="width:{100 * weight:.1f}%"></div></div>'
        f"<span>{escape(percent(weight))}</span>"
        for name, weight in weights.items()
    )
    return f'<h3>Weights of the experts</h3><div class="more-bars">{rows}</div>'


def evidence_cards(
    knowledge: Mapping[str, Sequence[Entry]], notes: Mapping[str, str], picture_of: Callable[[str, int], str | None]
) -> str:
    """Return what each expert read, side by side.

    Args:
        knowledge: the entries by the expert's name.
        notes: what is said of an expert that read nothing.
        picture_of: the address of an entry's picture, by expert and row of the corpus's images.
    """
    parts = []
    for name, entries in knowledge.items():
        cards = [_card(entry, _picture(entry, name, picture_of)) for entry in entries]
        told = "".join(cards) or _small(notes.get(name, "Nothing was found: the post was read alone."))
        heading = f"<h4>{escape(name)}</h4>" if len(knowledge) > 1 else ""
        parts.append(f"<section>{heading}{told}</section>")
    return f'<div class="more-cards">{"".join(parts)}</div>'


def _picture(entry: Entry, name: str, picture_of: Callable[[str, int], str | None]) -> str:
    row = entry.get("image")
    address = picture_of(name, row) if isinstance(row, int) else None
    return f'<img src="{escape(address)}" alt="{escape(entry.get("title") or "")}">' if address else ""


def _card(entry: Entry, picture: str) -> str:
    title, link = escape(entry.get("title") or "(no title)"), link_of(entry)
    if link:
        title = f'<a href="{escape(link)}" target="_blank" rel="noopener noreferrer nofollow">{title}</a>'
    score = entry.get("score")
    said = [escape(str(entry.get("source") or ""))] + ([f"score {score:.2f}"] if score is not None else [])
    about = " · ".join(filter(None, said))
    return (
        f'<div class="more-card">{picture}<div><b>{title}</b><p>{escape(entry["sentence"])}</p>'
        f'<p class="more-small">{about}</p></div></div>'
    )


def _small(text: str) -> str:
    return f'<p class="more-small">{escape(text)}</p>'
