"""A checkpoint gives back what it was made of, and damage to any of its files is told in one sentence."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ner_runs
import run_ner

Options = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Any) -> tuple[Path, Options]:
    """A folder with a run that was interrupted after one epoch of two, and the options to go on with a copy of it."""
    root = tmp_path_factory.mktemp("begun")
    files = {name: str(root / f"{name}.jsonl") for name in ("train", "dev", "test")} | {"cache": str(root / "cache")}
    for name, rows in (("train", ner_runs.posts(8)), ("dev", ner_runs.posts(4, 30)), ("test", ner_runs.posts(4, 50))):
        ner_runs.write_jsonl(Path(files[name]), rows)

    def options(out: Path) -> list[str]:
        return ner_runs.options({**files, "out": str(out)}, tiny_encoder("bert"))

    def interrupted(*arguments: Any) -> dict[int, list[str]]:
        if (root / "out" / "checkpoints" / "last").exists():  # the dev scores of the second epoch
            raise KeyboardInterrupt
        return predict_dev(*arguments)

    run_ner.main(options(root / "whole"))
    predict_dev = run_ner.predict_dev
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="interrupted"):
        patch.setattr(run_ner, "predict_dev", interrupted)
        run_ner.main(options(root / "out"))
    return root, options


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def damaged_copies(source: Path, to: Path) -> Iterator[tuple[str, Path]]:
    """Yield (what was done, copy of the run): one file of the checkpoint is cut, or one of its bits is another."""
    rng = random.Random(0)
    parts = [path for path in sorted((source / "checkpoints").rglob("*")) if path.is_file() and path.stat().st_size]
    for path in parts:
        for kind in ("cut", "flipped"):
            shutil.rmtree(to, ignore_errors=True)
            shutil.copytree(source, to)
            copy = to / path.relative_to(source)
            content = bytearray(copy.read_bytes())
            if kind == "cut":
                del content[rng.randrange(len(content)) :]
            else:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            copy.write_bytes(content)
            yield f"{path.relative_to(source)} {kind}", to


def test_a_whole_checkpoint_goes_on_bit_for_bit(begun: tuple[Path, Options], tmp_path: Path) -> None:
    root, options = begun
    shutil.copytree(root / "out", tmp_path / "out")
    run_ner.main([*options(tmp_path / "out"), "--resume_from_checkpoint", "latest"])
    assert weights(tmp_path / "out") == weights(root / "whole")


def test_any_damage_is_told_in_one_sentence_or_changes_nothing(begun: tuple[Path, Options], tmp_path: Path) -> None:
    root, options = begun
    refused = 0
    for what, copy in damaged_copies(root / "out", tmp_path / "out"):
        try:
            run_ner.main([*options(copy), "--resume_from_checkpoint", "latest"])
        except SystemExit as stopped:
            said = str(stopped.code)
            assert said.startswith("error: ") and "\n" not in said and str(copy) in said, (what, said)
            refused += 1
        else:
            assert weights(copy) == weights(root / "whole"), f"{what}: other weights in silence"
    assert refused >= 4
