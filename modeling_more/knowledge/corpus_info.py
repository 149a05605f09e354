"""Describe a knowledge corpus by its knowledge.json and the card it is published with."""

import re
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..foreign import read_object
from ..markdown import code_span, escaped

FORMAT_VERSION = 1
META_FILE = "knowledge.json"
INDEX_FOLDER = "bm25"
FAISS_FOLDER = "faiss"
FAISS_META = "image_index.json"
_DIGEST = re.compile("[0-9a-f]{32}")
_MOST = 2**53  # articles, beyond which a number of JSON is not exact


@dataclass(frozen=True)
class CorpusInfo:
    """The description of a corpus in `knowledge.json`; `fingerprint` is the digest of its content and key design."""

    fingerprint: str
    articles: int
    empty: int  # articles without text, left out
    paragraphs: int
    sentences: int
    title_in_key: bool
    language: str
    splitter: str
    format_version: int = FORMAT_VERSION
    images: int = 0
    unusable_images: int = 0  # named, but missing, truncated, over-large, not an image, or damaged: left out
    merged_images: int = 0  # nearly identical to another of the same entity, left out
    repeated_ids: int = 0  # articles whose id is that of an earlier one
    image_fingerprint: str = ""  # digest of the images with their titles and values; empty where there are none


def read_info(folder: Path) -> CorpusInfo:
    """Read `knowledge.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it describes no corpus, or one of another format.
    """
    file = folder / META_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no knowledge corpus: {META_FILE}, written by save_pretrained, is missing."
        )
    fields = CorpusInfo.__dataclass_fields__
    needed: dict[str, Any] = {name: field.type for name, field in fields.items() if field.default is MISSING}
    try:
        meta = read_object(file, **needed)
        more: dict[str, Any] = {name: field.type for name, field in fields.items() if name in meta}
        read_object(file, **more)
    except ValueError as error:
        raise ValueError(f"{file} does not describe a knowledge corpus: {error}.") from None
    info = CorpusInfo(**{name: meta[name] for name in more})
    if info.format_version != FORMAT_VERSION:
        raise ValueError(f"{file} is of format {info.format_version}, this version reads {FORMAT_VERSION}.")
    for name, value in asdict(info).items():
        if isinstance(value, int) and not 0 <= value <= _MOST:
            raise ValueError(f"{file} does not describe a knowledge corpus: {name} is {value}.")
    for digest in (info.fingerprint, info.image_fingerprint or info.fingerprint):
        if not _DIGEST.fullmatch(digest):  # it is part of a folder's name in the cache
            raise ValueError(f"{file} does not describe a knowledge corpus: {digest[:80]!r} is no fingerprint.")
    return info


def check_rows(folder: Path, info: CorpusInfo, paragraphs: int, sentences: int, images: int) -> None:
    """Raise ValueError when the tables have other numbers of rows than `knowledge.json` says."""
    if (paragraphs, sentences, images) != (info.paragraphs, info.sentences, info.images):
        raise ValueError(
            f"The corpus in {folder} has {paragraphs} paragraphs, {sentences} sentences and {images} images, "
            f"its {META_FILE} names {info.paragraphs}, {info.sentences} and {info.images}."
        )


def corpus_card(info: CorpusInfo, license: str | None, description: str, date: str | None, faiss: Path) -> str:
    """Return the README.md of a published corpus.

    Args:
        license, date: see `save_pretrained`.
        description: Markdown of whoever saves the corpus; all else is shown as text.
        faiss: the folder that holds the corpus' image indices.
    """
    indices = []
    for file in sorted(faiss.glob(f"*/{FAISS_META}")):
        meta = read_object(file, factory=str, encoder_name=str)
        indices.append(
            f"- {code_span(file.parent.name)}: {escaped(meta['factory'])}, images embedded by "
            f"{code_span(meta['encoder_name'])}"
        )
    configs = ["paragraphs", "sentences"] + ["images"] * bool(info.images)
    head = ["---", "tags:", "- knowledge-corpus", "- modeling-more", "configs:"]
    for name in configs:
        head += [f"- config_name: {name}", f"  data_files: {name}/*.parquet"]
        head += ["  default: true"] if name == "paragraphs" else []
        # `datasets` caches a folder's rows by its name and this metadata alone
        head += [f"  description: content {info.fingerprint}"]
    head += [yaml.safe_dump({"license": license}).rstrip()] if license else []
    repeated = f"; {info.repeated_ids} with the id of an earlier one" if info.repeated_ids else ""
    key = "title and sentence" if info.title_in_key else "sentence"
    left_out = f"{info.unusable_images} more could not be used, {info.merged_images} were nearly identical to another"
    images = f"\n| images | {info.images} ({left_out}) |" if info.images or info.unusable_images else ""
    rows = (
        "\n\n`images` holds id, title, value (the article's lead) and image, one row an image; "
        f"`{FAISS_FOLDER}/` an index over them for each image tower:"
        f"\n\n{chr(10).join(indices) or '(none yet)'}"
        if info.images
        else ""
    )
    body = f"""---

# Knowledge corpus

{description or "Texts to retrieve knowledge from, for named entity and relation extraction."}

| | |
|---|---|
| articles | {info.articles - info.empty} ({info.empty} more had no text{repeated}) |
| paragraphs (values) | {info.paragraphs} |
| sentences (keys) | {info.sentences} |{images}
| key | {key} |
| sentence splitter | {escaped(info.splitter)}, language {escaped(info.language)} |
| date of the source | {escaped(date or "not stated")} |
| licence of the {"texts and images" if info.images else "texts"} | {escaped(license or "not stated")} |
| fingerprint | `{info.fingerprint}` |

`paragraphs` holds id, title and value, one row a paragraph; `sentences` the row of the paragraph and the characters
`start` to `end` of each sentence; `{INDEX_FOLDER}/` a BM25 index over the sentences.{rows}

```python
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained("ORG/NAME"))
retriever.search(["a post's words"], top_k=3)
```
"""
    return "\n".join(head) + "\n" + body
