"""Finished runs, for the tests of folders that runs share."""

import shutil

import pytest

import ner_runs
import run_ner
from ner_runs import QUICK, options


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """A folder with two finished runs, `plain` and `several` (of two seeds), and the files that made them."""
    root = tmp_path_factory.mktemp("trained")
    files = {
        "train": str(ner_runs.write_jsonl(root / "train.jsonl", ner_runs.posts(24))),
        "dev": str(ner_runs.write_conll(root / "dev.conll", ner_runs.posts(8, 30))),
        "test": str(ner_runs.write_conll(root / "test.conll", ner_runs.posts(9, 50))),
        "other": str(ner_runs.write_conll(root / "c.conll", ner_runs.posts(5, 70))),
        "knowledge": str(ner_runs.write_jsonl(root / "wiki.jsonl", ner_runs.KNOWLEDGE)),
        "cache": str(root / "cache"),
        "encoder": tiny_encoder("bert"),
    }
    for name, extra in (("plain", ["--holdout_fraction", "0.33"]), ("several", ["--seeds", "1", "2"])):
        extra += [*QUICK, "--knowledge", files["knowledge"], "--top_k", "1"]
        run_ner.main(options({**files, "out": str(root / name)}, files["encoder"], *extra, retrieval="text"))
    return root, files


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of these runs to work in, and what each run would read."""
    root, files = trained
    for name in ("plain", "several"):
        shutil.copytree(root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return files
