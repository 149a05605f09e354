"""Open the retrieval that a model was saved with, where the package that searches is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .retrieval_settings import RetrievalSettings, shown_names

logger = logging.getLogger(__name__)

INSTALL = "pip install modeling-more"


def by_expert(knowledge: Any, names: Sequence[str]) -> list[Any]:
    """Return what is to be searched for each expert, of one value for all or of a mapping by their names.

    Raises:
        ValueError: the mapping names another one.
    """
    if not isinstance(knowledge, Mapping):
        return [knowledge] * len(names)
    if unknown := sorted(map(str, knowledge.keys() - set(names))):
        raise ValueError(f"knowledge is given for {unknown[0]!r}, the experts are {', '.join(names)}")
    return [knowledge.get(name, ()) for name in names]


def open_retrieval(
    settings: RetrievalSettings,
    knowledge: Sequence[str | Path] = (),
    cache_dir: str | Path | None = None,
    whose: str = "the model",
) -> Any:
    """Return the opened retrieval, an `OnlineRetrieval`, or None where its corpus is not to be had.

    A warning says so, and where the corpus has another fingerprint than that of the training.

    Args:
        knowledge: what the user gives instead, see `RetrievalSettings.sources`.
        whose: the model or expert, for messages.

    Raises:
        ImportError: `knowledge` is given, but the package that searches is not installed.
        FileNotFoundError, ValueError: the knowledge that is given can't be searched.
    """
    try:
        from modeling_more.knowledge import OnlineRetrieval
    except ImportError as error:
        told = f"{whose} searches its knowledge by the package modeling-more, which is not installed here: {INSTALL}"
        if knowledge:
            raise ImportError(told) from error
        logger.warning("%s; until then it reads posts alone, or the knowledge that you give with them", told)
        return None
    if (sources := settings.sources(knowledge)) is None:
        logger.warning(
            "the knowledge of %s, %s (fingerprint %s), is not known here: give it as knowledge (files, a folder or an "
            "id of the Hub); it reads posts alone", whose, shown_names(settings.corpora), settings.fingerprint[:12],
        )  # fmt: skip
        return None
    try:
        opened = OnlineRetrieval.open(settings, sources, cache_dir)
    except (OSError, ValueError) as error:
        if knowledge:
            raise
        reason = " ".join(str(error).split())
        logger.warning("the knowledge of %s can't be searched (%s): it reads posts alone", whose, reason)
        return None
    settings.check_fingerprint(opened.fingerprint, sources, whose)
    return opened
