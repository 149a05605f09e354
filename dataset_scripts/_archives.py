"""Download and unpack the archives of data sets, and find the files of the splits."""

import errno
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from datasets.utils import tqdm

from modeling_more.data.archives import extract_archive
from modeling_more.files import file_digest, locked, new_file, remove_strays_of

logger = logging.getLogger(__name__)

DEFAULT_DATA_URL = (
    "https://modelscope.cn/api/v1/datasets/caijiong_sijun/MoRE-processed-data/repo/files?Revision=master&FilePath="
)
MAX_DOWNLOAD = 4 << 30  # bytes of an archive
SPLITS = {"train": ("train",), "validation": ("dev", "valid", "val", "validation"), "test": ("test",)}
SUFFIXES = (".txt", ".conll", ".json", ".jsonl")
ARCHIVE_SUFFIX = {"none": "", "text": "-txt", "image": "-img"}

Files = dict[str, Path]  # split -> file


def archive_url(name: str) -> str:
    """Return the address of an archive: below $MORE_DATA_URL if that is set, else where the authors published it."""
    base = os.environ.get("MORE_DATA_URL") or DEFAULT_DATA_URL
    return f"{base}{name}.zip" if base.endswith(("=", "/")) else f"{base}/{name}.zip"


def download(url: str, folder: Path, timeout: float = 30) -> Path:
    """Download a zip file once, and keep it in `folder` under a name made of its address.

    Raises:
        ConnectionError: it can't be fetched; the sentence names the address and --data_dir.
        ValueError: what came is no zip file.
    """
    name = url.rsplit("/", 1)[-1].rsplit("=", 1)[-1]
    path = folder / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.is_file():
        return path
    elsewhere = "give --data_dir a folder or zip file with the data"
    with locked(path, f"downloads {name}", beside=True, wait=True):
        if path.is_file():  # by now
            return path
        remove_strays_of(path)
        with new_file(path) as beside:
            with open(beside, "wb") as copy:
                try:
                    _fetch(url, copy, name, timeout)
                except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not an address at all
                    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise OSError(error.errno, f"{path} can't be written ({error.strerror})") from None  # type: ignore[union-attr]
                    told = isinstance(error, urllib.error.HTTPError)
                    reason = f"HTTP {error.code} {error.reason}" if told else error  # type: ignore[union-attr]
                    raise ConnectionError(f"{name} can't be downloaded from {url} ({reason}); {elsewhere}.") from None
            if not zipfile.is_zipfile(beside):
                raise ValueError(f"{url}: what came is no zip file; {elsewhere}.")
    return path


