"""Push models and processors to the Hub so that what a repository's manifest vouches for stays true."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from transformers.utils import PushToHubMixin

from .files import MANIFEST, write_json
from .foreign import read_object


class ManifestKept(PushToHubMixin):
    """A part of models and processors that uploads them as transformers does, with the manifest that is then true."""

    def _upload_modified_files(  # type: ignore[override]
        self, working_dir: str | os.PathLike[str], repo_id: str, files_timestamps: Mapping[str, float], **options: Any
    ) -> Any:
        """Upload what is new in a folder; `push_to_hub` and `save_pretrained(…, push_to_hub=True)` both come here."""
        home = Path(working_dir).resolve()
        new = [
            one
            for one in home.iterdir()
            if one.name != MANIFEST
            and (one.name not in files_timestamps or one.stat().st_mtime > files_timestamps[one.name])
        ]
        with TemporaryDirectory() as folder:  # the manifest of the repository is not that of the folder
            for one in new:
                (Path(folder) / one.name).symlink_to(one)
            keep_manifest(Path(folder), repo_id, options.get("revision"), options.get("token"))
            return super()._upload_modified_files(folder, repo_id, {}, **options)


def keep_manifest(folder: Path, repo_id: str, revision: str | None = None, token: Any = None) -> None:
    """Add to a folder that is to be uploaded the repository's manifest without what the upload replaces, if any."""
    manifest: dict[str, Any] = {}
    for place in dict.fromkeys([revision, None]):  # a branch that is only made now begins as the main one
        try:
            manifest = read_object(hf_hub_download(repo_id, MANIFEST, revision=place, token=token), files=dict)
            break
        except RevisionNotFoundError:
            continue
        except (EntryNotFoundError, ValueError):  # none, or one that no reader would believe
            return
    replaced = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    if replaced & manifest.get("files", {}).keys():
        files = {name: entry for name, entry in manifest["files"].items() if name not in replaced}
        write_json(folder / MANIFEST, manifest | {"files": files})
