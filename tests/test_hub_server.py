"""The local Hub serves the real clients: huggingface_hub, datasets and transformers, each in a process of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hub_server import LocalHub


def run(hub: LocalHub, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *args]
    return subprocess.run(command, env=hub.env, capture_output=True, text=True, timeout=300)


FOLDER = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

folder, back = Path(sys.argv[1]), Path(sys.argv[2])
api = HfApi()
for missing in ("org/none", "org/made"):
    try:
        api.model_info(missing)
        raise SystemExit("found what is not there")
    except RepositoryNotFoundError:
        pass
api.create_repo("org/made")
api.create_repo("org/made", exist_ok=True)
first = api.upload_folder(repo_id="org/made", folder_path=folder)
assert sorted(api.list_repo_files("org/made")) == ["README.md", "big.bin", "deep/er/note.txt"]
snapshot_download("org/made", local_dir=back)
for path in ("README.md", "big.bin", "deep/er/note.txt"):
    assert (back / path).read_bytes() == (folder / path).read_bytes(), path
assert ModelCard.load("org/made").data.license == "apache-2.0"
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\n")
second = api.upload_folder(repo_id="org/made", folder_path=folder, delete_patterns="deep/*", allow_patterns="*.md")
assert sorted(api.list_repo_files("org/made")) == ["README.md", "big.bin"]
old = hf_hub_download("org/made", "README.md", revision=first.oid)
assert "apache-2.0" in Path(old).read_text() and ModelCard.load("org/made").data.license == "mit"
for name, revision, error in (("x", "main", EntryNotFoundError), ("README.md", "y", RevisionNotFoundError)):
    try:
        hf_hub_download("org/made", name, revision=revision)
        raise SystemExit("found what is not there")
    except error:
        pass
"""


def test_upload_and_download_of_folders(hub: LocalHub, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# é\n")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 1000)
    (folder / "deep" / "er" / "note.txt").write_text("note")
    done = run(hub, FOLDER, str(folder), str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.files("org/made")["big.bin"] == bytes(range(256)) * 1000
    assert any(request.startswith("PUT /lfs/") for request in hub.requests)


def test_refused_upload_and_missing_token_raise(hub: LocalHub, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    script = (
        "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('org/made', exist_ok=True)\n"
        "api.upload_file(path_or_fileobj=sys.argv[1], path_in_repo='a.txt', repo_id='org/made')"
    )
    hub.refuse_uploads = True
    done = run(hub, script, str(tmp_path / "a.txt"))
    assert done.returncode != 0 and "403" in done.stderr
    assert hub.files("org/made") == {}
    hub.refuse_uploads = False
    assert run(hub, script, str(tmp_path / "a.txt")).returncode == 0
    assert hub.files("org/made") == {"a.txt": b"a"}
    del hub.env["HF_TOKEN"]
    done = run(hub, script, str(tmp_path / "a.txt"))
    assert done.returncode != 0 and "401" in done.stderr


DATASET = """
from datasets import Dataset, DatasetDict, load_dataset

def rows(start):
    return Dataset.from_dict({"id": [str(i) for i in range(start, start + 5)], "tokens": [["a", "b"]] * 5})

both = DatasetDict(train=rows(0), test=rows(5))
both.push_to_hub("org/posts", config_name="none", set_default=True)
both.map(lambda row: {"knowledge": row["id"]}).push_to_hub("org/posts", config_name="text")
assert load_dataset("org/posts")["test"]["id"][:] == ["5", "6", "7", "8", "9"]
text = load_dataset("org/posts", "text", split="train")
assert text[4] == {"id": "4", "tokens": ["a", "b"], "knowledge": "4"}
streamed = load_dataset("org/posts", "text", split="test", streaming=True)
assert next(iter(streamed))["knowledge"] == "5"
"""


def test_dataset_configurations_round_trip(hub: LocalHub) -> None:
    done = run(hub, DATASET)
    assert done.returncode == 0, done.stderr[-3000:]
    files = hub.files("org/posts", "dataset")
    assert "README.md" in files and sum(path.endswith(".parquet") for path in files) == 4


MODEL = """
import sys
import torch
from transformers import AutoModel, AutoTokenizer

model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
model.push_to_hub("org/tiny")
tokenizer.push_to_hub("org/tiny")
again = AutoModel.from_pretrained("org/tiny")
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
assert AutoTokenizer.from_pretrained("org/tiny")("Ada met Charles").input_ids == tokenizer("Ada met Charles").input_ids
"""


def test_model_and_tokenizer_round_trip(hub: LocalHub, tiny_encoder: Callable[[str], str]) -> None:
    done = run(hub, MODEL, tiny_encoder("bert"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files("org/tiny"))
