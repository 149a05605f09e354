"""One's own posts published under one's own name: every format, the card, what is read back, what is refused."""

import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard

import ner_runs
import re_runs
import run_ner
import run_re
from dataset_scripts import load
from dataset_scripts.posts import main, parser
from hostile_texts import HOSTILE, rendered
from modeling_more.data.sources import SPLITS
from modeling_more.data.tasks import ENTITIES, RELATIONS, Task
from modeling_more.knowledge import load_knowledge
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import load_posts
from pictures import picture, save_tiny_tower

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SCRIPT = str(ROOT / "dataset_scripts" / "posts.py")
TEXTS = [
    {"id": "a", "text": "Ada Lovelace met Rivera .", "spans": [[0, 12, "PER"], [17, 23, "PER"]], "image": "1"},
    {"id": "b", "text": "Oslo is cold !", "spans": [[0, 4, "LOC"]], "image": "2.png"},
]
ARTICLES = [
    {"id": "Q1", "title": "Oslo", "text": "Oslo is a city. It lies in Norway."},
    {"id": "Q2", "title": "Ada", "text": "Ada Lovelace wrote programs."},
]
PAIRS = re_runs.pairs(5)


@pytest.fixture(autouse=True)
def _own_cache(own_cache: None) -> None:
    pass


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    rows = [{**article, "image": f"{article['id']}.png"} for article in ARTICLES]
    for number, article in enumerate(ARTICLES, 1):
        picture(number).save(tmp_path / f"{article['id']}.png")
    return ner_runs.write_jsonl(tmp_path / "articles.jsonl", rows)


def publish(out: Path, *more: object) -> int:
    return main(["--name", "Harbour news", "--output_dir", str(out), "--cache_dir", f"{out}-cache", *map(str, more)])


def posts_of(task: Task = ENTITIES, **options: Any) -> tuple[dict[str, list[dict]], list[str]]:
    """The rows that a run loads, and its labels."""
    rows, types, _ = load_posts(DataArguments(**options), task, load, [])
    return rows, types


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def left_of(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if out.name in path.name and "cache" not in path.name)


def same(rows: list[dict], others: list[dict]) -> bool:
    """Whether rows are equal; those without a text get one where another split has it."""
    added = {"text", "offsets"}
    return all(
        {key: value for key, value in one.items() if key not in added - other.keys()} == other
        for one, other in zip(rows, others, strict=True)
    )


def test_files_of_three_formats_are_read_back_equal(tmp_path: Path, articles: Path) -> None:
    train = ner_runs.write_jsonl(tmp_path / "train.jsonl", TEXTS)
    dev = tmp_path / "dev.conll"
    dev.write_text("IMGID:7\nin\tO\nOslo\tB-LOC\n\nRivera\tI-PER\n")
    test = tmp_path / "test.csv"
    test.write_text('id,tokens,ner_tags\nx,Ada sings,B-PER O\ny,"[""Oslo"", ""!""]",B-LOC O\n')
    files = {"train_file": str(train), "validation_file": str(dev), "test_file": str(test)}
    out, cache = tmp_path / "out", str(tmp_path / "other")
    given = [word for name, path in files.items() for word in (f"--{name}", path)]
    told = ["--license", "CC-BY-4.0", "--source", "Our own reports", "--language", "en"]
    search = ["--retrieval", "text", "--knowledge", articles, "--top_k", "1"]
    assert publish(out, *given, *told, *search) == 0
    direct = posts_of(**files, retrieval="text", knowledge=[str(articles)], top_k=1, cache_dir=cache)
    back = posts_of(dataset=str(out), retrieval="text", cache_dir=cache)
    assert back[1] == direct[1] == ["LOC", "PER"] and back[0].keys() == direct[0].keys()
    assert all(same(back[0][split], direct[0][split]) for split in SPLITS)
    bare = posts_of(dataset=str(out), cache_dir=cache)[0]
    assert all(same(bare[split], posts_of(**files)[0][split]) for split in SPLITS)
    loaded = load_dataset(str(out), "text", cache_dir=cache)
    assert [entry["title"] for entry in loaded["train"]["knowledge_text"][1]] == ["Oslo"]
    assert [row["image_id"] for row in loaded["train"]] == ["1", "2.png"]

    card = DatasetCard.load(out / "README.md")
    assert (card.data.license, card.data.language) == ("cc-by-4.0", "en") and "license_name" not in card_of(out)
    assert card.data.pretty_name == "Harbour news" and card.text.lstrip().startswith("# Harbour news\n")
    assert "Source: Our own reports\n\nLicence: `cc-by-4.0`\n" in card.text
    for line in ("| train | 2 | 9 | 3 |", "| validation | 2 | 3 | 2 |", "| test | 2 | 4 | 2 |", "| LOC | 1 | 1 | 1 |"):
        assert line in card.text
    fingerprint = load_knowledge([str(articles)], cache).fingerprint
    assert f"from `articles.jsonl`: 3 sentences, fingerprint `{fingerprint}`" in card.text
    assert "`image_id` names a post's picture" in card.text
    whole = card_of(out)
    assert str(tmp_path) not in whole and not re.search("twitter|mnre|tweet", whole, re.I)


