"""What transformers' own push_to_hub uploads into a run's repository is loaded again, and the rest stays checked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Repo
from mixture_experts import save_expert
from modeling_more import MoReMixtureForTokenClassification, MoReMixtureProcessor, MoReProcessor
from modeling_more.files import write_manifest
from ner_runs import ROOT

PUSH = """
import json, sys
import torch
from transformers import AutoModelForTokenClassification, AutoProcessor
from modeling_more.training.models import check_saved
refused = []
for number, (source, what, how, folder) in enumerate(json.loads(sys.argv[1])):
    saved = (AutoModelForTokenClassification if what == "model" else AutoProcessor).from_pretrained(source)
    if what == "model":
        for parameter in saved.parameters():
            parameter.data += 1
    else:
        for one in getattr(saved, "processors", [saved]):
            one.top_k += 1
    repository, options = f"org/pushed-{number}", {"revision": "branch"} if how == "branch" else {}
    if how == "save":
        saved.save_pretrained(folder, push_to_hub=True, repo_id=repository)
    else:
        saved.push_to_hub(repository, **options)
    try:
        check_saved(repository, **options)
    except ValueError as error:
        refused.append(f"{what} by {how}: {error}")
        continue
    loaded = type(saved).from_pretrained(repository, **options)
    if what == "model":
        assert all(torch.equal(*pair) for pair in zip(saved.parameters(), loaded.parameters(), strict=True))
    else:
        assert vars(getattr(loaded, "processors", [loaded])[-1])["top_k"] == 11
print(json.dumps(refused))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_encoder):
    """Folders as finished runs leave them: of an expert and of a mixture."""
    root = tmp_path_factory.mktemp("finished")
    expert = Path(save_expert(root / "expert", "entities", tiny_encoder("bert")))
    mixture = MoReMixtureForTokenClassification.from_experts([expert, expert], ["one", "two"])
    mixture.save_pretrained(root / "mixture")
    processors = [MoReProcessor.from_pretrained(expert) for _ in range(2)]
    MoReMixtureProcessor(processors, ["one", "two"]).save_pretrained(root / "mixture")
    for folder in (expert, root / "mixture"):
        (folder / "holdout_ids.json").write_text("[]")
        write_manifest(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()])
    return root


CASES = [
    ("expert", "model", "push"),
    ("expert", "processor", "push"),
    ("expert", "model", "save"),
    ("expert", "processor", "save"),
    ("expert", "model", "branch"),
    ("mixture", "model", "push"),
    ("mixture", "processor", "push"),
]


def test_a_pushed_part_locks_nobody_out(finished, hub, tmp_path):
    contents, given = [], []
    for number, (kind, what, how) in enumerate(CASES):
        folder = finished / kind
        files = (path for path in folder.rglob("*") if path.is_file())
        contents.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
        hub.repos["model", f"org/pushed-{number}"] = Repo()
        hub.repos["model", f"org/pushed-{number}"].commit(contents[-1], "main")
        given.append([str(folder), what, how, str(tmp_path / f"saved-{number}")])
    env = hub.env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PUSH, json.dumps(given)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
    for number, (content, (_, _, how)) in enumerate(zip(contents, CASES, strict=True)):
        pushed = hub.files(f"org/pushed-{number}", revision="branch" if how == "branch" else "main")
        before, after = (json.loads(files["manifest.json"])["files"] for files in (content, pushed))
        changed = {name for name in before if pushed[name] != content[name]}
        assert changed and after.items() <= before.items() and not changed & after.keys()
        assert "holdout_ids.json" in after  # what stays is checked as before
        assert len(hub.repos["model", f"org/pushed-{number}"].commits) == 3  # empty, the run's, and this one
        assert not (tmp_path / f"saved-{number}" / "manifest.json").exists()
