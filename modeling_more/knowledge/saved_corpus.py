"""Tell which files of a folder are those of a saved corpus: these are read, checked and replaced, and no others."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from ..files import file_digest, is_folder, is_incidental, paths_below
from ..foreign import read_object
from ..naming import missing_source, nearest_folder
from .corpus_info import FAISS_FOLDER, FAISS_META, INDEX_FOLDER, META_FILE
from .index_files import checked_once, file_inside
from .text_index import FILES as INDEX_FILES
from .text_index import META_FILE as INDEX_META
from .vectors import INDEX_FILE

CARD = "README.md"
TABLES = ("paragraphs", "sentences", "images")
FOLDERS = (*TABLES, INDEX_FOLDER, FAISS_FOLDER)
_PARQUET = re.compile(rf"(?:{'|'.join(TABLES)})/[\w.-]+\.parquet")
_FAISS = re.compile(rf"{FAISS_FOLDER}/[\w.-]+/(?:{re.escape(INDEX_FILE)}|{re.escape(FAISS_META)})")
_INDEX = {f"{INDEX_FOLDER}/{name}" for name in (*INDEX_FILES, INDEX_META)}


def _is_ours(name: str) -> bool:
    return name in _INDEX or bool(_PARQUET.fullmatch(name) or _FAISS.fullmatch(name))


def saved_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of that name, or that of the Hub's data set repository.

    Raises:
        FileNotFoundError: there is neither.
    """
    folder = Path(name_or_path)
    if reason := missing_source(name_or_path):
        raise FileNotFoundError(
            f"The knowledge {name_or_path} is neither a folder nor a data set repository of the Hub: {reason}."
        )
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(name_or_path), repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:  # no such repository, no network
        raise FileNotFoundError(
            f"{name_or_path} is neither a folder nor a data set repository that can be had from the Hub "
            f"({type(error).__name__}){nearest_folder(folder)}."
        ) from error


def listed_files(folder: Path) -> dict[str, str]:
    """Return the files of a saved corpus with their digests, as its `knowledge.json` lists them.

    Raises:
        ValueError: it lists none, or one that no corpus has.
    """
    file = folder / META_FILE
    found = read_object(file).get("files")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file} names no files: it is not a corpus written by save_pretrained.")
    for name, digest in found.items():
        if not _is_ours(name) or not isinstance(digest, str):
            raise ValueError(f"{file} names {name[:80]!r}, which is no file of a corpus with its digest.")
    return found


def check_tables_of(folder: Path, files: dict[str, str], cache: Path) -> list[str]:
    """Return the names of the tables' files among those of a saved corpus; they are those that were saved.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one has another digest; the message names it.
    """
    names = [name for name in files if not name.startswith((f"{INDEX_FOLDER}/", f"{FAISS_FOLDER}/"))]
    found = []
    for name in names:
        try:
            found.append(file_inside(folder, name))
        except FileNotFoundError:
            raise FileNotFoundError(f"The knowledge corpus in {folder} lacks its file {name}.") from None

    def check() -> bool:
        for file, name in zip(found, names, strict=True):
            if file_digest(file) != files[name]:
                raise ValueError(f"{file} is not the file that {META_FILE} names: its digest differs.")
        return True

    checked_once(cache, found, ["saved", [files[name] for name in names]], check)
    return names


def check_target(folder: Path) -> None:
    """Check that a corpus may be saved in a folder: it is missing or empty, or holds a saved corpus and nothing else.

    Raises:
        ValueError: it holds something else; the message names a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder to save the corpus in.")
    first = next((path.name for path in paths_below(folder)), None)
    if first is None:
        return
    told = "nothing is saved there, for it would be lost; name a new or empty folder"
    if not (folder / META_FILE).is_file():
        raise ValueError(f"{folder} holds {first}, and no saved corpus: {told}.")
    files = listed_files(folder)
    if foreign := _foreign(folder, {*files, META_FILE, CARD}):
        raise ValueError(f"{folder} holds {foreign[0]}, which is no file of the corpus saved there: {told}.")


def _foreign(folder: Path, own: set[str]) -> Sequence[str]:
    incidental = {path.name for path in folder.iterdir() if is_incidental(path)}  # further down one would be lost
    paths = (path for path in folder.rglob("*") if not is_folder(path) and not is_incidental(path))
    names = (path.relative_to(folder).as_posix() for path in paths)
    names = (name for name in names if name.split("/")[0] not in incidental)
    return sorted(name for name in names if name not in own and name not in _INDEX and not _FAISS.fullmatch(name))
