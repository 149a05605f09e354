"""Read what somebody gave to the page, and say what the page shows: checked input, pipelines, parts of HTML."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoProcessor

from . import modeling_mixture as modeling_mixture  # the Auto classes then know the models, whoever imports this
from .auto_pipelines import TASKS
from .knowledge import load_knowledge
from .knowledge.pictures import ImageError, open_image
from .naming import loaded_from
from .page_html import entities_table, evidence_cards, relation_table, weights_bars
from .posts import check_string
from .retrieval_settings import MILVUS

MAX_CHARACTERS = 5_000  # of a post
MAX_IMAGE_BYTES = 10_000_000
MAX_IMAGE_PIXELS = 25_000_000
MAX_CHOICES = 50  # entities that a relation may be asked of
AS_TRAINED = "as trained"
ALONE = "none"
_THUMBNAIL = 240  # pixels of the longer side
_NO_CORPUS = "No corpus is open here: the post was read alone."
_NO_PICTURE = "This expert searches by picture, and the post has none."


@dataclass(frozen=True)
class Shown:
    """What the page shows of a post.

    Attributes:
        marked: the text in pieces, with the type of those that are entities.
        opinions, weights, evidence: parts of HTML.
        choices: (label, value) of the entities that a relation may be asked of.
    """

    marked: list[tuple[str, str | None]]
    opinions: str
    weights: str
    evidence: str
    choices: list[tuple[str, str]]


class PageReader:
    """The models and corpora of a page; a call of `read` or `relate` makes what is shown of one post.

    One post is read at a time, whatever the number of threads.

    Args:
        models: pipelines `more-ner` by the names that are shown.
        relations: a pipeline `more-re`.
        knowledge: sources of corpora, as `PostPipeline` takes them, by the names that are shown.
        cache_dir: the folder of corpora and indices.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        relations: Any = None,
        knowledge: Mapping[str, Sequence[str]] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if not models:
            raise ValueError("the page has no model: name one or more")
        self.models, self.relations = dict(models), relations
        self.knowledge = {name: list(sources) for name, sources in (knowledge or {}).items()}
        self.with_pictures = {name: _has_pictures(sources, cache_dir) for name, sources in self.knowledge.items()}
        self.corpora = [AS_TRAINED, *self.knowledge, ALONE]
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        models: Sequence[str | Path],
        relation_model: str | Path | None = None,
        knowledge: Mapping[str, Sequence[str]] | None = None,
        cache_dir: str | Path | None = None,
    ) -> PageReader:
        """Load models (folders or ids of the Hub) and open their corpora, so that the first visitor need not wait.

        Raises:
            ValueError, OSError: a model is missing, damaged, or of the other task.
        """
        names = _short_names([str(one) for one in models])
        loaded = {name: _load("more-ner", str(one), cache_dir) for name, one in zip(names, models, strict=True)}
        relations = None if relation_model is None else _load("more-re", str(relation_model), cache_dir)
        reader = cls(loaded, relations, knowledge, cache_dir)
        for corpus in reader.corpora:
            fitting = [name for name, pipe in loaded.items() if reader.sources(pipe, corpus) is not None]
            if not fitting:
                raise ValueError(f"the corpus {corpus} has no pictures, by which {', '.join(loaded)} searches")
            for name in fitting:
                reader.read(name, corpus, "Hello world", None)
        if relations is not None:
            reader.relate(AS_TRAINED, "Hello world", None, "0 5", "6 11")
        return reader

    def read(self, model: str, corpus: str, text: str, image: bytes | None) -> Shown:
        """Return what is shown of a post.

        Args:
            model, corpus: names that the page offers.
            image: the content of the file that was uploaded.

        Raises:
            ValueError: one sentence that says what is wrong with the input.
        """
        if model not in self.models:
            raise ValueError("This page has no such model: choose one of the list.")
        post = _checked(text, image)
        pipe = self.models[model]
        result = self._run(pipe, post, corpus)
        return Shown(
            _marked(result["text"], result["entities"]),
            entities_table(result),
            weights_bars(result.get("expert_weights")),
            self._evidence(pipe, result, post),
            _choices(result["entities"]),
        )

    def relate(self, corpus: str, text: str, image: bytes | None, head: str | None, tail: str | None) -> str:
        """Return what is shown of the relation of two entities, each the value of one of the choices.

        Raises:
            ValueError: as `read`.
        """
        if self.relations is None:
            raise ValueError("This page has no model for relations.")
        post = _checked(text, image)
        spans = {"head": _span(head, post["text"]), "tail": _span(tail, post["text"])}
        if spans["head"] == spans["tail"]:
            raise ValueError("Choose two different entities.")
        result = self._run(self.relations, {**post, **spans}, corpus)
        (relation,) = result["relations"]
        parts = [relation_table(relation), weights_bars(relation.get("expert_weights"))]
        return "".join([*parts, "<h4>What was read</h4>", self._evidence(self.relations, result, post)])

    def sources(self, pipe: Any, corpus: str) -> Any:
        """Return what a pipeline is given to search, of a mixture by experts; None where it can't search the corpus.

        Experts that search by picture keep their own corpus where this one has none.
        """
        if corpus not in self.knowledge:
            return ()
        own = pipe.reader.knowledge
        kinds = [one.knowledge_column for one in own.processors]
        able = [kind == "knowledge_text" or (kind and self.with_pictures[corpus]) for kind in kinds]
        if not any(able):
            return None
        given = self.knowledge[corpus]
        return given if own.names is None else {name: given for name, fit in zip(own.names, able, strict=True) if fit}

    def _run(self, pipe: Any, post: Mapping[str, Any], corpus: str) -> dict[str, Any]:
        if corpus not in self.corpora:
            raise ValueError("This page has no such corpus: choose one of the list.")
        if (sources := self.sources(pipe, corpus)) is None:
            raise ValueError("This corpus has no pictures, by which this model searches: choose another.")
        options = {"retrieve": corpus != ALONE, "knowledge": sources}
        with self._lock:
            try:
                found: dict[str, Any] = pipe(post, **options)
            except ValueError as error:
                told = " ".join(str(error).split()).removeprefix("post 0")
                raise ValueError(f"The post can't be read{': ' * (told[:1] not in ':,')}{told}") from error
        return found

    def _evidence(self, pipe: Any, result: Mapping[str, Any], post: Mapping[str, Any]) -> str:
        """Return what each expert read beside the post, with the pictures of the corpora."""
        own, read = pipe.reader.knowledge, result.get("knowledge", [])
        names = own.names or ["What was read"]
        knowledge: dict[str, Any] = read if isinstance(read, dict) else {names[0]: read}
        knowledge = knowledge or {name: [] for name in names}
        retrievals = dict(zip(names, own.retrievals, strict=True))
        notes = {}
        for name, retrieval in retrievals.items():
            if retrieval is None:
                notes[name] = _NO_CORPUS
            elif retrieval.settings.kind == "image" and "image" not in post:
                notes[name] = _NO_PICTURE
        return evidence_cards(knowledge, notes, lambda name, row: picture_address(retrievals.get(name), row))


