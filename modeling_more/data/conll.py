"""Read CoNLL files: `word<TAB>label` lines, raw or with knowledge as in the authors' archives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..posts import Row
from .columns import column_lines, looks_like_conll
from .rows import archive_entry, as_bio, check_tag
from .text_files import RELATION_DATA, read_text

__all__ = ["looks_like_conll", "read_conll"]

END_OF_POST = "<EOS>"  # the authors' archives put it between a post and its knowledge
KNOWLEDGE_TAG = "X"
MARKERS = {"<E>", "</E>", "<O>", "</O>"}
TAG = r"O|[BIES]-\S+"  # what stands beside a word in BIO or BIOES


def read_conll(
    path: str | Path,
    types: Sequence[str] | None = None,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
    columns: Sequence[int] | None = None,
    labelled: bool = True,
) -> list[Row]:
    """Read lines of a word and its label, with a blank line between posts; raw files and the authors' archives alike.

    Tabs part the columns of a line, or where it has none runs of spaces. Words are the first column, or the second
    behind an index, and labels the last. `-DOCSTART-` lines end a post, comment lines (`# id …`) do not count.

    An `IMGID:…` line opens a post and gives image_id and id. Words labelled X (after `<EOS>`) are the post's
    knowledge: one entry without title in `knowledge_column`, which every row has as soon as one has it.

    Args:
        types: entity types that may occur; default: any.
        knowledge_column: "knowledge_text" or "knowledge_image", where words labelled X go.
        id_prefix: prefix of the ids `<prefix>-<index>` of posts without an `IMGID:` line; default: the file's name.
        columns: numbers of the word's and of the label's column, from 1, where they are others.
        labelled: whether there are labels; if not, the tags are None.

    Raises:
        ValueError: for an empty file, a line without a label or with another number of columns than the others, an
            unknown label, or relation data.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip().startswith(("{'token'", '{"token"')):
        raise ValueError(f"{path}, line 1: {RELATION_DATA}.")
    lines, width = column_lines(path, text, columns, labelled)
    prefix = path.stem if id_prefix is None else id_prefix
    rows: list[Row] = []
    seen: Counter[str] = Counter()
    tokens: list[str] = []
    tags: list[str] = []
    knowledge: list[str] | None = None  # None until the post's first X
    image_id: str | None = None
    image_line = 0

    def close() -> None:
        nonlocal tokens, tags, knowledge, image_id
        if not tokens:
            if knowledge is not None:
                raise ValueError(f"{path}, line {number}: knowledge (label X) without a post before it.")
            if image_id is not None:
                raise ValueError(f"{path}, line {image_line}: no words follow the image {image_id!r}.")
            return
        name = image_id or f"{prefix}-{len(rows)}"
        seen[name] += 1
        row: Row = {
            "id": name if seen[name] == 1 else f"{name}#{seen[name]}",
            "image_id": image_id,
            "tokens": tokens,
            "ner_tags": as_bio(tags) if labelled else None,
        }
        if knowledge is not None:
            row[knowledge_column] = [archive_entry(" ".join(knowledge))] if knowledge else []
        rows.append(row)
        tokens, tags, knowledge, image_id = [], [], None, None

    number = 0
    for number, kind, word, tag in lines:
        if kind == "blank":
            if tokens or knowledge is not None:
                close()
            continue
        if kind == "image":
            close()
            image_id, image_line = word or None, number
            continue
        if not labelled:
            tokens.append(word)
            continue
        where = f"{path}, line {number}"
        if tag == KNOWLEDGE_TAG:
            knowledge = knowledge or []
            if word != END_OF_POST:
                knowledge.append(word)
            continue
        if knowledge is not None:
            raise ValueError(
                f"{where}: a word labelled {tag!r} after the post's knowledge (label X); a blank line ends it."
            )
        if word in MARKERS and not re.fullmatch(TAG, tag):
            raise ValueError(f"{where}: {RELATION_DATA}.")
        try:
            check_tag(tag, where, types)
        except ValueError as error:
            hint = " --columns says which columns are words and labels." if columns is None and width > 2 else ""
            raise ValueError(f"{error}{hint}") from None
        tokens.append(word)
        tags.append(tag)
    close()
    if not rows:
        raise ValueError(f"{path}: no posts in the file; a post is lines of a word, a tab and a label.")
    if any(knowledge_column in row for row in rows):
        for row in rows:
            row.setdefault(knowledge_column, [])
    return rows
