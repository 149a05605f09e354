"""Readers of labelled posts: CoNLL (raw and the authors' archives), JSONL, WikiDiverse; and of posts without labels.

A row is {"id", "image_id", "tokens", "ner_tags"} with BIO tags as strings, and "knowledge_text" or "knowledge_image"
where the file holds knowledge. Bad input raises ValueError (or FileNotFoundError) that names file and line.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .tagging import Span, spans_to_bio, split_tag, tags_to_spans
from .words import DEFAULT_STYLE, align_spans, split_words

logger = logging.getLogger(__name__)

Row = dict[str, Any]

KNOWLEDGE_COLUMNS = ("knowledge_text", "knowledge_image")
RELATION_DATA = "this is relation data, use run_re.py"

END_OF_POST = "<EOS>"  # the authors' archives put it between a post and its knowledge
KNOWLEDGE_TAG = "X"
MARKERS = {"<E>", "</E>", "<O>", "</O>"}
TAG = r"O|[BIES]-\S+"  # what stands beside a word in BIO or BIOES
BLANK = " \t"  # never str.strip(): a no-break space is a word of Twitter-2015


def read_text(path: str | Path) -> str:
    """The file as text; ValueError when it is empty or not UTF-8, FileNotFoundError when it is not there."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a file.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file.")
    data = path.read_bytes()
    if not data.strip(b" \t\r\n"):
        raise ValueError(f"{path}: the file is empty; it should hold at least one post.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from None


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """Line number and line; splits at LF or CRLF only, as str.splitlines() would also split inside words."""
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def _check_tag(tag: str, where: str, types: Sequence[str] | None) -> None:
    try:
        _, type_ = split_tag(tag)
    except ValueError:
        if tag.startswith("/"):
            raise ValueError(f"{where}: {RELATION_DATA}.") from None
        expected = f"B- or I- and one of {', '.join(types)}" if types else "B- or I- and a type, like B-PER"
        raise ValueError(f"{where}: unknown label {tag!r}; a label is O, or {expected}.") from None
    if types is not None and type_ and type_ not in types:
        raise ValueError(f"{where}: unknown label {tag!r}; the types are {', '.join(types)}.")


def _as_bio(tags: list[str]) -> list[str]:
    """BIO stays as it stands (stray I- too); BIOES becomes BIO."""
    if any(tag[0] in "ES" for tag in tags):
        return spans_to_bio(tags_to_spans(tags), len(tags))
    return tags


def archive_entry(text: str) -> Row:
    """Knowledge of the authors' archives: one entry a post, without title or rank."""
    return {"title": "", "text": text, "score": 0.0, "source": "archive", "match_start": 0, "match_end": 0}


# --- CoNLL


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
            "ner_tags": _as_bio(tags),
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
        _check_tag(tag, where, types)
        tokens.append(word)
        tags.append(tag)
    close()
    if not rows:
        raise ValueError(f"{path}: no posts in the file; a post is lines of a word, a tab and a label.")
    if any(knowledge_column in row for row in rows):
        for row in rows:
            row.setdefault(knowledge_column, [])
    return rows


# --- JSONL


def json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of a JSONL file, or of each item of a file that holds one JSON list."""
    text = read_text(path)
    if text.lstrip()[0] == "[":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            if "\n[" not in text.strip():  # else one list a line, as some copies of WikiDiverse are stored
                raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
        else:
            if not items:
                raise ValueError(f"{path}: the list is empty; it should hold at least one post.")
            # one WikiDiverse row on a single line is a list that starts with its sentence
            single = isinstance(items[0], str)
            for number, item in enumerate([items] if single else items, start=1):
                yield f"{path}, item {number}", item
            return
    for number, line in text_lines(text):
        if not line.strip(BLANK):
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if line.startswith("{'") and "'relation'" in line:
                raise ValueError(f"{where}: {RELATION_DATA}.") from None
            raise ValueError(f"{where}: not JSON ({error.msg} at character {error.pos + 1}).") from None
        yield where, value


def _check_object(item: Any, where: str, needed: str) -> Row:
    if not isinstance(item, dict):
        raise ValueError(f"{where}: a {type(item).__name__}; a row is an object with {needed}.")
    if "relation" in item and {"h", "t", "head", "tail"} & item.keys():
        raise ValueError(f"{where}: {RELATION_DATA}.")
    return item


def check_words(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise ValueError(f'{where}: "tokens" should be a list of words, none of them empty.')
    if not value:
        raise ValueError(f'{where}: "tokens" is empty; a post has at least one word.')
    return value


def check_string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{where}: "text" should be a string.')
    return value


def read_knowledge(item: Row, where: str) -> Row:
    """The row's knowledge columns, every entry with all the fields of the stored form."""
    found: Row = {}
    for column in KNOWLEDGE_COLUMNS:
        if item.get(column) is None:
            continue
        entries = item[column]
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("text"), str) for e in entries
        ):
            raise ValueError(f'{where}: "{column}" should be a ranked list of objects {{"title", "text", "score"}}.')
        found[column] = [
            {
                "title": str(entry.get("title") or ""),
                "text": entry["text"],
                "score": float(entry.get("score") or 0.0),
                "source": str(entry.get("source") or ""),
                "match_start": int(entry.get("match_start") or 0),
                "match_end": int(entry.get("match_end") or 0),
            }
            for entry in entries
        ]
    return found


