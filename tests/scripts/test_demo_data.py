"""The demo set: made from a seed, types told by knowledge alone, search that fails on purpose."""

import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from dataset_scripts import load
from dataset_scripts._demo import COLUMNS, Demo, Post
from dataset_scripts.demo import SAID, TYPES, Builder, main, make_demo
from dataset_scripts.demo_pictures import draw_emblem
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def demo() -> Demo:
    return make_demo(1)


@pytest.fixture(scope="module")
def small() -> Demo:
    return make_demo(5, train_posts=32, validation_posts=16, test_posts=80)


def digest(demo: Demo, pictures: bool) -> str:
    """Of all that the set holds."""
    found = hashlib.sha256()
    for split in SPLITS:
        found.update(json.dumps(demo.rows(split)).encode())
    for entry in demo.entries:
        found.update(json.dumps([entry.id, entry.title, entry.text, *entry.emblem]).encode())
    if pictures:
        for post in demo.posts["train"]:
            found.update(post.picture().tobytes())
        for entry in demo.entries[:50]:
            found.update(draw_emblem(entry.emblem).tobytes())
    return found.hexdigest()


def name_of(post: Post) -> list[str]:
    return [token for token, tag in zip(post.tokens, post.ner_tags, strict=True) if tag != "O"]


def type_of(post: Post) -> str:
    return next(tag for tag in post.ner_tags if tag != "O")[2:]


def chi_square(pairs: Iterable[tuple[object, str]]) -> tuple[float, int]:
    """Statistic of independence of what stands first and the type, and its degrees of freedom."""
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for value, type_ in pairs:
        counts[value][type_] += 1
    table = np.array([[row[type_] for type_ in TYPES] for row in counts.values()], dtype=float)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum()), (len(table) - 1) * (len(TYPES) - 1)


