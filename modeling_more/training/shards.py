"""This module writes predictions in shards as they are computed, so that a run that is killed goes on from them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..files import new_file, write_jsonl
from ..foreign import parse_json
from ..mixed_experts import weights_digest
from ..pipelines import MoRePipeline
from ..posts import Posts, Row

logger = logging.getLogger(__name__)

SHARD = 512  # posts of a shard
VERSION = 1  # of how posts are predicted: shards of another one are computed anew


def predict_in_shards(path: Path, pipeline: MoRePipeline, posts: Posts, progress: bool = False) -> None:
    """Write the predictions for these posts to `path`, JSON Lines, which appears whole.

    Until then they lie beside it in shards, under names that tell of the model and the posts: a run that is started
    again with the same ones goes on from them. All processes take part, the main one writes.

    Args:
        progress: whether to show a bar over all posts.

    Raises:
        ValueError: a post is invalid, which is told before anything is computed, or it can't be computed; shards stay.
    """
    accelerator = pipeline.accelerator
    pipeline.check(posts)
    first = range(0, len(posts), SHARD)
    parts = {
        shard: posts[begin : begin + SHARD] for shard, begin in zip(_names(path, pipeline, posts), first, strict=True)
    }
    here = [_is_whole(shard, part) for shard, part in parts.items()]
    kept = [all(one) for one in zip(*gather_object([here]), strict=True)]  # all processes skip the same ones
    if accelerator.is_main_process:
        others = [one for one in _shards(path) if one not in parts]
        for one in others:
            one.unlink()
        if others:
            logger.warning("%d shards in %s are of other posts or another model: removed", len(others), path.parent)
        if any(kept):
            done = sum(len(part) for part, one in zip(parts.values(), kept, strict=True) if one)
            logger.info("%d of %d posts are predicted already: going on from there", done, len(posts))
    accelerator.wait_for_everyone()
    with tqdm(total=len(posts), desc="posts", unit="posts", disable=not progress) as bar:
        for (shard, part), done, begin in zip(parts.items(), kept, first, strict=True):
            if not done:
                found = pipeline(part, begin)
                if accelerator.is_main_process:
                    write_jsonl(shard, found)
            bar.update(len(part))
    if accelerator.is_main_process:
        with new_file(path) as beside, open(beside, "wb") as whole:
            for shard in parts:
                with open(shard, "rb") as file:
                    shutil.copyfileobj(file, whole)
        for shard in parts:
            shard.unlink()
    accelerator.wait_for_everyone()


def predicted_in_shards(path: Path) -> int:
    """Return for how many posts, at most, there are shards."""
    return SHARD * len(_shards(path))


def _shards(path: Path) -> list[Path]:
    name = re.compile(rf"{re.escape(path.stem)}\.\d{{6}}-[0-9a-f]{{16}}\.jsonl")
    return [one for one in path.parent.glob(f"{path.stem}.*.jsonl") if name.fullmatch(one.name)]


def _names(path: Path, pipeline: MoRePipeline, posts: Posts) -> list[Path]:
    """Return the files of the shards, named by a digest of the model, its processor and the posts."""
    model = _digest_of(pipeline)
    names = []
    for number, begin in enumerate(range(0, len(posts), SHARD)):
        digest = hashlib.sha256(f"{model} {begin}".encode())
        for post in posts[begin : begin + SHARD]:
            digest.update(json.dumps([post, _stamp(post)], default=repr, sort_keys=True).encode())
        names.append(path.with_name(f"{path.stem}.{number:06d}-{digest.hexdigest()[:16]}.jsonl"))
    return names


def _digest_of(pipeline: MoRePipeline) -> str:
    processors: list[Any] = getattr(pipeline.processor, "processors", [pipeline.processor])
    read = ["knowledge_column", "top_k", "min_score", "knowledge_words", "max_length", "overflow", "splitter"]
    read += ["markers"]
    about = [
        VERSION, type(pipeline).__name__, pipeline.accelerator.mixed_precision, weights_digest(pipeline.core),
        pipeline.core.config.to_json_string(),
        [one and one.retriever.fingerprint for one in pipeline.knowledge.retrievals],
        [[getattr(one, name) for name in read] + [one.tokenizer.backend_tokenizer.to_str()] for one in processors],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _stamp(post: Row) -> list[int] | None:
    """Return size and time of a post's picture, which may be another one under the same name."""
    image = post.get("image")
    try:
        found = os.stat(image) if isinstance(image, str | Path) else None
    except (OSError, ValueError):
        return None
    return None if found is None else [found.st_size, found.st_mtime_ns]


def _is_whole(shard: Path, posts: Sequence[Row]) -> bool:
    """Return whether a shard is there and holds a prediction for each of these posts."""
    if not shard.is_file():
        return False
    try:
        rows = [parse_json(line, str(shard)) for line in shard.read_bytes().splitlines()]
        return [row.get("id") for row in rows] == [post.get("id") for post in posts]
    except (OSError, ValueError, AttributeError):
        return False