def picture_address(retrieval: Any, row: int) -> str | None:
    """Return a small picture of a corpus as an address that holds it; None where it can't be had."""
    images = getattr(getattr(getattr(retrieval, "retriever", None), "corpus", None), "images", None)
    if images is None or not 0 <= row < len(images):
        return None
    raw = images.cast_column("image", ImageFeature(decode=False))
    try:
        picture = open_image(raw[row]["image"])
    except ImageError:
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _has_pictures(sources: Sequence[str], cache_dir: str | Path | None) -> bool:
    """Return whether a corpus can be searched by picture; of a database it is not known."""
    return sources[0].startswith(MILVUS) or load_knowledge(sources, cache_dir).images is not None


def check_image(content: bytes) -> Image.Image:
    """Return the picture in a file that was uploaded, or raise ValueError with one sentence for who uploaded it."""
    if len(content) > MAX_IMAGE_BYTES:
        raise ValueError(f"The picture's file is too large: at most {MAX_IMAGE_BYTES // 1_000_000} MB are read.")
    try:
        return open_image(content, MAX_IMAGE_PIXELS)
    except ImageError as error:
        if error.reason == "over-large":
            most = MAX_IMAGE_PIXELS // 1_000_000
            raise ValueError(f"The picture is too large: at most {most} million pixels are read.") from None
        told = "cut off" if error.reason == "truncated" else error.reason
        raise ValueError(
            f"The picture can't be read, it is {told}: give a whole JPEG, PNG, GIF, WEBP, BMP or TIFF file."
        ) from None