ENTITY_FORMS = ("conll", "columns", "archive", "words", "text", "list", "csv", "tsv", "parquet", "wikidiverse")


def write_entities(form: str, folder: Path) -> Path:
    rows = ner_runs.posts(4)
    if form in ("conll", "archive"):
        return ner_runs.write_conll(folder / "own.txt", rows, knowledge=form == "archive")
    if form == "columns":
        path = folder / "own.conll"
        lines = [[f"{tag}\t{word}\tNN\n" for word, tag in zip(r["tokens"], r["tags"], strict=True)] for r in rows]
        path.write_text("\n".join("".join(post) for post in lines))
        return path
    if form == "words":
        return ner_runs.write_jsonl(folder / "own.jsonl", rows)
    if form in ("text", "list"):
        path = ner_runs.write_jsonl(folder / "own.json", TEXTS)
        if form == "list":
            path.write_text(json.dumps(TEXTS))
        return path
    path = folder / f"own.{form}"
    if form == "wikidiverse":
        path = folder / "own.json"
        mentions = [["Ada Lovelace", "Person", 0, 12, "https://example.org/Ada"]]
        path.write_text(json.dumps([[TEXTS[0]["text"], "https://example.org/a.jpg", "news", mentions]]))
    elif form == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        separator = "," if form == "csv" else "\t"
        cells = [[row["id"], " ".join(row["tokens"]), " ".join(row["tags"])] for row in rows]
        path.write_text("\n".join(map(separator.join, [["id", "tokens", "ner_tags"], *cells])))
    return path


@pytest.mark.parametrize("form", ENTITY_FORMS)
def test_every_format_of_entities_is_told_and_published(form: str, tmp_path: Path) -> None:
    path = write_entities(form, tmp_path)
    columns = [2, 1] if form == "columns" else None
    assert publish(tmp_path / "out", "--train_file", path, *(["--columns", 2, 1] if columns else [])) == 0
    rows = ENTITIES.read(str(path), columns=columns)
    back = posts_of(dataset=str(tmp_path / "out"), cache_dir=str(tmp_path / "c"))[0]["train"]
    bare = [{key: value for key, value in row.items() if "knowledge" not in key} for row in rows]
    assert back == bare and len(back) in (1, 2, 4)


