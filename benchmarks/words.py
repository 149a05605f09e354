"""How far the word splitter gives back the words of the real sets from running text.

    python benchmarks/words.py --data_dir FOLDER

FOLDER holds twitter2015 and twitter2017 as raw files. The sets do not hold the raw tweets, so their text is written
again from the words in two ways: joined by spaces (a splitter can only split too much), and as people write, without
the spaces before closing and after opening punctuation (it can also split too little).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from _common import write_result
from modeling_more.data.conll import read_conll
from modeling_more.tagging import tags_to_spans
from modeling_more.words import SPLITTERS, align_spans, split_words

CLOSING = set(".,!?;:)]}%…”’'")  # no space before
OPENING = set("([{#@$“‘")  # no space after
CONTRACTED = {"s", "t", "m", "d", "re", "ve", "ll"}  # no space between an apostrophe and these


def running_text(words: Sequence[str], glue: bool) -> tuple[str, list[tuple[int, int]]]:
    """The words as one text, and the offsets of each word in it."""
    text, offsets = "", []
    for number, word in enumerate(words):
        before = words[number - 1] if number else ""
        joined = word in CLOSING or before in OPENING or (before in ("'", "’") and word.lower() in CONTRACTED)
        if number and not (glue and joined):
            text += " "
        offsets.append((len(text), len(text) + len(word)))
        text += word
    return text, offsets


def measure(files: Sequence[Path], splitter: str) -> dict[str, int | float]:
    """Shares of the words found with exactly their offsets, and entities whose borders fall inside a found word."""
    kept = {False: 0, True: 0}
    total = entities = crossing = 0
    for file in files:
        for row in read_conll(file):
            total += len(row["tokens"])
            for glue in kept:
                text, offsets = running_text(row["tokens"], glue)
                found = split_words(text, splitter)
                kept[glue] += len(set(offsets) & {(word.start, word.end) for word in found})
            spans = [(offsets[s.start][0], offsets[s.end - 1][1], s.type) for s in tags_to_spans(row["ner_tags"])]
            entities += len(spans)
            crossing += align_spans(found, spans).crossing
    return {
        "words": total,
        "kept, joined by spaces (%)": round(100 * kept[False] / total, 2),
        "kept, as written (%)": round(100 * kept[True] / total, 2),
        "entities": entities,
        "entities cut, as written": crossing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with twitter2015 and twitter2017")
    data_dir = parser.parse_args().data_dir
    rows: list[dict[str, object]] = []
    for name in ("twitter2015", "twitter2017"):
        files = [data_dir / name / f"{split}.txt" for split in ("train", "valid", "test")]
        rows += [{"set": name, "style": splitter, **measure(files, splitter)} for splitter in SPLITTERS]
    for row in rows:
        print(row)
    write_result(
        "words",
        "Words of the real sets given back by the splitter",
        rows,
        note=(
            "Running text is written from the words, as the sets do not hold the raw posts. Kept: found with exactly "
            "its offsets. Cut: an entity begins or ends inside a found word, and is widened to it."
        ),
        command="python benchmarks/words.py --data_dir ../shared/data",
    )


if __name__ == "__main__":
    main()
