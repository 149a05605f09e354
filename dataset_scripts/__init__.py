"""Load the data sets by name; each has a module that builds and publishes it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_more.naming import nearest

if TYPE_CHECKING:
    from datasets import DatasetDict

NAMES = ("twitter15", "twitter17", "snap", "wikidiverse", "demo")
RELATION_NAMES = ("mnre", "demo_relations")
RETRIEVALS = ("none", "text", "image")


def load(
    name: str,
    retrieval: str = "none",
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    splitter: str | None = None,
    **builder_options: Any,
) -> DatasetDict:
    """Load a data set: splits "train", "validation", "test" of rows {id, image_id, tokens, ner_tags, knowledge_…}.

    Args:
        name: one of NAMES.
        retrieval: "none", or "text" / "image": the rows come with the knowledge that the source holds.
        data_dir: folder with raw files or an archive (packed or not), or a zip file; default: download.
        cache_dir: folder for downloads and Arrow files; default: that of `datasets`.
        splitter: how raw sentences are split into words, for sets that hold such; see `words.split_words`.
        builder_options: options of the builder, such as `other_as_misc=True`.

    Raises:
        ValueError: unknown name or retrieval, files that can't be read, no knowledge in the source.
        FileNotFoundError: `data_dir` is not there, or lacks a split.
        ConnectionError: no `data_dir`, and the archive can't be downloaded.
    """
    from datasets.exceptions import DatasetGenerationError  # here: whoever only needs the names waits for no library

    if name not in NAMES + RELATION_NAMES:
        known = NAMES + RELATION_NAMES
        raise ValueError(f"data set {name!r} is unknown: give one of {', '.join(known)}{nearest(name, known)}.")
    if retrieval not in RETRIEVALS:
        near = nearest(retrieval, RETRIEVALS)
        raise ValueError(f"retrieval {retrieval!r} is unknown: give one of {', '.join(RETRIEVALS)}{near}.")
    builder_class = importlib.import_module(f"dataset_scripts.{name}").Builder
    if splitter is not None and hasattr(builder_class.BUILDER_CONFIG_CLASS, "splitter"):
        builder_options["splitter"] = splitter
    builder = builder_class(
        config_name=retrieval,
        data_dir=None if data_dir is None else str(Path(data_dir).expanduser().resolve()),
        cache_dir=None if cache_dir is None else str(Path(cache_dir).expanduser().resolve()),
        **builder_options,
    )
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError | OSError):  # our own sentence, not datasets' wrapping of it
            raise error.__cause__ from None
        raise
    return builder.as_dataset()
