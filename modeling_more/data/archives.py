"""Unpack foreign zip files: whole or not at all, and never outside their folder."""

import lzma
import stat
import zipfile
import zlib
from pathlib import Path

from ..files import locked, new_folder, remove_strays_of
from ..foreign import require_regular


def extract_archive(
    archive: str | Path, folder: str | Path, max_bytes: int = 4 << 30, max_files: int = 100_000
) -> Path:
    """Unpack a zip file into `folder`, which appears only when all is unpacked, and return it.

    A folder that is already there is returned as it stands.

    Raises:
        ValueError: not a zip file, damaged or encrypted, a link, a name that leads out of the folder, or more than
            `max_bytes` (counted while unpacking, not taken from the header) or `max_files`; nothing is left behind.
        FileNotFoundError: when there is no such file.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir():
        return folder
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file.")
    try:
        with locked(folder, f"unpacks {archive.name}", beside=True, wait=True):
            if folder.is_dir():  # by now
                return folder
            remove_strays_of(folder)
            with new_folder(folder) as beside, zipfile.ZipFile(require_regular(archive)) as opened:
                _extract_members(opened, archive, beside, max_bytes, max_files)
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError),
        UnicodeDecodeError,  # in the name of a file
    ) as error:
        raise ValueError(f"{archive}: not a zip file that can be unpacked ({error}).") from None
    except OSError as error:  # bz2 has no strerror for what it can't unpack
        raise OSError(f"{archive}: can't be unpacked to {folder} ({error.strerror or error}).") from None
    return folder


def _extract_members(opened: zipfile.ZipFile, archive: Path, folder: Path, max_bytes: int, max_files: int) -> None:
    members = opened.infolist()
    if len(members) > max_files:
        raise ValueError(f"{archive}: {len(members)} files; at most {max_files} are unpacked.")
    left = max_bytes
    for member in members:
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "link" if stat.S_ISLNK(member.external_attr >> 16) else "device, pipe or socket"
            raise ValueError(f"{archive}: {member.filename!r} is a {kind}; only files are unpacked.")
        if member.flag_bits & 1:
            raise ValueError(f"{archive}: {member.filename!r} is encrypted; give an archive without a password.")
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in member.filename:
            raise ValueError(f"{archive}: {member.filename!r} leads out of the folder; names should be relative.")
        target = folder.joinpath(*parts)
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        if target.exists():
            raise ValueError(f"{archive}: {member.filename!r} stands in it twice.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, open(target, "xb") as copy:
            while block := source.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise ValueError(f"{archive}: more than {max_bytes} bytes unpacked; this is no data set of ours.")
                copy.write(block)