@pytest.mark.parametrize("form", ["mnre", "marked", "jsonl", "csv", "parquet"])
def test_every_format_of_relations_is_told_and_published(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"own.{form if form in ('jsonl', 'csv', 'parquet') else 'txt'}"
    fields = ("tokens", "head", "tail", "relation")
    if form == "mnre":
        path.write_text("\n".join(map(re_runs.mnre_line, PAIRS)))
    elif form == "marked":
        path.write_text("\n".join(map(re_runs.marked_lines, PAIRS)))
    elif form == "jsonl":
        ner_runs.write_jsonl(path, PAIRS)
    elif form == "parquet":
        Dataset.from_list(PAIRS).to_parquet(path)
    else:
        rows = [[json.dumps(row[name]) for name in fields[:3]] + [row["relation"]] for row in PAIRS]
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        path.write_text("\n".join([",".join(fields), *quoted]))
    out = tmp_path / "out"
    assert publish(out, "--train_file", path) == 0
    back, types = posts_of(RELATIONS, dataset=str(out), cache_dir=str(tmp_path / "c"))
    assert [[row[name] for name in fields] for row in back["train"]] == [[row[n] for n in fields] for row in PAIRS]
    assert types == sorted({row["relation"] for row in PAIRS})
    card = DatasetCard.load(out / "README.md")
    assert card.data.task_categories == ["text-classification"] and "| train | 5 |" in card.text
    for name in types:
        assert f"| {name} | {sum(row['relation'] == name for row in PAIRS)} |" in card.text


def test_a_training_on_the_published_set_is_that_on_the_files(
    files: dict[str, str], tmp_path: Path, tiny_encoder: Any
) -> None:
    out, encoder = tmp_path / "published", tiny_encoder("bert")
    given = ["--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"]]
    assert publish(out, *given, "--retrieval", "text", "--knowledge", files["knowledge"], "--top_k", "2") == 0
    more = [*ner_runs.QUICK, "--top_k", "2"]
    of_files = ner_runs.options({**files, "out": str(tmp_path / "a")}, encoder, *more, retrieval="text")
    run_ner.main([*of_files, "--knowledge", files["knowledge"]])
    of_set = ner_runs.options({**files, "out": str(tmp_path / "b")}, encoder, *more, retrieval="text")
    run_ner.main(["--dataset", str(out), *of_set[6:]])
    first, second = ((tmp_path / run / "predictions" / "test.jsonl").read_text().splitlines() for run in "ab")
    found = [[{**json.loads(line), "text": ""} for line in lines] for lines in (first, second)]
    assert len(found[0]) == 9 and found[0] == found[1]


def test_a_training_of_relations_on_the_knowledge_of_the_files(tmp_path: Path, tiny_encoder: Any) -> None:
    files = re_runs.write_files(tmp_path)
    out, encoder = tmp_path / "published", tiny_encoder("bert")
    given = ["--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"]]
    assert publish(out, *given, "--retrieval", "text") == 0
    assert "| train | 36 | 36 |" in card_of(out) and "do not tell how it was retrieved" in card_of(out)
    for run, more in (("a", given), ("b", ["--dataset", str(out)])):
        options = re_runs.options({**files, "out": str(tmp_path / run)}, encoder, "--num_train_epochs", "1")
        options[options.index("none")] = "text"
        run_re.main([*more, *options[6:]])
    first, second = ((tmp_path / run / "predictions" / "test.jsonl").read_bytes() for run in "ab")
    assert first == second and first.count(b"\n") == 15


def test_images_in_a_folder_and_knowledge_of_both_kinds(
    tmp_path: Path, articles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "pictures"
    (images / "inner").mkdir(parents=True)
    picture(1).save(images / "inner" / "1.png")
    picture(2).save(images / "2.png")
    rows = [{**TEXTS[0], "image": str(images / "inner" / "1.png")}, TEXTS[1], {**TEXTS[1], "id": "c", "image": "9"}]
    train = ner_runs.write_jsonl(tmp_path / "train.jsonl", rows)
    tower = save_tiny_tower(tmp_path / "tower")
    given = ["--train_file", train, "--retrieval", "all", "--knowledge", articles, "--image_model", tower]
    out = tmp_path / "out"
    assert publish(out, *given, "--image_dir", images) == 0
    posts = load_dataset(str(out), "all", cache_dir=str(tmp_path / "c"))["train"]
    assert posts["image_id"][:] == ["inner/1.png", "2.png", "9"]
    assert "1 posts name their image by a path" in caplog.text
    assert [[entry["title"] for entry in found][:1] for found in posts["knowledge_image"]] == [["Oslo"], ["Ada"], []]
    assert posts["knowledge_text"][1][0]["title"] == "Oslo"
    assert "| missing | 1 |" in card_of(out) and str(tmp_path) not in card_of(out)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "all", "image", "none", "text"]
    stored = b"".join(path.read_bytes() for path in out.rglob("*.parquet"))
    assert str(tmp_path).encode() not in stored

    for other in (str(tmp_path / "1.png"), "1.png"):
        ner_runs.write_jsonl(train, [rows[0], {**rows[1], "image": other}])
        caplog.clear()
        assert publish(tmp_path / "twice", "--train_file", train) == 1
        assert "would both be published as the image 1.png" in caplog.text and left_of(tmp_path / "twice") == []


