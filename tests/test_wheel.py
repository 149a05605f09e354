"""The wheel holds all that the scripts need, and works from any folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from re_runs import mnre_line, pairs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel, and copies of the scripts that can't see the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv", "out", "*.egg-info", "build", "__pycache__", ".*_cache"),
    )
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    (folder / "scripts").mkdir()
    for script in ("run_ner.py", "run_re.py"):
        shutil.copy(ROOT / script, folder / "scripts")
    shutil.copytree(ROOT / "dataset_scripts", folder / "scripts" / "dataset_scripts")
    (folder / "elsewhere").mkdir()
    shutil.rmtree(source)
    return folder, wheel


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_contents(installed):
    names = zipfile.ZipFile(installed[1]).namelist()
    packages = {name.split("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {"modeling_more"}
    recipes = {Path(name).name for name in names if "/recipes/" in name}
    assert (
        recipes == {path.name for path in (ROOT / "modeling_more" / "recipes").glob("*.yaml")} and len(recipes) == 15
    )
    assert not [name for name in names if "shared" in name or name.endswith((".txt.gz", ".conll"))]


def test_scripts_run_from_another_folder(installed, tiny_encoder, tmp_path):
    folder, _ = installed
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        lines = "".join(f"IMGID:{split}{i}\nAda\tB-PER\nin\tO\nOslo\tB-LOC\n\n" for i in range(6))
        (data / f"{split}.txt").write_text(lines)
    where = run(folder, "-c", "import modeling_more; print(modeling_more.__file__)")
    assert where.startswith(str(folder / "site"))
    run(folder, str(folder / "scripts" / "dataset_scripts" / "twitter17.py"), "--data_dir", str(data),
        "--output_dir", str(tmp_path / "set"), "--cache_dir", str(tmp_path / "cache"))  # fmt: skip
    assert (tmp_path / "set" / "README.md").is_file()
    run(folder, str(folder / "scripts" / "run_ner.py"), "--dataset", str(tmp_path / "set"), "--num_train_epochs", "1",
        "--model_name_or_path", tiny_encoder("bert"), "--output_dir", "trained", "--use_cpu",
        "--cache_dir", str(tmp_path / "cache"))  # fmt: skip
    results = json.loads((folder / "elsewhere" / "trained" / "all_results.json").read_text())
    assert results["train_posts"] == 6


def test_relation_scripts_run_from_another_folder(installed, tiny_encoder, tmp_path):
    folder, _ = installed
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "val", "test"):
        (data / f"{split}.txt").write_text("\n".join(map(mnre_line, pairs(6))))
    run(folder, str(folder / "scripts" / "dataset_scripts" / "mnre.py"), "--data_dir", str(data),
        "--output_dir", str(tmp_path / "set"), "--cache_dir", str(tmp_path / "cache"))  # fmt: skip
    run(folder, str(folder / "scripts" / "run_re.py"), "--dataset", str(tmp_path / "set"), "--num_train_epochs", "1",
        "--model_name_or_path", tiny_encoder("bert"), "--output_dir", "relations", "--use_cpu",
        "--cache_dir", str(tmp_path / "cache"))  # fmt: skip
    results = json.loads((folder / "elsewhere" / "relations" / "all_results.json").read_text())
    assert results["train_posts"] == 6 and "test_accuracy" in results


def test_three_lines_and_the_command_in_an_empty_folder(installed, tiny_encoder, tmp_path):
    """With the wheel alone a saved model is used from anywhere, by transformers' pipeline and by `more`."""
    from mixture_experts import save_expert

    folder, _ = installed
    model = save_expert(tmp_path / "model", "entities", tiny_encoder("bert"), knowledge_column=None)
    lines = [
        "import modeling_more",
        "from transformers import pipeline",
        f"pipe = pipeline('more-ner', model={model!r})",
    ]
    told = run(
        folder, "-c", "\n".join([*lines, "import json; print(json.dumps(pipe('Rivera joins Northfield United')))"])
    )
    found = json.loads(told.splitlines()[-1])
    assert found["text"] == "Rivera joins Northfield United" and found["entities"]
    command = folder / "site" / "bin" / "more"
    shown = run(folder, str(command), "predict", model, "Rivera joins Northfield United")
    assert [e["text"] for e in json.loads(shown)["entities"]] == [e["text"] for e in found["entities"]]
    assert "usage: more" in run(folder, str(command), "--help")
