"""This module encodes posts for the collators, and runs models over batches of them without training."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data_collator import TEXT_ONLY
from .processing_mixture import MoReMixtureProcessor
from .processing_more import MoReProcessor
from .tagging import bio_to_bioes

try:
    from accelerate import Accelerator
    from accelerate.data_loader import prepare_data_loader
except ImportError:  # this code came with a model, to where only transformers and torch are: one process needs no more
    pass

logger = logging.getLogger(__name__)

#: the column that holds a post's knowledge for each expert of a mixture, in their order
EXPERT_KNOWLEDGE = "expert_knowledge"
ALONE = 16_384  # sub-tokens of a post from which on it is a batch of its own
IMAGES_AT_ONCE = 64  # decoded pictures are large: up to 17 MB

#: what a model reads of an encoded post, the sub-tokens first
_READ = [f"{view}{name}" for name in ("input_ids", "word_rows", "word_positions") for view in ("", TEXT_ONLY)]

Post = Mapping[str, Any]
EncodedPost = dict[str, Any]
Result = TypeVar("Result")


class OneProcess:
    """Stands in for an Accelerator where the calling process does the work alone, on one device."""

    num_processes, process_index, is_main_process = 1, 0, True
    mixed_precision = "no"

    def __init__(self, device: torch.device):
        self.device = device

    def wait_for_everyone(self) -> None:
        """Return at once: there is nobody to wait for."""

    def unwrap_model(self, model: Any) -> Any:
        """Return the model itself, of one that was compiled or wrapped to be trained by several processes."""
        while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
            model = inner
        return model

    def gather_for_metrics(self, results: Any, use_gather_object: bool = False) -> Any:
        """Return the results: there are no others."""
        return results


def encode_posts(
    posts: Sequence[Mapping[str, Any]],
    processor: MoReProcessor,
    label2id: Mapping[str, int] | None = None,
    two_views: bool = False,
    truncate: bool = False,
    use_knowledge: bool = True,
    progress: bool = False,
) -> list[EncodedPost]:
    """Return rows encoded for the collator.

    Args:
        posts: rows {tokens, ner_tags (BIO strings)?, knowledge column?}, or {tokens, head, tail, relation?, …}.
        label2id: the ids of the BIOES labels or of the relations; None leaves the labels out.
        two_views: whether to encode the words without knowledge too, for the second view.
        truncate: whether to cut words that do not fit (to train on entities) instead of reading them in windows.
    """
    encoded: list[EncodedPost] = []
    column = processor.knowledge_column if use_knowledge else None
    for first in tqdm(range(0, len(posts), 1000), desc="tokenise", disable=not progress, unit_scale=1000):
        chunk = [posts[index] for index in range(first, min(first + 1000, len(posts)))]
        words = [post["tokens"] for post in chunk]
        knowledge = [post.get(column) for post in chunk] if column else None
        pairs = [(post["head"], post["tail"]) for post in chunk] if processor.markers else None
        views = [processor.encode(words, knowledge, pairs, truncate)]
        if two_views:
            views.append(processor.encode(words, None, pairs, truncate))
        for post, *inputs in zip(chunk, *views, strict=True):
            row: EncodedPost = {"index": len(encoded)}
            for prefix, view in zip(("", TEXT_ONLY), inputs, strict=False):
                row |= {prefix + key: value for key, value in view.items()}
                # takes a third of a list's memory
                row[prefix + "input_ids"] = [array("i", ids) for ids in view["input_ids"]]
            if label2id is not None and processor.markers:
                row["label"] = label2id[post["relation"]]
            elif label2id is not None:
                tags = bio_to_bioes(post["ner_tags"])
                row["labels"] = [label2id[tag] for tag in tags[: len(row["word_positions"])]]
            encoded.append(row)
    return encoded


def encode_for_experts(posts: Sequence[Post], processor: MoReMixtureProcessor) -> list[dict[str, Any]]:
    """Return each post encoded for every expert, with its item of `EXPERT_KNOWLEDGE`, and without knowledge."""
    encoded: list[dict[str, Any]] = []
    for first in range(0, len(posts), 1000):
        chunk = posts[first : first + 1000]
        words = [post["tokens"] for post in chunk]
        pairs = [(post["head"], post["tail"]) for post in chunk] if processor.markers else None
        knowledge = list(zip(*(post[EXPERT_KNOWLEDGE] for post in chunk), strict=True))
        for row in processor.encode(words, knowledge, pairs):
            encoded.append({"index": len(encoded), **row})
    return encoded


def rows_digest(*splits: Sequence[EncodedPost]) -> str:
    """Return 32 hexadecimal digits that tell whether posts are read as before: sub-tokens, places, labels, order."""
    digest = hashlib.sha256()
    for encoded in splits:
        digest.update(f"{len(encoded)} posts".encode())
        for post in encoded:
            views = [post, *post.get("experts", ()), *post.get("alone", ()), post.get("text_only", {})]
            read = [[view.get(name) for name in _READ] for view in views]
            rows = [ids for of_view in read for of_post in of_view[:2] for ids in of_post or ()]
            about = [post.get("label"), post.get("labels"), [of_view[2:] for of_view in read], list(map(len, rows))]
            digest.update(json.dumps(about).encode())
            for ids in rows:
                digest.update(array("i", ids).tobytes())  # there are many: JSON would take four times as long
    return digest.hexdigest()[:32]


def evaluation_loader(
    encoded: Sequence[EncodedPost],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    accelerator: Accelerator | OneProcess,
    batch_size: int,
) -> DataLoader[Any]:
    """Return a loader of batches of similarly long encoded posts, the longest first, with the `index` of each.

    A post of more than `ALONE` sub-tokens is a batch of its own: all posts of a batch are padded to its words. Every
    process gets as many batches; where they do not come out even, the last ones come again.
    """

    def length(post: EncodedPost) -> int:
        views = [*post["experts"], *post["alone"]] if "experts" in post else [post]
        return sum(len(row) for view in views for row in view["input_ids"])

    lengths = [length(post) for post in encoded]
    order = sorted(range(len(encoded)), key=lengths.__getitem__, reverse=True)
    alone = bisect([-lengths[place] for place in order], -ALONE - 1)
    batches = [[place] for place in order[:alone]]
    batches += [order[first : first + batch_size] for first in range(alone, len(order), batch_size)]
    processes = accelerator.num_processes
    batches += [batches[number % len(batches)] for number in range(-len(batches) % processes)]
    own = batches[accelerator.process_index :: processes]
    loader: DataLoader[Any] = DataLoader(encoded, batch_sampler=own, collate_fn=collate)  # type: ignore[arg-type]
    if isinstance(accelerator, OneProcess):
        return loader
    # not accelerator.prepare, with which checkpoints would keep a sampler for every evaluation
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,  # dealt out already
        process_index=0,
        put_on_device=True,
    )


def map_batches(
    encoded: Sequence[EncodedPost],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    compute: Callable[[dict[str, Any]], list[Result]],
    accelerator: Accelerator | OneProcess,
    batch_size: int,
    description: str,
) -> list[Result]:
    """Return the results of `compute(batch)` for each post, without gradients, gathered from all processes.

    Args:
        compute: a function from a batch without `index` to a result per post.

    Raises:
        BatchError: `compute` raised an error; the rows at which it did are named.
    """
    found: dict[int, Result] = {}
    by_index = {post["index"]: post for post in encoded}
    loader = evaluation_loader(encoded, collate, accelerator, batch_size)
    hidden = len(loader) < 2 or not accelerator.is_main_process
    for loaded in tqdm(loader, desc=description, disable=hidden, leave=False):
        batch = to_device(loaded, accelerator.device)
        index = batch.pop("index").tolist()
        try:
            with torch.no_grad():
                results = compute(batch)
        except (ValueError, RuntimeError) as error:  # of torch, memory that does not suffice among them
            for number in index:
                alone = to_device(collate([by_index[number]]), accelerator.device)
                alone.pop("index")
                if _fails(compute, alone):
                    raise BatchError([number], error) from error
            raise BatchError(index, error) from error
        rows = list(zip(index, results, strict=True))
        found |= dict(accelerator.gather_for_metrics(rows, use_gather_object=True))
    return [found[post["index"]] for post in encoded]


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with the tensors in its lists and dictionaries on a device."""
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(value, device) for value in batch]
    return batch.to(device) if isinstance(batch, Tensor) else batch


