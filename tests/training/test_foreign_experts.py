"""What the options of somebody else's expert may cause: no connection, no opened file, no credential sent."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from audit import watched
from datasets import Dataset

import ner_runs
import run_ner
from hub_server import Repo
from mixture_experts import save_expert
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.provenance import HubName, remember
from modeling_more.training.arguments import DataArguments, ModelArguments, TrainingArguments
from modeling_more.training.experts import load_experts
from ner_runs import ROOT


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_encoder):
    """Experts with random weights, as if they had been downloaded: one without knowledge, one that reads text."""
    root = tmp_path_factory.mktemp("downloaded")
    return {
        name: save_expert(root / name, "entities", tiny_encoder("bert"), max_length=64, knowledge_column=column)
        for name, column in (("none", None), ("text", "knowledge_text"), ("image", "knowledge_image"))
    }


@pytest.fixture
def expert(folders, tmp_path):
    """`expert(kind, **options)` -> a folder with an arguments.json of these options that no run here wrote."""

    def make(kind="text", **options):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders[kind], folder)
        (folder / "arguments.json").write_text(json.dumps({"retrieval": kind} | options))
        (folder / "holdout_ids.json").write_text("[]")
        return str(folder)

    return make


def mix(files, experts, *more):
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--retrieval", "moe", "--experts", *experts,
        "--gate_data", "train", "--gate_epochs", "1", "--use_cpu", "--cache_dir", files["cache"],
        "--output_dir", files["out"], *more,
    ]  # fmt: skip


def test_a_strangers_address_gets_no_credential(expert, folders, files, monkeypatch):
    """A server that stands for Milvus tells what arrives there."""
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("pymilvus")
    arrived = []

    class Watcher(grpc.GenericRpcHandler):
        def service(self, call):
            arrived.append(dict(call.invocation_metadata))

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Watcher()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("MILVUS_TOKEN", "root:the-secret")
    address = f"milvus:http://127.0.0.1:{port}"
    try:
        evil = expert(knowledge=[address])
        with pytest.raises(SystemExit, match=rf"was not trained by you here.*add --knowledge {address} if you trust"):
            run_ner.main(mix(files, [evil, folders["none"]]))
        assert not arrived
        # the user's own command line opens it, with the token
        with pytest.raises(SystemExit, match="Milvus"):
            run_ner.main(mix(files, [evil, folders["none"]], "--knowledge", address))
        assert any("authorization" in one for one in arrived)
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("kind", "options", "option"),
    [
        ("text", {"knowledge": ["PATH"]}, "knowledge"),
        ("text", {"knowledge": ["org/corpus", "milvus:local.db"]}, "knowledge"),
        ("text", {"knowledge": ["file:///etc/passwd"]}, "knowledge"),
        ("text", {"knowledge": ["../private"]}, "knowledge"),
        ("text", {"knowledge": ["data/private"]}, "knowledge"),  # a folder here, though it looks like a Hub id
        ("text", {"knowledge": ["org/corpus"], "retriever": "dense", "text_model": "PATH"}, "text_model"),
        ("text", {"knowledge": ["org/corpus"], "query": "caption", "captions": "PATH"}, "captions"),
        ("text", {"knowledge": ["org/corpus"], "query": "entities", "entities": ["PATH"]}, "entities"),
        ("image", {"knowledge": ["org/corpus"], "image_model": "PATH"}, "image_model"),
        ("image", {"knowledge": ["org/corpus"], "image_model": "https://evil.example/tower"}, "image_model"),
    ],
)
def test_names_of_files_and_addresses_are_shown_not_used(kind, options, option, expert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    private = tmp_path / "data" / "private"
    private.mkdir(parents=True)
    options = json.loads(json.dumps(options).replace("PATH", str(private)))
    (one,) = load_experts([expert(kind, **options)])
    with pytest.raises(ValueError, match=rf"was not trained by you here, .* not opened: add --{option} ") as error:
        one.data(DataArguments(retrieval="moe"))
    value = options[option]
    assert all(name in str(error.value) for name in (value if isinstance(value, list) else [value]))
    # what the user repeats is used as it is
    own = one.data(DataArguments(retrieval="moe", **options))
    assert getattr(own, option) == value and not isinstance(getattr(own, option), HubName)
    # and so it is where a run here wrote the options, wherever the folder lies now
    remember(Path(one.source) / "arguments.json")
    moved = shutil.copytree(one.source, tmp_path / "moved")
    assert getattr(load_experts([str(moved)])[0].data(DataArguments(retrieval="moe")), option) == value


def test_each_keeps_its_own_corpus_among_those_that_are_given(expert):
    """Two experts of another machine, whose corpora the user permits with one option."""
    experts = load_experts([expert(knowledge=["k1.jsonl"]), expert(knowledge=["k2.jsonl"])])
    given = DataArguments(retrieval="moe", knowledge=["k1.jsonl", "k2.jsonl"])
    assert [one.data(given).knowledge for one in experts] == [["k1.jsonl"], ["k2.jsonl"]]
    moved = DataArguments(retrieval="moe", knowledge=["elsewhere.jsonl"])
    assert [one.data(moved).knowledge for one in experts] == 2 * [["elsewhere.jsonl"]]


def test_what_is_not_needed_is_dropped_and_kinds_and_numbers_act(expert, tmp_path):
    (one,) = load_experts(
        [expert(
            "image", knowledge=["org/corpus"], image_model="org/tower", top_k=3, image_dir=str(tmp_path),
            captions=str(tmp_path), text_model=str(tmp_path), unknown={"of": "another version"},
        )]
    )  # fmt: skip
    own = one.data(DataArguments(retrieval="moe"))
    assert (own.retrieval, own.top_k, own.knowledge, own.image_model) == ("image", 3, ["org/corpus"], "org/tower")
    assert own.image_dir is None and own.captions is None and own.text_model == DataArguments.text_model
    assert {type(own.knowledge[0]), type(own.image_model)} == {HubName}
    assert one.data(DataArguments(retrieval="moe", image_dir="mine")).image_dir == "mine"


def test_crossfit_trains_with_numbers_of_others_and_without_their_names(expert, tmp_path):
    names = {
        "model_name_or_path": str(tmp_path), "train_file": "a.jsonl", "cache_dir": str(tmp_path), "dataset": "org/set",
        "output_dir": str(tmp_path / "elsewhere"), "resume_from_checkpoint": str(tmp_path),
        "attn_implementation": "a/b", "data_dir": str(tmp_path), "report_to": ["wandb"],
        "hub_model_id": "evil/run", "push_to_hub": True,
    }  # fmt: skip
    (one,) = load_experts([expert("none", learning_rate=3e-4, head="softmax", max_length=77, seeds=[1], **names)])
    training = one.options_of(TrainingArguments, report_to=[])
    data, model = one.options_of(DataArguments), one.options_of(ModelArguments)
    assert (training.learning_rate, model.head, data.max_length) == (3e-4, "softmax", 77)
    assert training.output_dir == "out" and training.resume_from_checkpoint is None
    assert (data.train_file, data.cache_dir, data.dataset, data.data_dir) == (None,) * 4
    assert model.attn_implementation is None and model.model_name_or_path == ModelArguments.model_name_or_path
    with pytest.raises(ValueError, match=f"not opened: add --model_name_or_path {tmp_path}"):
        one.encoder(ModelArguments())
    assert one.encoder(ModelArguments(model_name_or_path=str(tmp_path)))["model_name_or_path"] == str(tmp_path)
    (other,) = load_experts([expert("none", model_name_or_path="org/encoder")])
    assert isinstance(other.encoder(ModelArguments())["model_name_or_path"], HubName)


def test_the_hub_is_asked_for_a_strangers_names_without_the_token(expert, folders, files, hub, tmp_path):
    articles = ner_runs.write_jsonl(tmp_path / "wiki.jsonl", ner_runs.KNOWLEDGE)
    corpus = KnowledgeCorpus.from_files([articles], tmp_path / "cache").save_pretrained(tmp_path / "corpus")
    hub.repos["dataset", "org/corpus"] = Repo()
    content = {str(file.relative_to(corpus)): file.read_bytes() for file in corpus.rglob("*") if file.is_file()}
    hub.repos["dataset", "org/corpus"].commit(content, "main")
    Dataset.from_dict({"text": ["private"]}).to_parquet(tmp_path / "private" / "train.parquet")
    run = [sys.executable, str(ROOT / "run_ner.py"), *mix(files, [expert(knowledge=["org/corpus"]), folders["none"]])]
    seen = watched(
        run, hub.env | {"OMP_NUM_THREADS": "1"}, [tmp_path / "private"], [hub.endpoint.removeprefix("http://")]
    )
    assert seen.done.returncode == 0, seen.done.stderr[-2000:]
    assert any("org/corpus" in path for path in hub.requests) and not hub.with_token
    assert not seen.found, seen.found


def test_a_wrong_expert_is_told_before_anything_is_looked_for(expert, folders, files, tiny_encoder, tmp_path):
    relations = save_expert(tmp_path / "relations", "relations", tiny_encoder("bert"))
    image = expert("image", knowledge=["org/corpus"], image_model="org/tower")
    env = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for experts, more, told in (
        ([image, relations], [], "is a MoReForRelationExtraction, this mixture takes MoReForTokenClassification"),
        ([image, folders["none"]], ["--gate_data", "holdout"], "held no training posts out for the gate"),
    ):
        command = [sys.executable, str(ROOT / "run_ner.py"), *mix(files, experts, *more)]
        seen = watched(command, ner_runs.os.environ | env | {"OMP_NUM_THREADS": "1"})
        assert seen.done.returncode == 1 and told in seen.done.stderr, seen.done.stderr[-2000:]
        assert not seen.found, seen.found


DEEP = "[" * 100_000
BAD = {
    "truncated": ('{"retrieval": "te', "is no JSON"),
    "deep": (DEEP, "is nested too deeply"),
    "a list": ("[1]", "holds no JSON object but a list"),
    "not UTF-8": (b"\xff\xfe{}", "is not UTF-8"),
    "infinite": ('{"learning_rate": Infinity}', "learning_rate is inf, it must be of type float"),
    "a string": ('{"top_k": "10"}', "top_k is '10', it must be of type int"),
    "a bool": ('{"top_k": true}', "top_k is True, it must be of type int"),
    "out of range": ('{"top_k": 0}', "top_k is 0, it must be at least 1"),
    "huge": ('{"top_k": 1000000000000}', "at most 10000 entries are retrieved"),
    "unknown choice": ('{"retrieval": "x"}', "retrieval is 'x', it must be one of none, text, image, moe"),
    "no list": ('{"knowledge": "wiki"}', "knowledge is 'wiki', it must be of type list"),
    "list of numbers": ('{"knowledge": [1]}', r"knowledge is \[1\], it must be of type list"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_options_are_one_sentence_with_the_file(case, expert):
    content, told = BAD[case]
    folder = expert()
    Path(folder, "arguments.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"arguments\.json.* {told}"):
        load_experts([folder])


@pytest.mark.parametrize("content", ['["a"', "{}", "[1]", "null", DEEP])
def test_damaged_holdout_ids_are_one_sentence_with_the_file(content, expert):
    folder = expert()
    Path(folder, "holdout_ids.json").write_text(content)
    with pytest.raises(ValueError, match=r"holdout_ids\.json.* (is no JSON|must hold a list of ids|too deeply)"):
        load_experts([folder])
