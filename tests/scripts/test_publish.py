"""The publisher: a folder that `load_dataset` reads, its card, and the round trip over a Hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from dataset_scripts import load
from dataset_scripts._card import About, make_card
from dataset_scripts._publish import _named, check_free, failed_push, main, without_folder
from hub_server import LocalHub
from pictures import picture, save_tiny_tower

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "dataset_scripts" / "twitter17.py")
RAW = {
    "train": "IMGID:1\nAda\tB-PER\nwon\tO\n\nIMGID:2\nOslo\tB-LOC\nUnited\tI-LOC\n",
    "valid": "IMGID:3\nAcme\tB-ORG\n",
    "test": "IMGID:4\nthe\tO\nGames\tB-MISC\n\nIMGID:5\nBabbage\tI-PER\n\nIMGID:6\nnothing\tO\n",
}
ARTICLES = [
    {"id": "Q1", "title": "Oslo", "text": "Oslo is a city. It lies in Norway."},
    {"id": "Q2", "title": "Games", "text": "The Games are held in Oslo."},
    {"id": "Q3", "title": "Ada", "text": "Ada wrote programs. She won."},
]


MNRE_ROW = {"token": ["Ada", "lives", "in", "Oslo"], "img_id": "1.jpg"}
RELATIONS = [
    {**MNRE_ROW, "h": {"name": "Ada", "pos": [0, 1]}, "t": {"name": "Oslo", "pos": [3, 4]}, "relation": relation}
    for relation in ("/per/loc/place_of_residence", "None", "None")
]


@pytest.fixture
def tower(tmp_path: Path) -> str:
    return save_tiny_tower(tmp_path / "tower")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of the posts 1 to 5, of which 4 is broken; 6 has none. Those of 1, 2 and 3 are the articles'."""
    folder = tmp_path / "images"
    folder.mkdir()
    for post in (1, 2, 3, 5):
        picture(post).save(folder / f"{post}.png")
    (folder / "4.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, text in RAW.items():
        (folder / f"{split}.txt").write_text(text)
    return folder


@pytest.fixture
def knowledge(tmp_path: Path) -> Path:
    path = tmp_path / "articles.jsonl"
    rows = [{**article, "image": f"Q{number}.png"} for number, article in enumerate(ARTICLES, 1)]
    for number in range(1, 4):
        picture(number).save(tmp_path / f"Q{number}.png")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORE_CACHE", str(tmp_path / "more"))


def test_folder_with_knowledge(tmp_path: Path, raw: Path, knowledge: Path) -> None:
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    arguments = ["--data_dir", str(raw), "--retrieval", "text", "--knowledge", str(knowledge), "--top_k", "2"]
    arguments += ["--output_dir", str(out), "--cache_dir", cache]
    assert main("twitter17", arguments) == 0
    posts = load("twitter17", "none", raw, cache)
    text = load_dataset(str(out), "text", cache_dir=cache)
    none = load_dataset(str(out), cache_dir=cache)
    for split in ("train", "validation", "test"):
        assert none[split][:] == posts[split][:] and none[split].features == posts[split].features
        assert text[split].remove_columns("knowledge_text")[:] == posts[split][:]
    assert [entry["title"] for entry in text["test"][0]["knowledge_text"]] == ["Games"]
    assert text["test"][2]["knowledge_text"] == []
    assert max(len(row["knowledge_text"]) for row in text["train"]) <= 2
    card = (out / "README.md").read_text()
    assert "| test | 3 | 4 | 2 |" in card and "| MISC | 0 | 0 | 1 |" in card and "`articles.jsonl`" in card
    assert "| posts | 6 |" in card and str(tmp_path) not in card
    assert "--retrieval text --knowledge articles.jsonl --top_k 2" in card
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_folder_with_all_knowledge(tmp_path: Path, raw: Path, knowledge: Path, images: Path, tower: str) -> None:
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    arguments = [
        "--data_dir",
        str(raw),
        "--retrieval",
        "all",
        "--knowledge",
        str(knowledge),
        "--image_dir",
        str(images),
    ]
    arguments += ["--image_model", tower, "--output_dir", str(out), "--cache_dir", cache]
    assert main("twitter17", arguments) == 0
    loaded = {name: load_dataset(str(out), name, cache_dir=cache) for name in ("none", "text", "image", "all")}
    columns = {name: [c for c in data["test"].column_names if "knowledge" in c] for name, data in loaded.items()}
    assert columns == {
        "none": [],
        "text": ["knowledge_text"],
        "image": ["knowledge_image"],
        "all": ["knowledge_text", "knowledge_image"],
    }
    for split in ("train", "validation", "test"):
        for name in ("none", "text", "image"):
            dropped = [column for column in columns["all"] if column not in columns[name]]
            assert loaded["all"][split].remove_columns(dropped)[:] == loaded[name][split][:]
    by_image = loaded["all"]["train"]["knowledge_image"]
    assert [entries[0]["title"] for entries in by_image] == ["Oslo", "Games"]
    assert by_image[0][0]["text"] == ARTICLES[0]["text"] and by_image[0][0]["score"] == pytest.approx(1, abs=1e-5)
    assert [len(entries) for entries in loaded["all"]["test"]["knowledge_image"]] == [0, 3, 0]
    card = (out / "README.md").read_text()
    assert "inner products of the embeddings of `tower`" in card and "3 images, fingerprint `" in card
    assert "| not an image | 1 |" in card and "| missing | 1 |" in card and str(tmp_path) not in card
    only = ["--overwrite_output_dir", *arguments]
    only[only.index("all")] = "image"
    assert main("twitter17", only) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "image", "none"]
    assert (
        load_dataset(str(out), "image", cache_dir=str(tmp_path / "cache2"))["train"][:] == loaded["image"]["train"][:]
    )


