"""A published data set names its own files: no path or address is opened because its README says so."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from audit import watched
from datasets import Dataset

import ner_runs
from hub_server import Repo
from modeling_more.data.sources import load_source
from modeling_more.data.tasks import ENTITIES

ROWS = {"id": ["a"], "tokens": [["Ada"]], "ner_tags": [["O"]]}


@pytest.fixture
def elsewhere():
    """The address of a server, and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def publish(folder, text, name="README.md"):
    (folder / "none").mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(ROWS).to_parquet(folder / "none" / "train.parquet")
    (folder / name).write_text(text)
    return str(folder)


def card(path, key="data_files"):
    files = [{"split": "train", "path": path}] if key == "data_files" else path
    return f"---\n{json.dumps({'configs': [{'config_name': 'none', key: files}]})}\n---\n"


def load(folder, tmp_path):
    return load_source(ENTITIES, folder, cache_dir=str(tmp_path / "cache")).rows


def test_its_own_files_are_read(tmp_path):
    for path in ("none/train.parquet", "none/*.parquet", ["none/train.parquet"], "none/tr..n.parquet"):
        if path == "none/tr..n.parquet":
            (tmp_path / "set" / "none" / "train.parquet").rename(tmp_path / "set" / path)
            (tmp_path / "set" / "README.md").write_text(card(path))
            assert len(load(str(tmp_path / "set"), tmp_path)["train"]) == 1
        else:
            assert len(load(publish(tmp_path / "set", card(path)), tmp_path)["train"]) == 1


@pytest.mark.parametrize("key", ["data_files", "data_dir"])
def test_paths_and_addresses_are_refused_before_they_are_opened(key, tmp_path, elsewhere):
    address, asked = elsewhere
    private = tmp_path / "private" / "train.parquet"
    private.parent.mkdir()
    Dataset.from_dict(ROWS).to_parquet(private)
    for path in (
        str(private), "../private/train.parquet", "none/../../private/train.parquet", f"file://{private}",
        f"{address}/x.parquet", f"zip://x.parquet::{address}/x.zip", "s3://bucket/x.parquet", "~/x.parquet",
        "hf://datasets/org/private/x.parquet", "C:\\\\private\\\\x.parquet", "\\\\\\\\server\\\\share\\\\x.parquet",
    ):  # fmt: skip
        path = path.replace("\\\\", "\\")
        with pytest.raises(ValueError, match=r"README\.md names .* as its data, which lies elsewhere"):
            load(publish(tmp_path / "set", card(path, key)), tmp_path)
        with pytest.raises(ValueError, match="lies elsewhere"):
            load(publish(tmp_path / "set", card(["none/train.parquet", path], key)), tmp_path)
    settings = json.dumps({"configs": [{"config_name": "none", "data_files": str(private)}]})
    folder = publish(tmp_path / "other", card("none/train.parquet"))
    publish(tmp_path / "other", settings, ".huggingface.yaml")
    with pytest.raises(ValueError, match=r"\.huggingface\.yaml names"):
        load(folder, tmp_path)
    assert not asked


def test_damaged_cards_and_other_kinds_are_one_sentence(tmp_path):
    for text, told in (
        ("---\nconfigs: [\n---\n", "README.md can't be read"),
        (f"---\nconfigs: {'[' * 5000}\n---\n", "README.md can't be read"),
        ("---\nconfigs: 3\n---\n", "can't be loaded"),
    ):
        with pytest.raises(ValueError, match=told):
            load(publish(tmp_path / "set", text), tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.txt").write_text("Ada")
    (tmp_path / "texts" / "README.md").write_text(card("train.txt"))
    with pytest.raises(ValueError, match="is read by text, it must be Parquet or one of"):
        load(str(tmp_path / "texts"), tmp_path)


def test_a_set_of_the_hub_sends_nothing_elsewhere(tmp_path, hub, elsewhere):
    address, asked = elsewhere
    publish(tmp_path / "set", card(f"{address}/x.parquet"))
    hub.repos["dataset", "evil/posts"] = Repo()
    files = {str(file.relative_to(tmp_path / "set")): file.read_bytes() for file in (tmp_path / "set").rglob("*.*")}
    hub.repos["dataset", "evil/posts"].commit(files, "main")
    command = [sys.executable, str(ner_runs.ROOT / "run_ner.py"), "--dataset", "evil/posts", "--use_cpu"]
    command += ["--output_dir", str(tmp_path / "out"), "--model_name_or_path", "org/unused"]
    seen = watched(command, hub.env, hosts=[hub.endpoint.removeprefix("http://")])
    assert seen.done.returncode == 1 and "lies elsewhere and is not opened" in seen.done.stderr, seen.done.stderr
    assert not asked and not seen.found, seen.found


def test_links_out_of_a_set_are_not_followed(tmp_path):
    folder = publish(tmp_path / "set", card("none/train.parquet"))
    place = tmp_path / "private.parquet"
    (tmp_path / "set" / "none" / "train.parquet").rename(place)
    (tmp_path / "set" / "none" / "train.parquet").symlink_to(place)
    with pytest.raises(ValueError, match="train.parquet is a link out of .* and is not opened"):
        load(folder, tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "set")  # the user's own link to a whole set is followed
    (tmp_path / "set" / "none" / "train.parquet").unlink()
    place.rename(tmp_path / "set" / "none" / "train.parquet")
    assert len(load(str(tmp_path / "link"), tmp_path)["train"]) == 1
