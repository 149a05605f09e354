"""Turn tags into spans and back: BIO in files, BIOES inside the model."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """An entity: words `start` to `end` (exclusive) of a sentence, and its type."""

    start: int
    end: int
    type: str


def split_tag(tag: str) -> tuple[str, str]:
    """Split `"B-PER"` into `("B", "PER")` and `"O"` into `("O", "")`; raise ValueError for what is no such tag."""
    if tag == "O":
        return "O", ""
    if len(tag) > 2 and tag[0] in "BIES" and tag[1] == "-":
        return tag[0], tag[2:]
    raise ValueError(f"tag {tag!r} is neither O nor B-, I-, E- or S- followed by a type, like B-PER")


def tags_to_spans(tags: Sequence[str], strict: bool = False) -> list[Span]:
    """Return the entities of one sentence, tagged in BIO or BIOES, in order.

    As in seqeval's `get_entities`, an I- or E- that continues nothing opens an entity. With `strict` only entities
    opened by B- or S- count. A tag that is neither O nor [BIES]-TYPE raises ValueError.
    """
    spans: list[Span] = []
    previous, previous_type, start = "O", "", -1
    opened = False
    for position, tag in enumerate([*tags, "O"]):
        prefix, type_ = split_tag(tag)
        continues = prefix in "IE" and previous in "BI" and type_ == previous_type
        if not continues:
            if opened:
                spans.append(Span(start, position, previous_type))
            opened = prefix in "BS" or (prefix in "IE" and not strict)
            start = position
        previous, previous_type = prefix, type_
    return spans


def _check_spans(spans: Iterable[tuple[int, int, str]], length: int) -> list[tuple[int, int, str]]:
    ordered = sorted(spans)
    last_end = 0
    for start, end, type_ in ordered:
        if not 0 <= start < end <= length:
            raise ValueError(f"span ({start}, {end}, {type_}) is empty or outside a sentence of {length} words")
        if start < last_end:
            raise ValueError(f"span ({start}, {end}, {type_}) overlaps the span before it, which ends at {last_end}")
        last_end = end
    return ordered


def spans_to_bio(spans: Iterable[tuple[int, int, str]], length: int) -> list[str]:
    """Return the BIO tags of `length` words; raise ValueError when spans overlap or lie outside."""
    tags = ["O"] * length
    for start, end, type_ in _check_spans(spans, length):
        tags[start:end] = [f"B-{type_}"] + [f"I-{type_}"] * (end - start - 1)
    return tags


def spans_to_bioes(spans: Iterable[tuple[int, int, str]], length: int) -> list[str]:
    """Return the BIOES tags of `length` words; raise ValueError when spans overlap or lie outside."""
    tags = ["O"] * length
    for start, end, type_ in _check_spans(spans, length):
        if end - start == 1:
            tags[start] = f"S-{type_}"
        else:
            tags[start:end] = [f"B-{type_}"] + [f"I-{type_}"] * (end - start - 2) + [f"E-{type_}"]
    return tags


def valid_tags(tags: Sequence[str]) -> list[str]:
    """Return tags as valid BIOES, with the spans that `tags_to_spans` reads: an unconstrained path may be none."""
    return spans_to_bioes(tags_to_spans(tags), len(tags))


def bio_to_bioes(tags: Sequence[str]) -> list[str]:
    """Turn the tags of a sentence in BIO (or BIOES) into BIOES; a stray I- begins an entity."""
    return spans_to_bioes(tags_to_spans(tags), len(tags))


def bio_labels(types: Iterable[str]) -> list[str]:
    """Return `["O", "B-T1", "I-T1", "B-T2", ...]`."""
    return ["O"] + [f"{prefix}-{type_}" for type_ in types for prefix in "BI"]


def bioes_labels(types: Iterable[str]) -> list[str]:
    """Return `["O", "B-T1", "I-T1", "E-T1", "S-T1", "B-T2", ...]`."""
    return ["O"] + [f"{prefix}-{type_}" for type_ in types for prefix in "BIES"]


def entity_types(tags: Iterable[str]) -> list[str]:
    """Return the types in order of first appearance; raise ValueError for what is no tag."""
    return list(dict.fromkeys(type_ for prefix, type_ in map(split_tag, tags) if prefix != "O"))


def allowed_transitions(labels: Sequence[str]) -> tuple[list[bool], list[list[bool]], list[bool]]:
    """Return whether BIOES lets a sentence start with a label, label `to` follow `from` (`[from][to]`), and it end.

    Labels that are no BIOES set (a type lacks one of B-, I-, E-, S-) raise ValueError.
    """
    present = set(labels)
    for type_ in entity_types(labels):
        missing = [f"{prefix}-{type_}" for prefix in "BIES" if f"{prefix}-{type_}" not in present]
        if missing:
            raise ValueError(
                f"labels are not a BIOES set: {', '.join(missing)} missing; bioes_labels(types) gives one"
            )
    parts = [split_tag(label) for label in labels]
    start = [prefix in "OBS" for prefix, _ in parts]
    end = [prefix in "OES" for prefix, _ in parts]
    follows = [
        [to in "IE" and type_ == from_type if from_ in "BI" else to in "OBS" for to, type_ in parts]
        for from_, from_type in parts
    ]
    return start, follows, end