def read_image_id(item: Row) -> str | None:
    for key in ("image_id", "image"):
        if isinstance(item.get(key), str | int):
            return str(item[key])
    return None


def _character_spans(item: Row, text: str, where: str, types: Sequence[str] | None) -> list[tuple[int, int, str]]:
    spans = []
    for span in item["spans"] if isinstance(item["spans"], list) else [item["spans"]]:
        if isinstance(span, dict):
            span = [span.get("start"), span.get("end"), span.get("type", span.get("label"))]
        if not (isinstance(span, list) and len(span) == 3 and are_numbers(span[:2]) and isinstance(span[2], str)):
            raise ValueError(
                f'{where}: a span should be [start, end, type] or {{"start", "end", "type"}}, in characters.'
            )
        start, end, type_ = span
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{where}: span [{start}, {end}] is empty or outside the text of {len(text)} characters.")
        _check_tag(f"B-{type_}", where, types)
        spans.append((start, end, type_))
    return spans


def are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


class SpanCounts:
    """Mentions that the word splitter could not follow; reported once a file."""

    def __init__(self) -> None:
        self.mentions = self.crossing = self.dropped = self.differing = 0

    def align(self, words: Sequence[tuple[str, int, int]], spans: Sequence[tuple[int, int, str]]) -> list[Span]:
        aligned = align_spans(words, spans)
        self.mentions += len(spans)
        self.crossing += aligned.crossing
        self.dropped += aligned.dropped
        return aligned.spans

    def tags(self, text: str, spans: Sequence[tuple[int, int, str]], style: str) -> tuple[list[str], list[str]]:
        words = split_words(text, style)
        return [word.word for word in words], spans_to_bio(self.align(words, spans), len(words))

    def report(self, path: Path) -> None:
        for count, what in (
            (self.crossing, "begin or end inside a word and were widened to it"),
            (self.dropped, "overlap a longer one or hold no word and were dropped"),
            (self.differing, "are spelt otherwise than the text at their offsets, which were believed"),
        ):
            if count:
                logger.warning("%s: %d of %d mentions %s.", path, count, self.mentions, what)