def _fails(compute: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> bool:
    try:
        with torch.no_grad():
            compute(batch)
    except (ValueError, RuntimeError):
        return True
    return False


class BatchError(RuntimeError):
    """An error for rows that can't be computed.

    Attributes:
        index: the first row that can't be computed by itself, or all rows of the batch, if each of them can.
        reason: what went wrong.
    """

    def __init__(self, index: list[int], error: Exception):
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        self.index, self.reason = index, kind + str(error)
        super().__init__(f"rows {index} can't be computed: {self.reason}")


def check_tower(config: Any, given: str, dimension: int) -> None:
    """Raise ValueError if a mixture's gate reads images of another dimension than the given tower's."""
    if dimension != config.image_dim:
        raise ValueError(
            f"the gate reads {config.image_dim} image features, {given} gives {dimension}: the tower must be "
            f"{config.image_model or 'that of the training'}"
        )


def gate_tower(config: Any, posts: Sequence[Post]) -> Any:
    """Return the loaded `ImageEncoder` by which a mixture's gate sees images; None where no post has one."""
    first = next((row for row, post in enumerate(posts) if post.get("image") is not None), None)
    if first is None:
        return None
    try:
        from modeling_more.knowledge.image import ImageEncoder
    except ModuleNotFoundError as error:
        if error.name != "modeling_more":
            raise
        raise ModuleNotFoundError(
            f"post {posts[first].get('id', first)} has an image, which the code that came with this model can't see: "
            "pip install modeling-more, or leave the images out",
            name=error.name,
        ) from None
    if config.image_model is None:
        raise ValueError("the mixture does not tell by which tower its gate sees images: give an image_encoder")
    return ImageEncoder(config.image_model)


def embed_images(posts: Sequence[Post], config: Any, encoder: Any) -> tuple[Tensor, Tensor]:
    """Return embeddings [P, D] of the posts' `image`s, and whether each post has a usable one [P]."""
    vectors, usable = torch.zeros(len(posts), config.image_dim), torch.zeros(len(posts), dtype=torch.bool)
    given = [row for row, post in enumerate(posts) if post.get("image") is not None]
    if not given:
        return vectors, usable
    encoder = encoder or gate_tower(config, posts)
    try:
        from modeling_more.knowledge.pictures import ImageError, open_image
    except ModuleNotFoundError:  # told by `gate_tower`; outside of `try` transformers asks for it before
        raise

    check_tower(config, encoder.label, encoder.dimension)
    # all pairs of a post share its image; at most IMAGES_AT_ONCE are open at once
    rows_of: dict[Any, list[int]] = {}
    for row in given:
        image = posts[row]["image"]
        rows_of.setdefault(image if isinstance(image, str | Path) else id(image), []).append(row)
    same = list(rows_of.values())
    for first in tqdm(range(0, len(same), IMAGES_AT_ONCE), desc="images", disable=len(same) <= IMAGES_AT_ONCE):
        opened, pictures = [], []
        for rows in same[first : first + IMAGES_AT_ONCE]:
            try:
                pictures.append(open_image(posts[rows[0]]["image"]))
                opened.append(rows)
            except ImageError as error:
                logger.warning("the image of post %s can't be used: %s", posts[rows[0]].get("id", rows[0]), error)
        if opened:
            for rows, vector in zip(opened, torch.from_numpy(np.array(encoder.embed(pictures))), strict=True):
                vectors[rows], usable[rows] = vector, True
    return vectors, usable