def test_hidden_labels_of_the_test_posts_are_told_and_stay_hidden(tmp_path: Path) -> None:
    train = ner_runs.write_jsonl(tmp_path / "train.jsonl", TEXTS)
    test = ner_runs.write_jsonl(tmp_path / "test.jsonl", [{"text": "Oslo again", "spans": None}])
    out = tmp_path / "out"
    assert publish(out, "--train_file", train, "--test_file", test) == 0
    assert posts_of(dataset=str(out), cache_dir=str(tmp_path / "c"))[0]["test"][0]["ner_tags"] is None
    assert "| test | 1 | 2 | – |" in card_of(out) and "| LOC | 1 | – |" in card_of(out)
    assert "The labels of the test split are hidden (-1)." in card_of(out)


def test_types_named_like_the_counts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "own.conll"
    path.write_text("Ada\tB-posts\nwon\tO\n\nOslo\tB-words\nUnited\tB-entities\n")
    assert publish(tmp_path / "out", "--test_file", path) == 0
    for line in ("| test | 2 | 4 | 3 |", "| posts | 1 |", "| words | 1 |", "| entities | 1 |"):
        assert line in card_of(tmp_path / "out")


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_sources_are_text_on_the_card(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.conll"
    path.write_text(f"Ada\tB-{''.join(text.split())}\n")
    given = ["--train_file", path, f"--license={text}", f"--source={text}", f"--name={text}"]
    assert publish(tmp_path / "out", *given) == 0
    card = card_of(tmp_path / "out")
    shown, line = rendered(card), " ".join(text.split())
    names = {tag.lower() for tag in re.findall(r"</?([A-Za-z]\w*)", shown)}
    assert names <= {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td"}
    (title,) = re.findall("<h1>(.*)</h1>", shown)
    terms = re.findall("<p>(?:Source|Licence): (.*)</p>", shown)
    assert [html.unescape(one) for one in (title, *terms)] == [line] * 3
    assert html.unescape(re.findall("<td>(.*)</td>", shown.split("<th>type</th>")[1])[0]) == "".join(text.split())
    (metadata,) = re.findall(r"\A---\n(.*?)\n---\n", card, flags=re.DOTALL)
    data = yaml.safe_load(metadata)
    assert data["pretty_name"] == line and data["license"] == "other" and data["license_name"] == "see-card"
    assert data["tags"] == ["named-entity-recognition", "retrieval", "modeling-more"]


def test_a_card_without_terms_names_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = ner_runs.write_jsonl(tmp_path / "train.jsonl", TEXTS[1:])
    assert publish(tmp_path / "out", "--train_file", train) == 0
    data = DatasetCard.load(tmp_path / "out" / "README.md").data
    assert not {"license", "license_name", "language"} & data.to_dict().keys()
    assert "The publisher names no source.\n\nThe publisher names no licence.\n" in card_of(tmp_path / "out")
    again = ["--train_file", train, "--overwrite_output_dir", "--license", "cc-by-4", "--source", "/home/me/posts.csv"]
    assert publish(tmp_path / "out", "--train_file", train) == 1 and "holds a published data set" in caplog.text
    assert publish(tmp_path / "out", *again) == 0 and "did you mean cc-by-4.0?" in caplog.text
    assert "Source: posts.csv\n\nLicence: cc-by-4\n" in card_of(tmp_path / "out")


def test_what_cannot_be_published_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, articles: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    train = ner_runs.write_jsonl(tmp_path / "train.jsonl", TEXTS)
    pairs = ner_runs.write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    empty = file("empty.jsonl", "\n")
    hidden = file("hidden.csv", "tokens,ner_tags\nAda sings,-1 -1\n")
    partly = file("partly.jsonl", json.dumps(TEXTS[0]) + '\n{"text": "Oslo", "spans": null}\n')
    unnamed = file("unnamed.jsonl", '{"tokens": ["Ada"]}\n')
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    by_image = ["--train_file", train, "--retrieval", "image", "--knowledge", articles]
    cases: list[tuple[list[object], str]] = [
        ([], "there are no posts: give --train_file, --validation_file or --test_file"),
        (["--train_file", tmp_path / "gone.csv"], "gone.csv: no such file"),
        (["--train_file", tmp_path], "is a folder; give a file"),
        (["--train_file", empty], "empty.jsonl: the file is empty"),
        (["--train_file", hidden], "hidden.csv: all labels are hidden (-1 or null); only those of --test_file may be"),
        (["--test_file", hidden], "hidden.csv: all labels are hidden"),
        (["--train_file", train, "--validation_file", hidden], "hidden.csv: all labels are hidden"),
        (["--train_file", partly], "partly.jsonl, line 2: no label (-1 or null), as in 1 of 2 rows"),
        (["--train_file", unnamed], 'unnamed.jsonl, line 1: no "ner_tags"'),
        (["--train_file", train, "--test_file", pairs], "pairs.jsonl holds relations: publish entities and relations"),
        (["--train_file", pairs, "--task", "entities"], "line 1: this is data of the other --task"),
        (["--train_file", train, "--task", "relations"], "line 1: this is data of the other --task"),
        (["--train_file", train, "--retrieval", "text"], "train.jsonl: the posts hold no knowledge_text"),
        (["--train_file", train, "--knowledge", articles], "--knowledge is for --retrieval text, image and all"),
        (by_image, "needs --image_dir, the folder with the posts' images"),
        ([*by_image, "--image_dir", pictures], "pictures holds the image of none of the 2 training posts"),
        ([*by_image, "--image_dir", tmp_path / "none"], "none: no such folder"),
        (["--train_file", train, "--push_to_hub", "org/x"], "--push_to_hub needs --license"),
        (["--train_file", train, "--push_to_hub", "a b/x", "--license", "mit"], "a b/x: no id of the Hub"),
        (["--train_file", train, "--push_to_hub", "x", "--license", "mit"], "x: no id of the Hub"),
        (["--train_file", train, "--language", "English"], "--language English: no code of a language"),
        (["--train_file", train, "--name", " "], "--name is empty"),
    ]
    out = tmp_path / "out"
    for given, message in cases:
        caplog.clear()
        assert publish(out, *given) == 1, given
        (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert message in error and "\n" not in error and left_of(out) == [], (given, error)
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    assert publish(out, "--train_file", train, "--overwrite_output_dir") == 1
    assert "holds something that is no published data set" in caplog.text and left_of(out) == ["out"]
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    with pytest.raises(SystemExit):
        main(["--train_file", str(train), "--output_dir", str(out)])  # without a name


def test_the_command_runs_anywhere(tmp_path: Path) -> None:
    """As the README prints it, but for the upload."""
    (printed,) = re.findall(r"\npython dataset_scripts/posts.py (--.*?)\n```", README.read_text(), re.DOTALL)
    *words, push, name = shlex.split(printed.replace("\\\n", ""))
    assert (push, name) == ("--push_to_hub", "ORG/NAME")
    ner_runs.write_jsonl(tmp_path / "a.jsonl", TEXTS)
    ner_runs.write_conll(tmp_path / "b.conll", ner_runs.posts(2))
    ner_runs.write_jsonl(tmp_path / "wiki.jsonl", ARTICLES)
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and (tmp_path / "OUT" / "text").is_dir(), done.stderr


def test_the_help_tells_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "python dataset_scripts/posts.py --train_file" in shown
    for action in parser()._actions:
        assert action.help and action.option_strings[0] in shown


@pytest.mark.parametrize("task", [ENTITIES, RELATIONS], ids=lambda task: task.label)
def test_real_posts(task: Task, tmp_path: Path, shared_data: Path) -> None:
    folder, end = ("twitter2017", "\n\n") if task is ENTITIES else ("mnre", "\n")
    knowledge = str(shared_data / "knowledge" / "factbook_countries.jsonl.gz")
    files = {}
    for split, name in zip(SPLITS, ("train", "valid" if task is ENTITIES else "val", "test"), strict=True):
        posts = (shared_data / folder / f"{name}.txt").read_text(encoding="utf-8").split(end)[:40]
        files[f"{split}_file"] = str(tmp_path / f"{name}.txt")
        Path(files[f"{split}_file"]).write_text(end.join(posts) + end, encoding="utf-8")
    if task is RELATIONS:  # others are refused that the training posts lack
        files["validation_file"] = files["test_file"] = files["train_file"]
    given = [word for name, path in files.items() for word in (f"--{name}", path)]
    assert publish(tmp_path / "out", *given, "--retrieval", "text", "--knowledge", knowledge) == 0
    found = posts_of(task, **files, retrieval="text", knowledge=[knowledge], cache_dir=str(tmp_path / "c"))
    assert posts_of(task, dataset=str(tmp_path / "out"), retrieval="text", cache_dir=str(tmp_path / "c")) == found
    assert sum(bool(row["knowledge_text"]) for row in found[0]["train"]) > 20
    assert not re.search("twitter|umt", card_of(tmp_path / "out"), re.I)