def read_jsonl(
    path: str | Path,
    types: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    id_prefix: str | None = None,
) -> list[Row]:
    """Read one JSON object a line: "tokens" with "ner_tags" (or "tags"), or "text" with "spans".

    Spans are `[start, end, type]` or {"start", "end", "type" or "label"} in characters, end exclusive; one that begins
    or ends inside a word is widened to the word, and counted in a warning. Optional: "id", "image_id" (or "image"),
    "knowledge_text", "knowledge_image" (ranked lists of {"title", "text", "score"}).

    Args:
        path: the file; one JSON list of such objects does as well.
        types: entity types that may occur; default: any.
        style: how "text" is split into words, see `words.split_words`.
        id_prefix: of the ids `<prefix>-<index>` of rows without one; default: the file's name.

    Raises:
        ValueError: a line that is not JSON, a missing field, an unknown label, not one label for each word, relation
            data; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix
    counts = SpanCounts()
    rows: list[Row] = []
    for where, value in json_items(path):
        item = _check_object(value, where, '"tokens" and "ner_tags", or "text" and "spans"')
        tags_key = "ner_tags" if "ner_tags" in item else "tags"
        if "tokens" in item and tags_key in item:
            tokens, tags = check_words(item["tokens"], where), item[tags_key]
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise ValueError(f'{where}: "{tags_key}" should be a list of names such as "O" and "B-PER".')
            if len(tags) != len(tokens):
                raise ValueError(
                    f"{where}: {len(tokens)} tokens but {len(tags)} labels; give one label for each token."
                )
            for tag in tags:
                _check_tag(tag, where, types)
            tags = _as_bio(tags)
        elif "text" in item and "spans" in item:
            text = check_string(item["text"], where)
            tokens, tags = counts.tags(text, _character_spans(item, text, where, types), style)
            if not tokens:
                raise ValueError(f'{where}: "text" holds no word.')
        else:
            missing = '"ner_tags"' if "tokens" in item else '"spans"' if "text" in item else '"tokens"'
            raise ValueError(f'{where}: no {missing}; a row has "tokens" and "ner_tags", or "text" and "spans".')
        name = item.get("id")
        rows.append(
            {
                "id": f"{prefix}-{len(rows)}" if name is None else str(name),
                "image_id": read_image_id(item),
                "tokens": tokens,
                "ner_tags": tags,
                **read_knowledge(item, where),
            }
        )
    counts.report(path)
    for column in KNOWLEDGE_COLUMNS:
        if any(column in row for row in rows):
            for row in rows:
                row.setdefault(column, [])
    return rows


# --- WikiDiverse


def wikidiverse_image(url: str) -> str:
    """File name of a WikiDiverse image: md5 of the URL's last part and its suffix, .svg as .png."""
    name = url.split("/")[-1]
    suffix = Path(name).suffix
    return hashlib.md5(name.encode()).hexdigest() + {".svg": ".png", ".SVG": ".png"}.get(suffix, suffix)


def read_wikidiverse(
    path: str | Path,
    types: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    id_prefix: str | None = None,
) -> list[Row]:
    """Read WikiDiverse: JSON rows [sentence, image_url, topic, [[mention, type, start, end, entity_url], …]].

    Offsets are characters, end exclusive. Mentions that cross word borders are widened, and counted in a warning.

    Raises:
        ValueError: a row of another form, offsets outside the sentence; names file and row.
    """
    path = Path(path)
    prefix = path.stem if id_prefix is None else id_prefix
    counts = SpanCounts()
    rows: list[Row] = []
    for where, item in json_items(path):
        if not (isinstance(item, list) and len(item) >= 4 and isinstance(item[0], str) and isinstance(item[3], list)):
            raise ValueError(
                f"{where}: a row should be [sentence, image_url, topic, [[mention, type, start, end, url], …]]."
            )
        text, url, mentions = item[0], item[1], item[3]
        for mention in mentions:
            if not isinstance(mention, list) or len(mention) < 4:
                raise ValueError(f"{where}: a mention should be [mention, type, start, end, entity_url].")
        spans = _character_spans({"spans": [[m[2], m[3], m[1]] for m in mentions]}, text, where, types)
        counts.differing += sum(text[start:end] != m[0] for (start, end, _), m in zip(spans, mentions, strict=True))
        tokens, tags = counts.tags(text, spans, style)
        if not tokens:
            raise ValueError(f"{where}: the sentence holds no word.")
        rows.append(
            {
                "id": f"{prefix}-{len(rows)}",
                "image_id": wikidiverse_image(url) if isinstance(url, str) and url else None,
                "tokens": tokens,
                "ner_tags": tags,
            }
        )
    counts.report(path)
    return rows


