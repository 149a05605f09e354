"""Archives of strangers, folders that are being published, and what killed runs leave."""

import bz2
import os
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from dataset_scripts import _publish
from dataset_scripts._archives import download, unpack
from modeling_more.data.archives import extract_archive
from modeling_more.files import file_digest, locked

ROOT = Path(__file__).resolve().parents[2]
ROW = {"id": "1", "tokens": ["Ada", "sings"], "ner_tags": ["B-PER", "O"]}


def zipped(path: Path, *members: tuple[str, bytes, int], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, content)
    return path


def test_an_archive_holds_files_and_nothing_is_left_of_others(tmp_path: Path) -> None:
    good = ("set/train.txt", b"Ada\tO\n", stat.S_IFREG | 0o644)
    for mode, kind in (
        (stat.S_IFLNK, "link"),
        (stat.S_IFCHR, "device"),
        (stat.S_IFIFO, "device"),
        (stat.S_IFSOCK, ""),
    ):
        bad = zipped(tmp_path / "a.zip", good, ("set/x", b"/etc/passwd", mode | 0o777))
        with pytest.raises(ValueError, match=f"a.zip: 'set/x' is a {kind}"):
            extract_archive(bad, tmp_path / "out" / "a")
    # a file that the header calls small, and a folder that another member is a file of
    bomb = bytearray(zipped(tmp_path / "b.zip", ("x", bytes(3_000_000), stat.S_IFREG)).read_bytes())
    directory = bomb.rindex(b"PK\1\2")
    for at in (22, directory + 24):
        bomb[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "b.zip").write_bytes(bomb)
    for options in ({}, {"max_bytes": 100}):
        with pytest.raises(ValueError, match="b.zip"):
            extract_archive(tmp_path / "b.zip", tmp_path / "out" / "a", **options)
    zipped(tmp_path / "c.zip", ("x", b"a", 0), ("x/y", b"b", 0))
    with pytest.raises(OSError, match=r"c\.zip: can't be unpacked to .* \("):
        extract_archive(tmp_path / "c.zip", tmp_path / "out" / "a")
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        cut = bytearray(zipped(tmp_path / "d.zip", ("x", os.urandom(9000), 0), method=method).read_bytes())
        cut[100:2000] = bytes(1900)
        (tmp_path / "d.zip").write_bytes(cut)
        with pytest.raises((ValueError, OSError), match=r"d\.zip"):
            extract_archive(tmp_path / "d.zip", tmp_path / "out" / "a")
    assert not bz2.compress(b"") == b"" and not any((tmp_path / "out").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from modeling_more import files
replace = os.replace
def killed(source, target):
    if str(target) == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)
os.replace = killed
from dataset_scripts._archives import download, unpack
if sys.argv[1] == "unpack":
    unpack(Path(sys.argv[3]), Path(sys.argv[2]).parent)
else:
    download(sys.argv[3], Path(sys.argv[2]).parent.parent)
"""


def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("train.txt", b"Ada\tO\n", 0))
    unpacked = tmp_path / "out" / f"a-{file_digest(archive)[:16]}"
    loaded = download(archive.as_uri(), tmp_path / "loads")
    loaded.unlink()
    for what, target, source in (("unpack", unpacked, str(archive)), ("download", loaded, archive.as_uri())):
        command = [sys.executable, "-c", KILLED, what, str(target), source]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert any(path.name.endswith(".tmp") for path in target.parent.iterdir())
    assert unpack(archive, tmp_path / "out") == unpacked and download(archive.as_uri(), tmp_path / "loads") == loaded
    for target in (unpacked, loaded):
        assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_folder_that_is_being_published_is_held(tmp_path: Path) -> None:
    posts = DatasetDict(train=Dataset.from_list([ROW]))
    card = _publish.DatasetCard("---\nconfigs:\n- config_name: none\n---\n")
    stray = tmp_path / ".out.0123abcd.tmp"
    stray.mkdir()
    with locked(tmp_path / "out", "publishes a data set", beside=True):
        with pytest.raises(ValueError, match="out is in use: process .* publishes a data set there since"):
            _publish.write_folder({"none": posts}, card, tmp_path / "out")
    _publish.write_folder({"none": posts}, card, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
