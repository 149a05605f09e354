"""What file browsers, notebooks and transfers to the Hub put into folders hinders nobody, stays, and is not sent."""

from pathlib import Path

import pytest

import run_ner
from dataset_scripts._publish import check_free
from knowledge_rows import ARTICLES, make
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.training.results import published
from ner_runs import told, training

KEPT = (".DS_Store", "Thumbs.db", ".ipynb_checkpoints/a-checkpoint.ipynb", ".cache/huggingface/download/a.metadata")


def put(*folders: str | Path) -> list[Path]:
    paths = [Path(folder, name) for folder in folders for name in KEPT]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return paths


def stays(paths: list[Path]) -> bool:
    """Whether all are there, but those that a file browser writes anew."""
    return all(path.read_text() == "mine" for path in paths if path.name not in KEPT[:2])


@pytest.mark.parametrize("more", [[], ["--seeds", "3", "4"]])
def test_a_run_is_overwritten_around_them(more, here):
    for run, inner in (("plain", ("predictions", "checkpoints", "checkpoints/last", "checkpoints/best")),
                       ("several", ("seed-1", "seed-2/predictions", "seed-2/checkpoints/last"))):  # fmt: skip
        paths = put(run, *(Path(run, name) for name in inner))
        run_ner.main(training(here, run, "--overwrite_output_dir", *more))
        assert stays(paths) and all(path.exists() for path in paths[: len(KEPT)])
        assert not {name.split("/")[0] for name in published(Path(run), True)} & {".DS_Store", ".cache", "Thumbs.db"}
        run_ner.main(training(here, run, "--overwrite_output_dir", *more))
        assert stays(paths)


def test_a_run_begins_and_goes_on_beside_them(here, capsys):
    paths = put("new", "new/checkpoints", "new/checkpoints/last", "new/crossfit", "new/experts/text")
    run_ner.main(training(here, "new"))
    put("new/checkpoints/last", "new/checkpoints/best")
    resume = ["--num_train_epochs", "2", "--resume_from_checkpoint", "latest"]
    run_ner.main(training(here, "new", *resume))
    assert stays(paths)
    put("empty")
    run_ner.main(training(here, "empty", "--overwrite_output_dir"))
    # a file of this name that is a link, or a cache of something else, is somebody's
    Path("plain/.cache/pip").mkdir(parents=True)
    assert "plain/.cache" in told(capsys, training(here, "plain", "--overwrite_output_dir"))


def test_corpora_and_data_sets_are_saved_around_them(tmp_path):
    corpus = make(tmp_path, ARTICLES).corpus
    for _ in range(3):
        paths = put(tmp_path / "saved")
        corpus.save_pretrained(tmp_path / "saved")
        assert stays(paths)
    (tmp_path / "saved/sentences/.DS_Store").write_text("")
    assert KnowledgeCorpus.from_pretrained(tmp_path / "saved", tmp_path / "cache").fingerprint == corpus.fingerprint
    corpus.save_pretrained(tmp_path / "saved")
    # where it would be lost it hinders as before
    put(tmp_path / "saved/sentences")
    with pytest.raises(ValueError, match="saved holds sentences/.cache/huggingface"):
        corpus.save_pretrained(tmp_path / "saved")
    put(tmp_path / "set")
    check_free(tmp_path / "set", overwrite=False)
    (tmp_path / "set" / "README.md").write_text("- more\n")
    with pytest.raises(ValueError, match="no published data set"):
        check_free(tmp_path / "set", overwrite=True)