def _checked(text: str, image: bytes | None) -> dict[str, Any]:
    """Return a post of checked text and picture."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("Type a post first.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The post has {len(text)} characters, at most {MAX_CHARACTERS} are read.")
    check_string(text, "The post", "it")
    return {"text": text} | ({} if image is None else {"image": check_image(image)})


def _span(value: str | None, text: str) -> list[int]:
    """Return the characters that a choice stands for."""
    start, _, end = (value or "").partition(" ")
    if not (start.isascii() and start.isdecimal() and end.isascii() and end.isdecimal() and len(start + end) < 20):
        raise ValueError("Choose two entities first.")
    if not int(start) < int(end) <= len(text):
        raise ValueError("The post has changed: let it be read again, then choose two entities.")
    return [int(start), int(end)]


def _marked(text: str, entities: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    """Return the text in pieces, with the type of those that are entities."""
    pieces: list[tuple[str, str | None]] = []
    last = 0
    for one in sorted(entities, key=lambda one: one["char_start"]):
        pieces.append((text[last : one["char_start"]], None))
        pieces.append((text[one["char_start"] : one["char_end"]], one["type"]))
        last = one["char_end"]
    return [piece for piece in [*pieces, (text[last:], None)] if piece[0]]


def _choices(entities: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the entities as choices; one whose words stand there twice is told by its place."""
    chosen = entities[:MAX_CHOICES]
    told = [f"{one['text'][:80]} ({one['type']})" for one in chosen]
    told = [
        label if told.count(label) == 1 else f"{label}, at {one['char_start']}"
        for label, one in zip(told, chosen, strict=True)
    ]
    return [(label, f"{one['char_start']} {one['char_end']}") for label, one in zip(told, chosen, strict=True)]


def _load(task: str, name: str, cache_dir: str | Path | None) -> Any:
    """Return the pipeline of a model; transformers' own function makes a page of text of what is wrong with one."""
    pipeline_class, model_class = TASKS[task]
    with loaded_from("the model", name):
        processor: Any = AutoProcessor.from_pretrained(name)
        if not hasattr(processor, "markers"):
            raise ValueError(f"the model {name} is of another kind: train one by run_ner.py or run_re.py")
        if processor.markers != (task == "more-re"):
            told = "relations: name it by --relation_model" if processor.markers else "entities: name it by --model"
            raise ValueError(f"the model {name} finds {told}")
        return pipeline_class(model_class.from_pretrained(name), processor, cache_dir=cache_dir)


def _short_names(models: Sequence[str]) -> list[str]:
    """Return names to show: of folders as few of their last parts as tell them apart, never the whole way."""
    parts = [Path(one).resolve().parts if Path(one).is_dir() else Path(one).parts for one in models]
    for number in range(1, 5):
        names = [
            "/".join(own[-number:]) if Path(one).is_dir() else one for one, own in zip(models, parts, strict=True)
        ]
        if len(set(names)) == len(names):
            break
    else:
        raise ValueError(f"two models have the same name: {', '.join(names)}")
    return names
