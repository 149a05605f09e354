"""Reader of CoNLL files: `word<TAB>label` lines, raw or as the authors' archives hold them with their knowledge."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .rows import Row, archive_entry, as_bio, check_tag
from .text_files import BLANK, RELATION_DATA, read_text, text_lines

END_OF_POST = "<EOS>"  # the authors' archives put it between a post and its knowledge
KNOWLEDGE_TAG = "X"
MARKERS = {"<E>", "</E>", "<O>", "</O>"}
TAG = r"O|[BIES]-\S+"  # what stands beside a word in BIO or BIOES


def _columns(path: Path, lines: list[tuple[int, str]]) -> Callable[[str], tuple[str, str] | None]:
    """How the words and labels of a file are told apart: by tabs if it has any, else by spaces (CoNLL-2003).

    Where every line has the same number of columns, more than two, the word is the first; otherwise it is all before
    the last separator.
    """
    words = [line for _, line in lines if line.strip(BLANK) and not _is_image_line(line)]
    separator = "\t" if any("\t" in line for line in words) else " "
    counts = {line.count(separator) for line in words}
    many = len(counts) == 1 and min(counts) > 1

    def split(line: str) -> tuple[str, str] | None:
        word, found, tag = line.rpartition(separator)
        if not found:
            return None
        return (line.split(separator, 1)[0] if many else word), tag

    return split


def _is_image_line(line: str) -> bool:
    return line.startswith("IMGID:") and "\t" not in line


def read_conll(
    path: str | Path,
    types: Sequence[str] | None = None,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
) -> list[Row]:
    """Read `word<TAB>label` lines with a blank line between posts; raw files and the authors' archives alike.

    An `IMGID:…` line opens a post and gives image_id and id. Words labelled X (after `<EOS>`) are the post's
    knowledge: one entry without title in `knowledge_column`, which every row has as soon as one has it.

    Args:
        path: the file; LF or CRLF, a last blank line is not needed.
        types: entity types that may occur; default: any.
        knowledge_column: "knowledge_text" or "knowledge_image", where words labelled X go.
        id_prefix: of the ids `<prefix>-<index>` of posts without an `IMGID:` line; default: the file's name.

    Raises:
        ValueError: empty file, a line without a label, an unknown label, relation data; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    lines = list(text_lines(read_text(path)))
    if next(line for _, line in lines if line.strip(BLANK)).startswith(("{'token'", '{"token"')):
        raise ValueError(f"{path}, line 1: {RELATION_DATA}.")
    split = _columns(path, lines)
    prefix = path.stem if id_prefix is None else id_prefix
    rows: list[Row] = []
    seen: dict[str, int] = {}
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
        seen[name] = seen.get(name, 0) + 1
        row: Row = {
            "id": name if seen[name] == 1 else f"{name}#{seen[name]}",
            "image_id": image_id,
            "tokens": tokens,
            "ner_tags": as_bio(tags),
        }
        if knowledge is not None:
            row[knowledge_column] = [archive_entry(" ".join(knowledge))] if knowledge else []
        rows.append(row)
        tokens, tags, knowledge, image_id = [], [], None, None

    number = 0
    for number, line in lines:
        if not line.strip(BLANK) and "\t" not in line:
            if tokens or knowledge is not None:
                close()
            continue
        if _is_image_line(line):
            close()
            image_id, image_line = line.removeprefix("IMGID:").strip(BLANK) or None, number
            continue
        where = f"{path}, line {number}"
        parts = split(line)
        if parts is None or not parts[1].strip(BLANK):
            raise ValueError(f"{where}: no label; a line is a word, a tab and a label.")
        word, tag = parts
        if not word:
            raise ValueError(f"{where}: no word before the label {tag!r}; a line is a word, a tab and a label.")
        if word.startswith("-DOCSTART-"):
            continue
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
        check_tag(tag, where, types)
        tokens.append(word)
        tags.append(tag)
    close()
    if not rows:
        raise ValueError(f"{path}: no posts in the file; a post is lines of a word, a tab and a label.")
    if any(knowledge_column in row for row in rows):
        for row in rows:
            row.setdefault(knowledge_column, [])
    return rows


def looks_like_conll(text: str) -> bool:
    """True when the first line that is no image line is a word, a tab and a BIO label."""
    line = next((line for _, line in text_lines(text) if line and not _is_image_line(line)), "")
    return re.fullmatch(r".+\t(O|X|[BIES]-[^\t ]+)", line) is not None
