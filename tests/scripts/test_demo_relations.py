"""The demo set with relations: told by knowledge alone, names and sentences balanced, search that fails on purpose."""

import hashlib
import json
from collections import Counter, defaultdict

import pytest
from datasets import load_dataset

from dataset_scripts import load
from dataset_scripts._demo import Demo
from dataset_scripts.demo_relations import NONE, RELATIONS, SAID, RelationPost, main, make_demo_relations
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def demo() -> Demo:
    return make_demo_relations(1)


def names_of(post: RelationPost) -> tuple[list[str], list[str]]:
    """Words of head and tail."""
    return list(post.tokens[slice(*post.head)]), list(post.tokens[slice(*post.tail)])


def test_the_text_is_the_same_on_every_platform():
    small = make_demo_relations(5, train_posts=18, validation_posts=18, test_posts=36)
    held = [*map(small.rows, SPLITS), [[entry.id, entry.text, *entry.emblem] for entry in small.entries]]
    assert (
        hashlib.sha256(json.dumps(held).encode()).hexdigest()
        == "8c5d0888af5597690911ed1fca4595d111df699c2050d2743d952efac274f55a"
    )


def test_posts_name_two_people_and_their_entry_one_of_them(demo):
    ids = [post.id for split in SPLITS for post in demo.posts[split]]
    assert len(set(ids)) == len(ids)
    for split in SPLITS:
        for post in demo.posts[split]:
            head, tail = names_of(post)
            assert not set(range(*post.head)) & set(range(*post.tail))
            if post.condition != "odd_spelling":
                assert post.entry.title in (" ".join(head), " ".join(tail))
                other = head if post.entry.title == " ".join(tail) else tail
                assert (" ".join(other) in post.entry.text) == (post.relation != NONE)
            told = [relation for relation, said in SAID.items() if said in post.entry.text]
            assert told == ([] if post.relation == NONE else [post.relation])
            assert not {"spouse", "sibling", "colleague", "neighbour"} & {token.lower() for token in post.tokens}


def test_no_word_of_a_name_occurs_in_two_splits_or_elsewhere(demo):
    words = {}
    plain: set[str] = set()
    for split in SPLITS:
        words[split] = set()
        for post in demo.posts[split]:
            spans = {*range(*post.head), *range(*post.tail)}
            words[split] |= {token.lower() for at, token in enumerate(post.tokens) if at in spans}
            words[split] |= set(post.entry.title.lower().split())
            plain |= {token.lower() for at, token in enumerate(post.tokens) if at not in spans}
    assert not words["test"] & words["train"] and not words["test"] & words["validation"]
    assert not words["train"] & words["validation"]
    assert not plain & (words["train"] | words["validation"] | words["test"])


def test_nothing_but_the_entry_tells_the_relation(demo):
    as_spelt = make_demo_relations(1, odd_spelling=0.0)  # every name can be compared with its entry
    for split in SPLITS:
        found: dict[str, dict[object, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        posts = demo.posts[split]
        for post in posts:
            spans = {*range(*post.head), *range(*post.tail)}
            sentence = tuple(token for at, token in enumerate(post.tokens) if at not in spans)
            found["sentence"][sentence][post.relation] += 1
            found["condition"][post.condition][post.relation] += 1
            found["head first"][sentence, post.head < post.tail][post.relation] += 1
        for post in as_spelt.posts[split]:
            head, _ = names_of(post)
            found["head has the entry"][post.entry.title == " ".join(head)][post.relation] += 1
        for what, counts in found.items():
            for relations in counts.values():
                assert len({relations[relation] for relation in RELATIONS}) == 1, (split, what)
                assert relations[NONE] * 9 == relations.total(), (split, what)
        assert Counter(post.relation for post in posts)[NONE] * 9 == len(posts)
        shares = {name: counts.total() / len(posts) for name, counts in found["condition"].items()}
        assert shares["odd_spelling"] == pytest.approx(0.15, abs=0.06)
        assert shares["no_emblem"] == pytest.approx(0.15, abs=0.06)


def test_every_word_of_a_name_goes_with_each_relation_once():
    posts = make_demo_relations(2, 36, 18, 36, odd_spelling=0.0).posts
    for split in SPLITS:
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for post in posts[split]:
            for word in [word for name in names_of(post) for word in name] if post.relation != NONE else ():
                found[word][post.relation] += 1
        assert all(counts == dict.fromkeys(RELATIONS, 1) for counts in found.values())


def test_ten_times_as_many_other_entries_as_test_entities(demo):
    of_posts = {post.entry.id for split in SPLITS for post in demo.posts[split]}
    assert len(demo.entries) - len(of_posts) >= 10 * 2 * len(demo.posts["test"])
    assert len({entry.title.lower() for entry in demo.entries}) == len(demo.entries)
    named = {word for post in demo.posts["test"] for name in names_of(post) for word in name}
    rivals = [e for e in demo.entries if e.id not in of_posts and named & set(e.title.split())]
    assert len(rivals) >= len(demo.posts["test"])


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


@pytest.mark.parametrize("options", [{"test_posts": 30}, {"train_posts": 0}, {"odd_spelling": 0.7, "no_emblem": 0.4}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="multiple of 18|shares"):
        make_demo_relations(1, **options)


def test_published_set_is_the_loaded_set(demo, tmp_path):
    folder, cache = tmp_path / "published", str(tmp_path / "cache")
    assert main(["--retrieval", "text", "--output_dir", str(folder), "--cache_dir", cache]) == 0
    published = load_dataset(str(folder), "text", cache_dir=str(tmp_path / "other"))
    loaded = load("demo_relations", "text", cache_dir=cache)
    for split in SPLITS:
        labels = published[split].features["relation"].names
        assert labels == [NONE, *RELATIONS]
        rows = published[split].remove_columns(["image", "knowledge_text"])
        assert [{**row, "relation": labels[row["relation"]]} for row in rows] == demo.rows(split)
        assert loaded[split]["knowledge_text"] == published[split]["knowledge_text"]
    assert len(published["test"][0]["knowledge_text"]) == 10