def test_the_same_seed_gives_the_same_set_in_another_process(small):
    code = (
        "import sys; sys.path[:0] = ['tests/scripts', '.']\n"
        "from test_demo_data import digest, make_demo\n"
        "print(digest(make_demo(5, train_posts=32, validation_posts=16, test_posts=80), True))"
    )
    environment = {"PYTHONHASHSEED": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout.strip() == digest(small, True)
    assert digest(make_demo(6, 32, 16, 80), False) != digest(small, False)


def test_the_text_is_the_same_on_every_platform(small):
    assert digest(small, False) == "9902b0a3a98a6727500e23a97c2b202016cd90ab89c77d9adee6e9ed3ec0db19"


def test_a_larger_test_split_changes_no_training_post():
    assert make_demo(3, 32, 16, 16).rows("train") == make_demo(3, 32, 16, 32).rows("train")


def test_posts_are_aligned_and_about_one_name_each(demo):
    ids = [post.id for split in SPLITS for post in demo.posts[split]]
    assert len(set(ids)) == len(ids) == 960 + 192 + 960
    for split in SPLITS:
        titles = [post.entry.title for post in demo.posts[split]]
        assert len(set(titles)) == len(titles)
        for post in demo.posts[split]:
            assert len(post.tokens) == len(post.ner_tags)
            assert [tag[:1] for tag in post.ner_tags if tag != "O"] in (["B", "I"], ["B"])
            assert type_of(post) == post.entry.type
            if post.condition != "odd_spelling":
                assert " ".join(name_of(post)) == post.entry.title


def test_no_word_of_a_name_occurs_in_two_splits(demo):
    words = {
        split: {word.lower() for post in demo.posts[split] for word in [*name_of(post), *post.entry.title.split()]}
        for split in SPLITS
    }
    assert not words["test"] & words["train"]
    assert not words["test"] & words["validation"]
    assert not words["validation"] & words["train"]
    for split in SPLITS:  # nor as an ordinary word of any post
        plain = {
            token.lower()
            for other in SPLITS
            for post in demo.posts[other]
            for token, tag in zip(post.tokens, post.ner_tags, strict=True)
            if tag == "O"
        }
        assert not words[split] & plain


def test_neither_words_nor_condition_tell_the_type(demo):
    for split in SPLITS:
        posts = demo.posts[split]
        assert set(Counter(map(type_of, posts)).values()) == {len(posts) // 4}
        of_sentence: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        of_word: dict[str, Counter[str]] = defaultdict(Counter)
        of_condition: dict[str, Counter[str]] = defaultdict(Counter)
        conditions: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for post in posts:
            sentence = tuple(t for t, tag in zip(post.tokens, post.ner_tags, strict=True) if tag == "O")
            of_sentence[sentence][type_of(post)] += 1
            conditions[sentence].add(post.condition)
            of_condition[post.condition][type_of(post)] += 1
            for word in post.entry.title.split():
                of_word[word][type_of(post)] += 1
        for counted in (of_sentence, of_word, of_condition):
            for types in counted.values():
                assert set(types) == set(TYPES) and len(set(types.values())) == 1
        # nor does the sentence tell the condition, which a gate would learn: most are shared by posts of several
        assert sum(len(found) > 1 for found in conditions.values()) > len(conditions) / 2
        shares = {condition: sum(types.values()) / len(posts) for condition, types in of_condition.items()}
        assert shares["odd_spelling"] == pytest.approx(0.15, abs=0.02)
        assert shares["no_emblem"] == pytest.approx(0.15, abs=0.02)


def test_no_post_says_what_its_entry_says(demo):
    words = {type_: {word for said in sentences for word in said.split()} for type_, sentences in SAID.items()}
    telling = {
        type_: own - set().union(*(words[other] for other in TYPES if other != type_)) for type_, own in words.items()
    }
    posted = {token.lower() for split in SPLITS for post in demo.posts[split] for token in post.tokens}
    assert not posted & set().union(*telling.values())
    for entry in demo.entries:
        assert [type_ for type_, own in telling.items() if own & set(entry.text.strip(".").split())] == [entry.type]
        assert len(entry.text.split()) <= 15


def test_the_emblem_does_not_tell_the_type(demo):
    for values in (
        *([(entry.emblem[part], entry.type) for entry in demo.entries] for part in (0, 1, 3, 4)),
        *([(entry.emblem.fields[field], entry.type) for entry in demo.entries] for field in range(4)),
    ):
        statistic, freedom = chi_square(values)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # four deviations


def test_ten_times_as_many_other_entries_as_test_names(demo):
    of_posts = {post.entry.id for split in SPLITS for post in demo.posts[split]}
    assert len(demo.entries) - len(of_posts) >= 10 * len(demo.posts["test"])
    assert len({entry.id for entry in demo.entries}) == len(demo.entries)
    assert len({entry.title.lower() for entry in demo.entries}) == len(demo.entries)
    words = {word for post in demo.posts["test"] for word in post.entry.title.split()}
    rivals = [e for e in demo.entries if e.id not in of_posts and words & set(e.title.split())]
    assert len(rivals) >= len(demo.posts["test"])  # the search has something to confuse them with


def test_text_search_fails_where_it_should_and_only_there(demo, tmp_path):
    file = demo.write_knowledge(tmp_path, images=False)
    retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_files(file, tmp_path / "cache"))
    posts = [post for split in SPLITS for post in demo.posts[split]]
    results = retriever.search([" ".join(post.tokens) for post in posts], top_k=10)
    for post, entries in zip(posts, results, strict=True):
        found = [entry["source"] for entry in entries]
        if post.condition == "odd_spelling":
            assert post.entry.id not in found
        else:
            assert found[0] == post.entry.id


def test_no_two_emblems_are_alike(demo, small):
    assert len({(entry.emblem.layout, entry.emblem.fields) for entry in demo.entries}) == len(demo.entries)
    assert len({draw_emblem(entry.emblem).tobytes() for entry in small.entries}) == len(small.entries)


def thumbnails(pictures: Iterable[Image.Image]) -> np.ndarray:
    """Mean-free, normalised 16 x 16 pixels."""
    rows = np.array(
        [np.asarray(picture.resize((16, 16), Image.Resampling.BOX), float).ravel() for picture in pictures]
    )
    rows -= rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_pictures_show_their_emblem_or_plainly_none(small):
    emblems = thumbnails(draw_emblem(entry.emblem) for entry in small.entries)
    shown = [post for post in small.posts["test"] if post.condition != "no_emblem"]
    best = (thumbnails(post.picture() for post in shown) @ emblems.T).argmax(1)
    right = np.mean([small.entries[index].id == post.entry.id for index, post in zip(best, shown, strict=True)])
    assert right > 0.8
    plain = [post.picture() for post in small.posts["test"] if post.condition == "no_emblem"]
    assert plain
    for picture in plain:
        pixels = np.asarray(picture, dtype=int)
        assert (pixels.max(2) == pixels.min(2)).all()  # grey, and every emblem has colours
    for entry in small.entries:
        pixels = np.asarray(draw_emblem(entry.emblem), dtype=int)
        assert ((pixels.max(2) - pixels.min(2)) > 60).mean() > 0.01


def test_knowledge_files_hold_texts_and_emblems(small, tmp_path):
    file = small.write_knowledge(tmp_path / "knowledge")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == [entry.id for entry in small.entries]
    for row, entry in zip(rows[:20], small.entries, strict=False):
        assert (row["title"], row["text"]) == (entry.title, entry.text)
        drawn = draw_emblem(entry.emblem)
        with Image.open(file.parent / row["image"]) as picture:
            assert picture.size == (64, 64) and picture.convert("RGB").tobytes() == drawn.tobytes()


@pytest.mark.parametrize("options", [{"test_posts": 30}, {"train_posts": 0}, {"odd_spelling": 0.7, "no_emblem": 0.4}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="multiple of 16|shares"):
        make_demo(1, **options)


def test_published_set_is_the_loaded_set(demo, tmp_path):
    folder = tmp_path / "published"
    cache = str(tmp_path / "cache")
    assert main(["--seed", "1", "--retrieval", "text", "--output_dir", str(folder), "--cache_dir", cache]) == 0
    published = load_dataset(str(folder), "text", cache_dir=str(tmp_path / "other"))
    for split in SPLITS:
        rows = published[split].remove_columns(["image", "knowledge_text"])
        names = rows.features["ner_tags"].feature.names
        assert names == ["O", *(f"{prefix}-{type_}" for type_ in TYPES for prefix in "BI")]
        assert [{**row, "ner_tags": [names[tag] for tag in row["ner_tags"]]} for row in rows] == demo.rows(split)
    place = next(place for place, post in enumerate(demo.posts["test"]) if post.condition != "odd_spelling")
    first = published["test"][place]
    assert np.array_equal(np.asarray(first["image"]), np.asarray(demo.posts["test"][place].picture()))
    assert len(first["knowledge_text"]) == 10
    assert "Made by dataset_scripts/demo.py" in (folder / "README.md").read_text()
    assert main(["--output_dir", str(folder)]) == 1  # it holds a data set already

    other = load("demo", "none", cache_dir=cache, data_seed=2)
    assert other["test"]["tokens"] != published["test"]["tokens"]


def test_what_the_set_has_not_is_said(tmp_path):
    with pytest.raises(ValueError, match="made from a seed"):
        load("demo", cache_dir=tmp_path, data_dir="somewhere")
    with pytest.raises(ValueError, match="no configuration 'audio'"):
        Builder(cache_dir=str(tmp_path), config_name="audio")


def test_all_configurations_hold_the_same_posts_and_what_each_search_finds(small, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.demo.make_demo", lambda seed: small)
    monkeypatch.setattr("dataset_scripts._demo.TOWER_STEPS", 80)
    folder = tmp_path / "published"
    made = ["--seed", "5", "--retrieval", "all", "--output_dir", str(folder)]
    assert main([*made, "--cache_dir", str(tmp_path / "cache"), "--knowledge_dir", str(tmp_path / "knowledge")]) == 0
    configs = {name: load_dataset(str(folder), name, cache_dir=str(tmp_path)) for name in COLUMNS}
    for name, columns in COLUMNS.items():
        rows = configs[name]["test"]
        assert [column for column in rows.column_names if column.startswith("knowledge")] == list(columns)
        assert rows["id"] == [post.id for post in small.posts["test"]]
    for column in ("knowledge_text", "knowledge_image"):
        assert configs["all"]["test"][column] == configs[column.removeprefix("knowledge_")]["test"][column]
    loaded = load("demo", "image", cache_dir=tmp_path / "cache", data_seed=5)
    assert loaded["test"]["knowledge_image"] == configs["image"]["test"]["knowledge_image"]

    found = {"knowledge_text": defaultdict(list), "knowledge_image": defaultdict(list)}
    for split in SPLITS:
        for post, row in zip(small.posts[split], configs["all"][split], strict=True):
            for column, right in found.items():
                right[post.condition].append([entry["source"] for entry in row[column][:1]] == [post.entry.id])
    shares = {column: {name: np.mean(hits) for name, hits in right.items()} for column, right in found.items()}
    assert shares["knowledge_text"] == {"": 1, "no_emblem": 1, "odd_spelling": 0}
    assert shares["knowledge_image"]["no_emblem"] == 0
    assert min(shares["knowledge_image"][name] for name in ("", "odd_spelling")) > 0.7

    corpus = KnowledgeCorpus.from_files(tmp_path / "knowledge" / "knowledge.jsonl", tmp_path / "cache")
    assert len(corpus.images) == len(small.entries)
    assert "invented by the program" in (folder / "README.md").read_text()
