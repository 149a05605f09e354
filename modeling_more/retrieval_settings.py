"""Keep with a model how its knowledge was retrieved, and open that retrieval again where the model is used."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from .provenance import HubName, is_hub_name, of_others, places_of

logger = logging.getLogger(__name__)

KINDS = ("text", "image")
SEARCHES = ("bm25", "dense", "both")  # of texts; a class of the user's own is named FILE.py:CLASS
QUERIES = ("words", "caption", "entities")
READ_NOTHING = 1e39  # as the least score that is read: scores are numbers of 32 bits and do not reach it
MILVUS = "milvus:"  # how the address of a Milvus database begins where a corpus is named
#: the settings that name an encoder, and the folder beside the model that holds it where it is on no Hub
ENCODERS = {"image_model": "image_tower", "text_model": "text_encoder"}
ENCODER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # what an encoder is loaded from
_FINGERPRINT = re.compile(r"[\w.-]{1,200}", re.ASCII)
_MOST_CORPORA = 1000


@dataclass(frozen=True)
class RetrievalSettings:
    """The settings by which an expert's knowledge was retrieved, which its processor saves.

    Attributes:
        kind: what is searched by, `"text"` or `"image"`.
        corpora: ids of the Hub, or the names (not the places) of files and folders.
        fingerprint: of the corpus that was searched.
        retriever: how texts are searched: `"bm25"`, `"dense"`, `"both"`, or by a class of the user's own.
        query: what is searched for: the post's `"words"`, its image's `"caption"` or also its predicted `"entities"`.
        title_in_key: whether a corpus built from files is searched by title and sentence.
        text_model: the sentence encoder of dense retrieval: an id of the Hub or a folder.
        image_model: the image tower of retrieval by image, likewise.
    """

    kind: str
    corpora: list[str]
    fingerprint: str
    retriever: str = "bm25"
    query: str = "words"
    title_in_key: bool = False
    text_model: str | None = None
    image_model: str | None = None

    @classmethod
    def from_dict(cls, value: Mapping[str, Any] | RetrievalSettings) -> Self:
        """Return the settings that a `processor_config.json` holds.

        Raises:
            ValueError: they lack something, or hold what no version writes.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"retrieval is {value!r:.80}, it must be an object with kind, corpora and fingerprint")
        found = {key: one for key, one in value.items() if key in cls.__dataclass_fields__}
        for name, choices in (("kind", KINDS), ("query", QUERIES)):
            if (told := found.get(name, choices[0] if name == "query" else None)) not in choices:
                raise ValueError(f"{name} of the retrieval is {told!r:.80}, it must be one of {', '.join(choices)}")
        corpora = found.get("corpora")
        if not (isinstance(corpora, list) and len(corpora) <= _MOST_CORPORA and all(_is_name(one) for one in corpora)):
            raise ValueError(f"corpora of the retrieval are {corpora!r:.80}, they must be a list of names")
        if not (isinstance(told := found.get("fingerprint"), str) and _FINGERPRINT.fullmatch(told)):
            raise ValueError(f"fingerprint of the retrieval is {told!r:.80}, it must be that of a corpus")
        if not _is_name(told := found.get("retriever", SEARCHES[0])):
            raise ValueError(f"retriever of the retrieval is {told!r:.80}, it must be one of {', '.join(SEARCHES)}")
        if not isinstance(told := found.get("title_in_key", False), bool):
            raise ValueError(f"title_in_key of the retrieval is {told!r:.80}, it must be true or false")
        for name in ENCODERS:
            if (told := found.get(name)) is not None and not _is_name(told):
                raise ValueError(f"{name} of the retrieval is {told!r:.80}, it must be the name of an encoder")
        return cls(**found)

    @property
    def encoders(self) -> list[str | None]:
        """Return the encoders that are named; somebody else's names are `HubName`s, see `loaded_from`."""
        return [getattr(self, name) for name in ENCODERS]

    def saved(self) -> dict[str, Any]:
        """Return what is saved: no folder of this machine, encoders in folders as `save_encoders` names them."""
        found = asdict(self) | {"corpora": [saved_name(one) for one in self.corpora]}
        for name, folder in ENCODERS.items():
            if isinstance(value := found[name], str):
                found[name] = folder if Path(value).is_dir() else str(value)
        return {key: value for key, value in found.items() if value is not None}

    def save_encoders(self, folder: Path) -> None:
        """Copy the encoders that lie in folders beside a model that is saved in `folder`."""
        for name, inner in ENCODERS.items():
            save_encoder(getattr(self, name), folder / inner)

    def loaded_from(self, folder: Any, own: bool) -> RetrievalSettings:
        """Return the settings of a model that was loaded from this folder, with the encoders that were saved there.

        Args:
            own: whether this user saved it here. What somebody else names is looked up on the Hub alone.
        """
        changes: dict[str, Any] = {}
        for name, inner in ENCODERS.items():
            if (value := getattr(self, name)) == inner and has_weights(Path(folder) / inner):
                changes[name] = str(Path(folder) / inner)
            elif value is not None and not own:
                changes[name] = HubName(value)
        return replace(self, **changes)

    def sources(self, knowledge: Sequence[str | Path] = ()) -> list[str] | None:
        """Return what is to be searched, or None where it is neither given nor known here, nor on the Hub.

        Args:
            knowledge: what the user gives instead: files, folders of saved corpora, ids of the Hub.
        """
        if given := [str(one) for one in ([knowledge] if isinstance(knowledge, str | Path) else knowledge)]:
            return given
        if (known := places_of(self.fingerprint)) is not None:
            return known
        names = [of_others(one) for one in self.corpora]
        return None if None in names or not names else [one for one in names if one is not None]

    def check_fingerprint(self, found: str, sources: Sequence[str], whose: str) -> None:
        """Warn where the corpus that is searched is not that of the training."""
        if found != self.fingerprint:
            logger.warning(
                "%s was trained with another corpus (fingerprint %s) than %s (fingerprint %s)",
                whose, self.fingerprint, shown_names(sources), found,
            )  # fmt: skip


def saved_name(source: str) -> str:
    """Return what is saved of a source of knowledge: an id of the Hub as it is, else a name without its place."""
    if source.startswith(MILVUS):
        return MILVUS.rstrip(":")  # its address is nobody else's
    return Path(source).name if Path(source).exists() or Path(source).is_absolute() else source


def save_encoder(source: str | None, target: Path) -> None:
    """Copy an encoder's files into a folder beside a saved model, if the encoder lies in a folder of the user's.

    One without safetensors is not copied, which is logged: nothing else is loaded from a folder that others saved.
    """
    folder = Path(source or "")
    if not source or is_hub_name(source) or not folder.is_dir():
        return
    if target.is_dir() and target.samefile(folder):
        return
    if not has_weights(folder):
        logger.warning("the encoder in %s has no safetensors and is not saved with the model", folder)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(one for pattern in ENCODER_FILES for one in folder.glob(pattern)):
        shutil.copyfile(path, target / path.name)


def has_weights(folder: Path) -> bool:
    """Return whether an encoder's weights lie in a folder as safetensors."""
    return any(folder.glob("*.safetensors"))


def shown_names(names: Sequence[str]) -> str:
    """Return names in one line, without what a terminal would act on."""
    told = ", ".join(name if name.isprintable() else repr(name) for name in names) or "its corpus"
    return told if len(told) <= 200 else f"{told[:197]}..."


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1000
