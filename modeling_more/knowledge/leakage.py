"""The leakage guard: a post must not be handed its own text as knowledge (METHOD, section 1)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

Entry = dict[str, Any]  # one entry of KNOWLEDGE_FEATURE
Search = Callable[[list[str], int], list[list[Entry]]]

WORDS = re.compile(r"\w+")
MIN_HELD_WORDS = 8


class Post:
    """A post prepared for comparison: case, white space and punctuation do not count."""

    def __init__(self, text: str) -> None:
        words = WORDS.findall(text.lower())
        self.words = f" {' '.join(words)} " if words else ""
        self.longest_first = sorted(set(words), key=len, reverse=True)
        self.may_be_held = max(len(words), len(text.split())) >= MIN_HELD_WORDS

    def leaks_into(self, entry: Entry) -> bool:
        """Whether the entry equals the post, or holds the whole post when that has 8 words or more."""
        text: str = entry["text"]
        title: str = entry["title"]
        lower = f"{title} {text}".lower()
        for word in self.longest_first:  # spares nearly every entry the regular expression
            if word not in lower:
                return False
        if not self.words:
            return False
        if f" {' '.join(WORDS.findall(text.lower()))} " == self.words:
            return True
        whole = f" {' '.join(WORDS.findall(lower))} "
        return whole == self.words or (self.may_be_held and self.words in whole)


def search_without_leaks(
    search: Search, queries: Sequence[str], posts: Sequence[str], top_k: int
) -> tuple[list[list[Entry]], list[int]]:
    """`search(queries, k)` with the entries dropped that hold their post; fetches on, so that no list is shortened.

    Returns:
        per query its at most `top_k` entries, and how many entries above the last of them were dropped.
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