# --- any of them


def read_labelled(
    path: str | Path,
    types: Sequence[str] | None = None,
    style: str = DEFAULT_STYLE,
    knowledge_column: str = "knowledge_text",
    id_prefix: str | None = None,
) -> list[Row]:
    """Read a file of labelled posts in any of the formats above, told apart by the first character of its content."""
    path = Path(path)
    text = read_text(path)
    if not _looks_like_json(path, text):
        return read_conll(path, types, knowledge_column, id_prefix)
    if re.match(r'\s*\[\s*\[|\s*\["', text):
        return read_wikidiverse(path, types, style, id_prefix)
    return read_jsonl(path, types, style, id_prefix)


def _looks_like_json(path: Path, text: str) -> bool:
    if path.suffix in (".json", ".jsonl", ".conll"):
        return path.suffix != ".conll"
    return re.match(r"""\s*(\{\s*["']|\[\s*[\[{"])""", text) is not None and not _looks_like_conll(text)


def read_posts(path: str | Path, style: str = DEFAULT_STYLE, knowledge_column: str = "knowledge_text") -> list[Row]:
    """Read posts without labels, to be tagged: JSONL with "text" or "tokens", CoNLL, or text with one post a line.

    Rows are {"id", "image_id", "tokens", "text", "offsets"} and the knowledge columns that the file has; offsets are
    [start, end] of each word in text. Posts given as words get the words joined by spaces as text. Labels are not
    read.

    Args:
        style: how "text" is split into words.
        knowledge_column: where the knowledge of an archive (label X) goes.

    Raises:
        ValueError: empty file, a row without words; names file and line.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    content = read_text(path)
    rows: list[Row] = []
    if _looks_like_json(path, content):
        for where, value in json_items(path):
            item = _check_object(value, where, '"text" or "tokens"')
            if "tokens" in item:
                row = joined_words(check_words(item["tokens"], where))
            elif "text" in item:
                row = _with_words(check_string(item["text"], where), style, where)
            else:
                raise ValueError(f'{where}: no "text"; a post has "text" or "tokens".')
            name = item.get("id")
            row = {
                "id": f"{path.stem}-{len(rows)}" if name is None else str(name),
                "image_id": read_image_id(item),
                **row,
            }
            rows.append({**row, **read_knowledge(item, where)})
        return rows
    if path.suffix == ".conll" or _looks_like_conll(content):
        for post in read_conll(path, knowledge_column=knowledge_column):
            knowledge = {column: post[column] for column in KNOWLEDGE_COLUMNS if column in post}
            row = {"id": post["id"], "image_id": post["image_id"], **joined_words(post["tokens"]), **knowledge}
            rows.append(row)
        return rows
    for number, line in text_lines(content):
        if line.strip(BLANK):
            post = _with_words(line, style, f"{path}, line {number}")
            rows.append({"id": f"{path.stem}-{len(rows)}", "image_id": None, **post})
    return rows


def _looks_like_conll(text: str) -> bool:
    """True when the first line that is no image line is a word, a tab and a BIO label."""
    line = next((line for _, line in text_lines(text) if line and not _is_image_line(line)), "")
    return re.fullmatch(r".+\t(O|X|[BIES]-[^\t ]+)", line) is not None


def joined_words(tokens: list[str]) -> Row:
    offsets, start = [], 0
    for word in tokens:
        offsets.append([start, start + len(word)])
        start += len(word) + 1
    return {"tokens": tokens, "text": " ".join(tokens), "offsets": offsets}


def _with_words(text: str, style: str, where: str) -> Row:
    words = split_words(text, style)
    if not words:
        raise ValueError(f"{where}: the post holds no word.")
    return {"tokens": [w.word for w in words], "text": text, "offsets": [[w.start, w.end] for w in words]}