def test_archives_with_both_kinds_are_joined(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    for kind in ("txt", "img"):
        folder = data / f"twitter2017-{kind}"
        folder.mkdir(parents=True)
        for split, text in RAW.items():
            posts = [
                "\n".join(
                    [*(line for line in post.split("\n") if "IMGID" not in line and line), f"<EOS>\tX\n{kind}\tX"]
                )
                for post in text.split("\n\n")
            ]
            (folder / f"{split}.txt").write_text("\n\n".join(posts) + "\n")
    out = tmp_path / "out"
    arguments = ["--data_dir", str(data), "--retrieval", "all", "--output_dir", str(out)]
    arguments += ["--cache_dir", str(tmp_path / "cache")]
    assert main("twitter17", arguments) == 0
    rows = load_dataset(str(out), "all", cache_dir=str(tmp_path / "cache"))["test"]
    assert [entry["text"] for entry in rows[0]["knowledge_text"]] == ["txt"]
    assert [entry["text"] for entry in rows[0]["knowledge_image"]] == ["img"]
    (data / "twitter2017-img" / "test.txt").write_text("other\tO\n<EOS>\tX\nimg\tX\n")
    assert main("twitter17", ["--overwrite_output_dir", *arguments]) == 1
    assert "The test posts with text knowledge are not those with image knowledge" in caplog.text


def test_card_of_relations(tmp_path: Path, knowledge: Path) -> None:
    data = tmp_path / "mnre"
    data.mkdir()
    for split in ("train", "val", "test"):
        (data / f"{split}.txt").write_text("".join(f"{row}\n" for row in RELATIONS))
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    arguments = [
        "--data_dir",
        str(data),
        "--retrieval",
        "text",
        "--knowledge",
        str(knowledge),
        "--output_dir",
        str(out),
    ]
    assert main("mnre", [*arguments, "--cache_dir", cache]) == 0
    text = load_dataset(str(out), "text", cache_dir=cache)["train"]
    assert text.features["relation"].int2str(text["relation"]) == [row["relation"] for row in RELATIONS]
    assert text[0]["head"] == [0, 1] and {entry["title"] for entry in text[0]["knowledge_text"]} >= {"Ada", "Oslo"}
    card = DatasetCard.load(out / "README.md")
    assert card.data.task_categories == ["text-classification"] and "relation-extraction" in card.data.tags
    assert "| train | 3 | 12 |" in card.text and "| /per/loc/place_of_residence | 1 | 1 | 1 |" in card.text
    assert "| None | 2 | 2 | 2 |" in card.text and "seqeval" not in card.text


def test_terms_of_posts(tmp_path: Path, raw: Path) -> None:
    posts = {"none": load("twitter17", "none", raw, tmp_path / "cache")}

    class Real:
        TITLE, CREDIT = "Some posts", "By somebody."

    class Owned(Real):
        TERMS = "Mine."

    texts = [make_card(About.of(builder), posts, "", ["python"]).text for builder in (Real, Owned)]
    assert ["The copyrights of the posts" in text for text in texts] == [True, False]
    assert "By somebody.\n\nMine." in texts[1]


def test_corpora_are_named_on_the_card_without_folders_and_passwords(tmp_path: Path, raw: Path) -> None:
    posts = {"none": load("twitter17", "none", raw, tmp_path / "cache")}
    named = _named(
        [str(raw / "train.txt"), "org/corpus", "milvus:http://me:secret@127.0.0.1:1", "milvus:/home/me/a.db"]
    )
    text = make_card(About("Some posts", "Mine."), posts, named, ["python"]).text
    assert "`train.txt`, `org/corpus`, `http://<secret>@127.0.0.1:1`, `a.db`" in text and str(tmp_path) not in text


def test_folder_without_knowledge_and_overwriting(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    arguments = ["--data_dir", str(raw), "--output_dir", str(out), "--cache_dir", str(tmp_path / "cache")]
    assert main("twitter17", arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "none"]
    assert main("twitter17", arguments) == 1 and "--overwrite_output_dir" in caplog.text
    (out / "none" / "stale.parquet").write_bytes(b"")
    assert main("twitter17", [*arguments, "--overwrite_output_dir"]) == 0
    assert not (out / "none" / "stale.parquet").exists()
    for strange in (out / "notes.txt", out / "none" / "notes.txt"):
        strange.write_text("mine")
        assert main("twitter17", [*arguments, "--overwrite_output_dir"]) == 1 and strange.exists()
        assert f"{strange}: is no part of the data set" in caplog.text
        strange.unlink()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    arguments[3] = str(tmp_path / "home")
    assert main("twitter17", [*arguments, "--overwrite_output_dir"]) == 1
    assert "holds something that is no published data set" in caplog.text and (tmp_path / "home/letter.txt").exists()
    # a saved corpus has a card with the same tag
    (out / "knowledge.json").write_text("{}")
    with pytest.raises(ValueError, match="holds something that is no published data set"):
        check_free(out, overwrite=True)


def test_what_is_published_names_no_folder_and_a_second_try_stays_private() -> None:
    words = ["--data_dir=/home/me/posts.zip", "/home/me/out", "milvus:/home/me/base.db", "--top_k=3", "sets/a"]
    assert [*map(without_folder, words)] == ["--data_dir=posts.zip", "out", "milvus:base.db", "--top_k=3", "sets/a"]
    told = [str(failed_push("org/x", Path("my set"), OSError("gone"), private)) for private in (True, False)]
    assert [line.split("whole: ")[1] for line in told] == [
        "hf upload org/x 'my set' --repo-type dataset --private",
        "hf upload org/x 'my set' --repo-type dataset",
    ]


def test_bad_input_ends_in_one_sentence_and_writes_nothing(
    tmp_path: Path, raw: Path, knowledge: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (raw / "test.txt").write_text("Ada\tB-PER\nwon\n")
    out, cache = str(tmp_path / "out"), str(tmp_path / "cache")
    cases = [
        (["--data_dir", str(raw)], "test.txt, line 2: no label"),
        (["--data_dir", str(raw / "gone")], "gone: no such folder or zip file"),
        (["--data_dir", str(raw), "--retrieval", "text"], "test.txt, line 2: no label"),
        (
            ["--data_dir", str(raw), "--knowledge", str(knowledge)],
            "--knowledge is for --retrieval text, image and all",
        ),
        (["--retrieval", "text", "--knowledge", "milvus:a.db", str(knowledge)], "a Milvus database is searched alone"),
        (["--data_dir", str(raw), "--image_dir", str(raw)], "--image_dir is for --retrieval image or all with knowl"),
        (
            ["--data_dir", str(raw), "--retrieval", "all", "--image_knowledge", str(knowledge)],
            "give --knowledge besides --image_knowledge",
        ),
    ]
    for arguments, message in cases:
        caplog.clear()
        assert main("twitter17", ["--output_dir", out, "--cache_dir", cache, *arguments]) == 1
        assert message in caplog.text and not (tmp_path / "out").exists()
    script = [sys.executable, SCRIPT, "--output_dir", out, "--cache_dir", cache, "--data_dir", str(raw)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1 and cases[0][1] in done.stderr and "Traceback" not in done.stderr


ROUND_TRIP = """
import json, os, sys
from pathlib import Path
from datasets import get_dataset_default_config_name, load_dataset
from PIL import Image
from dataset_scripts._publish import main
from modeling_more.knowledge import BM25Retriever, ImageEncoder, ImageRetriever, KnowledgeCorpus

def rows(*where):
    return {split: data[:] for split, data in load_dataset(*where).items()}

raw, knowledge, images, tower, out = sys.argv[1:]
options = ["--data_dir", raw, "--push_to_hub", "org/tweets", "--private", "--overwrite_output_dir", "--output_dir"]
with_all = [*options, out, "--retrieval", "all", "--image_dir", images, "--image_model", tower, "--knowledge"]
token = os.environ.pop("HF_TOKEN")
assert main("twitter17", [*with_all, knowledge]) == 1 and (Path(out) / "README.md").is_file()
os.environ["HF_TOKEN"] = token
# the knowledge is published first: the posts' knowledge retrieved from the Hub is that retrieved from the file
corpus = KnowledgeCorpus.from_files(knowledge)
encoder = ImageEncoder(tower)
ImageRetriever.from_corpus(corpus, encoder)
corpus.push_to_hub("org/knowledge", license="cc0-1.0", description="Three articles.", private=True, date="20260101")
loaded = KnowledgeCorpus.from_pretrained("org/knowledge")
queries, pictures = ["Oslo games", "Ada won"], [Image.open(f"{images}/{post}.png") for post in (1, 5)]
assert loaded.index_dir is not None and loaded.faiss_dir is not None
for make, asked in (
    (BM25Retriever.from_corpus, queries),
    (lambda corpus: ImageRetriever.from_corpus(corpus, encoder), pictures),
):
    here, there = (make(each).search(asked, 3) for each in (corpus, loaded))
    assert here == there and all(here)
assert main("twitter17", [*with_all, "org/knowledge"]) == 0
retrieved = rows("org/tweets", "all")
assert main("twitter17", [*with_all, knowledge]) == 0
assert rows("org/tweets", "all") == retrieved
assert main("twitter17", [*options, out + "-none"]) == 0  # pushes only "none" again: the others have to stay

for name in ("none", "text", "image", "all"):
    assert rows("org/tweets", name) == rows(out, name), name
assert rows("org/tweets") == rows("org/tweets", "none")
assert get_dataset_default_config_name("org/tweets") == "none"
print(json.dumps(rows("org/tweets", "all")["test"]["knowledge_text"][0]))
"""


def test_push_and_load_again(
    tmp_path: Path, raw: Path, knowledge: Path, images: Path, tower: str, hub: LocalHub
) -> None:
    # one process for all: the environment that names the Hub has to be set before the libraries are imported
    out = tmp_path / "out"
    script = [sys.executable, "-c", ROUND_TRIP, str(raw), str(knowledge), str(images), tower, str(out)]
    done = subprocess.run(script, env=hub.env, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [entry["title"] for entry in json.loads(done.stdout)] == ["Games"]
    assert done.stderr.count("ERROR") == 1
    (first, *_) = [line for line in done.stderr.splitlines() if "Uploading to org/tweets" in line]
    for told in ("none, text, image, all", "6 posts with their words", "knowledge", "README.md", "private"):
        assert told in first, first
    assert f"hf upload org/tweets {out} --repo-type dataset --private" in done.stderr
    card = DatasetCard(hub.files("org/tweets", "dataset")["README.md"].decode())
    configs = {config["config_name"]: config.get("default") for config in card.data.configs}
    assert configs == {"none": True, "text": None, "image": None, "all": None}
    assert card.data.pretty_name == "Twitter-2017" and "## Source and terms" in card.text


REGENERATED = """
import sys
from pathlib import Path
from datasets import load_dataset
from dataset_scripts._publish import main
from modeling_more.knowledge import KnowledgeCorpus

root = Path(sys.argv[1])

def publish(out, word, *more):
    raw = root / f"raw-{word}"
    raw.mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        (raw / f"{split}.txt").write_text(f"{word}\\tB-PER\\nwon\\tO\\n<EOS>\\tX\\n{word}\\tX\\n")
    options = ["--data_dir", str(raw), "--retrieval", "text", "--output_dir", str(out)]
    assert main("twitter17", [*options, *more]) == 0

def words(out, *name):
    return load_dataset(str(out), *name)["train"]["tokens"][0][0]

publish(root / "data", "Ada")
assert words(root / "data", "text") == words(root / "data") == "Ada"
publish(root / "data", "Bob", "--overwrite_output_dir")  # as many bytes as before
assert words(root / "data", "text") == words(root / "data", "none") == "Bob"
publish(root / "other" / "data", "Eve")  # of the same name
assert words(root / "other" / "data", "text") == "Eve" and words(root / "data", "text") == "Bob"

def value(text):
    articles = root / "articles.jsonl"
    articles.write_text('{"id": "1", "title": "Ada", "text": "%s"}\\n' % text)
    KnowledgeCorpus.from_files(articles).save_pretrained(root / "corpus")
    return load_dataset(str(root / "corpus"), "paragraphs")["train"]["value"][0]

for text in ("She won.", "He lost."):
    assert value(text) == text
"""


def test_regenerated_folders_and_those_of_one_name_give_their_own_rows(tmp_path: Path, hub: LocalHub) -> None:
    """With the default cache, as the card advises."""
    done = subprocess.run(
        [sys.executable, "-c", REGENERATED, str(tmp_path)],
        env={**hub.env, "HF_HOME": str(tmp_path / "home"), "MORE_CACHE": str(tmp_path / "more")},
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in ("data", "other/data"):
        card = DatasetCard.load(tmp_path / folder / "README.md")
        infos = {info["config_name"]: info for info in card.data.dataset_info}
        assert infos.keys() == {"none", "text"}
        assert [(split["name"], split["num_examples"]) for split in infos["text"]["splits"]] == [
            ("train", 1), ("validation", 1), ("test", 1),
        ]  # fmt: skip
        assert "knowledge_text" in [feature["name"] for feature in infos["text"]["features"]]
        assert infos["text"]["download_size"] == sum(
            file.stat().st_size for file in (tmp_path / folder / "text").iterdir()
        )


def test_misspelt_options_name_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataset_scripts import corpus, demo

    given = ["--output_dir", str(tmp_path / "out")]
    for run, words, near in (
        (lambda words: main("twitter17", words), ["--retrival", "text"], "did you mean --retrieval?"),
        (lambda words: main("twitter17", words), ["--retrieval", "txt"], "did you mean text?"),
        (corpus.run, ["--data_dri", "x"], "did you mean --data_dir?"),
        (demo.main, ["--sed", "1"], "did you mean --seed?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run([*words, *given, *(["--data_dir", "x"] if run is corpus.run else [])])
        assert stopped.value.code == 2 and near in capsys.readouterr().err
