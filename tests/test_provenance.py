"""What a user's runs wrote is remembered where no cleared cache takes it along."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_more.files import user_cache
from modeling_more.provenance import is_own, remember

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MORE_CACHE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_cleared_cache_takes_no_mark_along(tmp_path: Path, home: Path) -> None:
    """In processes of their own, as the cache's place is read once."""
    file = tmp_path / "arguments.json"
    file.write_text("{}")
    code = "import sys\nfrom pathlib import Path\nfrom modeling_more.provenance import is_own, remember\n"
    env = {**os.environ, "HF_HOME": str(home / ".cache" / "huggingface"), "PYTHONPATH": str(ROOT)}

    def said(command: str) -> str:
        words = [sys.executable, "-c", code + command, str(file)]
        return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout

    assert said("print(is_own(Path(sys.argv[1])))") == "False\n"
    said("remember(Path(sys.argv[1]))")
    shutil.rmtree(home / ".cache", ignore_errors=True)
    assert said("print(is_own(Path(sys.argv[1])))") == "True\n"


@pytest.mark.parametrize("name", ["XDG_DATA_HOME", "MORE_CACHE"])
def test_the_place_can_be_chosen(name: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "arguments.json"
    file.write_text("{}")
    monkeypatch.setenv(name, str(tmp_path / "there"))
    remember(file)
    place = tmp_path / "there" / "own" if name == "MORE_CACHE" else tmp_path / "there" / "more" / "own"
    assert is_own(file) and len(list(place.iterdir())) == 1 and not home.exists()
    assert (name == "MORE_CACHE") == (user_cache() == tmp_path / "there")
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert not is_own(file)
