"""Guard against leakage: a post must not get its own text as knowledge (METHOD, section 1)."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .search_words import count_unspaced, normal_form, split_letters

Entry = dict[str, Any]  # one entry of KNOWLEDGE_FEATURE
Search = Callable[[list[str], int], list[list[Entry]]]

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
    kept: list[list[Entry]] = [[] for _ in queries]
    dropped = [0] * len(queries)
    pending, fetch = list(range(len(queries))), top_k
    while pending:
        again = []
        for row, entries in zip(pending, search([queries[row] for row in pending], fetch), strict=True):
            kept[row], dropped[row] = [], 0
            for entry in entries:
                if len(kept[row]) == top_k:
                    break
                if prepared[row].leaks_into(entry):
                    dropped[row] += 1
                else:
                    kept[row].append(entry)
            if len(kept[row]) < top_k and len(entries) == fetch:  # a full list: the corpus may hold more
                again.append(row)
        pending, fetch = again, fetch * 4
    return kept, dropped
