"""Guard against leakage: a post must not get its own text as knowledge (METHOD, section 1)."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from .search_words import count_unspaced, normal_form, split_letters

Entry = dict[str, Any]  # one entry of KNOWLEDGE_FEATURE
Search = Callable[[list[str], int], list[list[Entry]]]
# numbers of queries and a limit of hits -> the entries of each, and whether there may be more
Ask = Callable[[list[int], int], Iterable[tuple[list[Entry], bool]]]

MIN_HELD_WORDS = 8  # two letters of a script without blanks count as a word

_compared = lru_cache(maxsize=2048)(normal_form)  # the same articles are found again and again


class Post:
    """A post prepared for comparison: case, spelling (`normal_form`), white space and punctuation do not count."""

    def __init__(self, text: str) -> None:
        words = split_letters(text)
        self.words = f" {' '.join(words)} " if words else ""
        self.longest_first = sorted(set(words), key=len, reverse=True)
        halved = count_unspaced(words) // 2  # a name in Chinese alone may have eight letters
        self.may_be_held = max(len(words), len(text.split())) - halved >= MIN_HELD_WORDS

    def leaks_into(self, entry: Entry) -> bool:
        """Return whether the entry equals the post, or holds the whole post when that has 8 words or more."""
        text: str = entry["text"]
        title: str = entry["title"]
        both = _compared(f"{title} {text}")
        for word in self.longest_first:  # spares nearly every entry the regular expression
            if word not in both:
                return False
        if not self.words:
            return False
        if f" {' '.join(split_letters(text))} " == self.words:
            return True
        whole = f" {' '.join(split_letters(both))} "
        return whole == self.words or (self.may_be_held and self.words in whole)


def search_without_leaks(
    search: Search, queries: Sequence[str], posts: Sequence[str], top_k: int
) -> tuple[list[list[Entry]], list[int]]:
    """Search without the entries that hold their post; more are fetched, so that no list is shortened.

    Returns:
        at most `top_k` entries of each query, and how many entries above the last of them were dropped.
    """
    if len(queries) != len(posts):
        raise ValueError(f"{len(queries)} queries for {len(posts)} posts: give one query per post.")
    prepared = [Post(post) for post in posts]
    dropped = [0] * len(queries)

    def ask(rows: list[int], fetch: int) -> Iterator[tuple[list[Entry], bool]]:
        for row, entries in zip(rows, search([queries[row] for row in rows], fetch), strict=True):
            kept: list[Entry] = []
            dropped[row] = 0
            for entry in entries:
                if len(kept) == top_k:
                    break
                if prepared[row].leaks_into(entry):
                    dropped[row] += 1
                else:
                    kept.append(entry)
            yield kept, len(entries) == fetch  # a full list: the corpus may hold more

    return fetch_on(ask, len(queries), top_k, top_k), dropped


def fetch_on(
    ask: Ask, queries: int, top_k: int, fetch: int, most: int = sys.maxsize, asked: list[int] | None = None
) -> list[list[Entry]]:
    """Return the entries of each query; where they are fewer than `top_k`, more hits are fetched.

    Args:
        fetch: limit of hits at first; at last it is `most`.
        asked: numbers of the queries that are asked; default: all, others find nothing.
    """
    results: list[list[Entry]] = [[] for _ in range(queries)]
    pending, fetch = list(range(queries)) if asked is None else asked, min(fetch, most)
    while pending:
        again = []
        for row, (entries, more) in zip(pending, ask(pending, fetch), strict=True):
            results[row] = entries
            if more and len(entries) < top_k and fetch < most:
                again.append(row)
        pending, fetch = again, min(4 * fetch, most)
    return results
