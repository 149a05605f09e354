"""Cut posts that are longer than a row in windows: all of their words, or those around a pair of entities."""

from __future__ import annotations

from bisect import bisect, bisect_left
from collections.abc import Sequence


def cut_in_windows(lengths: Sequence[int], room: int) -> list[tuple[int, int, int, int]]:
    """Cut words of these lengths into windows of at most `room` sub-tokens that overlap by about a quarter.

    Returns (first, last, kept_from, kept_to) per window, ends exclusive: the words it holds, and those read from it,
    as each word belongs to the window in which it stands farther from a border.
    """
    spans = []
    first = 0
    while True:
        last, used = first, 0
        while last < len(lengths) and used + lengths[last] <= room:
            used += lengths[last]
            last += 1
        spans.append((first, last))
        if last == len(lengths):
            break
        overlap, start = 0, last
        # the next word must fit beside the overlap, or the windows would not move on
        while start - 1 > first and overlap + lengths[start - 1] <= min(room // 4, room - lengths[last]):
            start -= 1
            overlap += lengths[start]
        first = start
    windows, kept_from = [], 0
    for index, (first, last) in enumerate(spans):
        kept_to = last if index + 1 == len(spans) else (spans[index + 1][0] + last + 1) // 2
        windows.append((first, last, kept_from, kept_to))
        kept_from = kept_to
    return windows


def window_around(sums: Sequence[int], first: int, last: int, room: int) -> tuple[int, int]:
    """Return the words, end exclusive, of the window of `room` sub-tokens that has words `first` to `last` amid it.

    Args:
        sums: number of sub-tokens before each word, and of all.
        room: where the words themselves have more, the window begins with them.
    """
    if sums[last] - sums[first] > room:
        return first, bisect(sums, sums[first] + room) - 1
    spare = room - (sums[last] - sums[first])
    right = min(max(spare - spare // 2, spare - sums[first]), sums[-1] - sums[last])
    left = min(spare - right, sums[first])
    return bisect_left(sums, sums[first] - left), bisect(sums, sums[last] + right) - 1
