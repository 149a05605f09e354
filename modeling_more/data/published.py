"""Check that a published data set consists of its own files, before any of them is fetched or read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import DatasetCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..foreign import lies_inside, require_regular

CARD, SETTINGS = "README.md", ".huggingface.yaml"  # in which a data set may name its files
MOST_BYTES = 10_000_000
#: what reads the files of a set, of all that `datasets` has
READERS = ("parquet", "json", "csv", "arrow", "imagefolder")


def check_own_files(name: str) -> None:
    """Check that what the README of a folder or Hub id names as its files lies in it.

    `datasets` would open any path and any address that stands there, and send the token of the Hub, or that of a
    cloud, to some of them.

    Raises:
        ValueError: a path leads elsewhere, or the file is damaged; the message names both.
    """
    for one in (CARD, SETTINGS):
        file = Path(name) / one
        if not Path(name).is_dir():
            try:
                file = Path(hf_hub_download(name, one, repo_type="dataset"))
            except EntryNotFoundError:
                continue
        if not file.exists():
            continue
        if require_regular(file).stat().st_size > MOST_BYTES:
            raise ValueError(f"{name}: {one} has more than {MOST_BYTES} bytes")
        try:
            text = file.read_text(encoding="utf-8")
            found = yaml.safe_load(text) if one == SETTINGS else DatasetCard(text, ignore_metadata_errors=True).data
        except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: {one} can't be read: {' '.join(str(error).split())[:200]}") from None
        for path in _paths(found):
            if not _is_inside(path):
                raise ValueError(
                    f"{name}: {one} names {path!r:.200} as its data, which lies elsewhere and is not opened: fetch it "
                    "yourself if you trust it, and name the file"
                )


def check_readers(name: str, builder: Any) -> None:
    """Raise ValueError if a set's files are of a kind that is not read, or are not its own."""
    kind = builder.info.builder_name
    if kind not in READERS:
        raise ValueError(f"{name} is read by {kind}, it must be Parquet or one of {', '.join(READERS[1:])}")
    for path in (path for paths in (builder.config.data_files or {}).values() for path in paths):
        if Path(name).is_dir():
            if not lies_inside(name, path):
                raise ValueError(
                    f"{path} is a link out of {name} and is not opened: copy it there, or name it yourself"
                )
        elif not str(path).startswith(f"hf://datasets/{name}@"):
            raise ValueError(f"{name} names {str(path)!r:.200} as its data, which lies elsewhere")


def _paths(found: Any) -> Iterator[str]:
    """Yield all that the configurations in a card name as files or folders of the set."""
    configs = found.get("configs") if hasattr(found, "get") else None
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        for key in ("data_files", "data_dir"):
            items = config.get(key)
            for item in items if isinstance(items, list) else [items]:
                paths = item.get("path") if isinstance(item, dict) else item
                yield from (path for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str))


def _is_inside(path: str) -> bool:
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor or path.startswith("~")
    return not absolute and "::" not in path and "://" not in path and ".." not in PureWindowsPath(path).parts