def _fetch(url: str, copy: BinaryIO, name: str, timeout: float) -> None:
    logger.info("Downloading %s", url)
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        length = answer.headers.get("Content-Length")
        expected = int(length) if length else None
        with tqdm(total=expected, unit="B", unit_scale=True, desc=name) as bar:
            while block := answer.read(1 << 16):
                if copy.tell() > MAX_DOWNLOAD:
                    raise ValueError(f"more than {MAX_DOWNLOAD} bytes came, no archive has so many")
                copy.write(block)
                bar.update(len(block))
    if expected is not None and copy.tell() != expected:
        raise ConnectionError(f"{copy.tell()} of {expected} bytes came")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive in `folder`, under a name made of its content, as others may have its name."""
    return extract_archive(archive, folder / f"{archive.stem}-{file_digest(archive)[:16]}")


def _split_of(path: Path) -> tuple[str, bool] | None:
    """Return the split that a file is named by and whether its name is just that, or None."""
    stem = path.stem.lower()
    parts = set(re.split(r"[^a-z]+", stem))
    named = [split for split, names in SPLITS.items() if parts & set(names)]
    return (named[0], stem in SPLITS[named[0]]) if len(named) == 1 else None


def _choose(paths: Sequence[Path], folder: Path) -> Files:
    """Choose a file for each split, `train.txt` before `twitter.train.txt`; raise ValueError for a tie."""
    found: dict[str, dict[bool, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(paths):
        if named := _split_of(path):
            found[named[0]][named[1]].append(path)
    chosen = {}
    for split, by_exactness in found.items():
        best = by_exactness.get(True) or by_exactness[False]
        if len(best) > 1:
            names = " and ".join(str(path.relative_to(folder)) for path in best[:2])
            raise ValueError(f"{folder}: {names} both look like the {split} split; give --data_dir a folder with one.")
        chosen[split] = best[0]
    return chosen


def find_splits(folder: Path, recursive: bool = True) -> Files:
    """Find the files of train, dev|valid|val|validation and test (.txt, .conll, .json, .jsonl) in a folder.

    Files lie at any depth, hidden ones and `__MACOSX` are passed over; a folder with all three comes before others.

    Raises:
        ValueError: two files, or two folders, are equally good.
    """
    paths = []
    for path in folder.rglob("*") if recursive else folder.glob("*"):
        inner = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in inner)
        if not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            paths.append(path)
    complete = []
    for parent in sorted({path.parent for path in paths}):
        beside = [path for path in paths if path.parent == parent]
        if {named[0] for path in beside if (named := _split_of(path))} == set(SPLITS):
            complete.append(_choose(beside, folder))
    if len(complete) > 1:
        names = " and ".join(str(next(iter(files.values())).parent) for files in complete[:2])
        raise ValueError(f"{folder}: {names} both hold train, dev and test; give --data_dir one of them.")
    return complete[0] if complete else _choose(paths, folder)


def named_in(data_dir: Path, names: Sequence[str]) -> Path | None:
    """Find the folder or zip file in `data_dir` of one of the names, in any case; the first name wins."""
    inside = {path.name.lower(): path for path in sorted(data_dir.iterdir())}
    for name in names:
        for candidate in (name.lower(), f"{name.lower()}.zip"):
            path = inside.get(candidate)
            if path is not None and (path.is_dir() or candidate.endswith(".zip")):
                return path
    return None


def find_source(data_dir: Path, names: Sequence[str], retrieval: str, archives: Path) -> tuple[Files, Path]:
    """Find the files of a set below `data_dir`, and the folder or zip file they are from.

    The source is, in this order: `data_dir` if it is a zip file or holds the three splits; the archive of this
    retrieval in it (packed or not), else the bare one; the only zip file in it; the splits anywhere below.

    Args:
        data_dir: folder or zip file.
        names: names of the bare archive, the authors' first.
        retrieval: "none", "text" or "image".
        archives: folder for unpacked zip files.

    Raises:
        FileNotFoundError: no `data_dir`, or a split is missing.
        ValueError: more than one choice, or an archive of the other retrieval.
    """
    if not data_dir.exists():
        raise FileNotFoundError(f"{data_dir}: no such folder or zip file; --data_dir should be where the data is.")
    source = data_dir
    if data_dir.is_dir() and set(find_splits(data_dir, recursive=False)) != set(SPLITS):
        wanted = ["", "-txt", "-img"] if retrieval == "none" else [ARCHIVE_SUFFIX[retrieval], ""]
        zips = [path for path in data_dir.iterdir() if path.suffix.lower() == ".zip"]
        named = named_in(data_dir, [f"{name}{suffix}" for suffix in wanted for name in names])
        source = named or (zips[0] if len(zips) == 1 else data_dir)
    kind = {"text": "image", "image": "text"}.get(retrieval, "none")
    if kind != "none" and source.name.lower().removesuffix(".zip") in [
        f"{name}{ARCHIVE_SUFFIX[kind]}".lower() for name in names
    ]:
        raise ValueError(f"{source}: holds the knowledge of {kind} retrieval; --retrieval {kind} reads it.")
    if source.is_file():
        if source.suffix.lower() != ".zip":
            raise ValueError(f"{source}: neither a folder nor a zip file; --data_dir should be one of them.")
        folder = unpack(source, archives)
    else:
        folder = source
    files = find_splits(folder)
    missing = [split for split in SPLITS if split not in files]
    if missing:
        looked_for = " or ".join(f"{name}.txt" for name in SPLITS[missing[0]])
        raise FileNotFoundError(f"{source}: no {missing[0]} split; a file {looked_for} should be in it.")
    return {split: files[split] for split in SPLITS}, source
