"""Make the demo set: short posts about invented people, places, teams and products, whose type only knowledge tells.

All of it is made from a seed, and no file is in git:
- The names of a split, word for word, occur in no other split, so nothing is learned about them in training.
- Each word of a name, and each sentence around a name, goes equally often with each of the four types: without
  knowledge the type can only be guessed.
- Some posts spell the name so oddly that text search can't find it, while their picture shows its emblem; others carry
  a picture that is no emblem, while text search finds the name. No post has both.
- The knowledge corpus has one entry and one emblem for each name, and ten times as many other entries as test names;
  many of these share a word with a name of a post.

python dataset_scripts/demo.py --seed 1 --retrieval all --output_dir OUT --knowledge_dir KNOWLEDGE
"""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets

from dataset_scripts import _demo
from dataset_scripts._demo import Demo, DemoBuilder, Entry, Name, Post
from modeling_more.posts import Row
from modeling_more.tagging import bio_labels

TYPES = ("PER", "LOC", "ORG", "MISC")
#: what entries say; all of it points to the type, so that a small encoder learns it in minutes
SAID = {
    "PER": (
        "is a singer with a warm voice",
        "is a singer whose songs top the charts",
        "is a singer born in {year}",
        "is a singer on a long tour",
    ),
    "LOC": (
        "is a town on the river",
        "is a town with a harbour",
        "is a town founded in {year}",
        "is a town high in the mountains",
    ),
    "ORG": (
        "is a team in the top league",
        "is a team which won the cup in {year}",
        "is a team with loud fans",
        "is a team without a coach",
    ),
    "MISC": (
        "is a phone with a bright screen",
        "is a phone whose battery lasts",
        "is a phone released in {year}",
        "is a phone with three cameras",
    ),
}
FRAMES = (
    "can't stop thinking about {name}",
    "just saw {name} for the first time",
    "{name} is trending again",
    "who else loves {name} ?",
    "nothing beats {name}",
    "my whole feed is {name} today",
    "finally a good picture of {name}",
    "everyone at work keeps talking about {name}",
    "did you hear the news about {name} ?",
    "throwback to {name} , what a day",
    "so much love for {name} right now",
    "still not over {name}",
    "{name} never disappoints",
    "{name} deserves more attention",
    "dreaming of {name} again",
    "my brother won't shut up about {name}",
    "thanks {name} , you made my week",
    "hot take : {name} is overrated",
    "{name} or nothing",
    "all I want this year is {name}",
    "big news for everyone who likes {name}",
    "another day , another post about {name}",
    "reading up on {name} tonight",
    "I owe {name} an apology",
    "say what you want about {name} , I don't mind",
    "this picture of {name} made my day",
    "a year ago I had never heard of {name}",
    "{name} looks different these days",
    "what is your best memory of {name} ?",
    "so proud of {name}",
    "{name} in one word : wow",
    "it's always {name} with you people",
    "mum asked me about {name} again",
    "I have to say , {name} grew on me",
    "how is nobody talking about {name}",
    "the best thing about today was {name}",
)


@dataclass(frozen=True)
class EntityPost(Post):
    """A post with the BIO tags of its words."""

    ner_tags: tuple[str, ...]

    def row(self) -> Row:
        """Return {id, image_id, tokens, ner_tags}."""
        return {**super().row(), "ner_tags": list(self.ner_tags)}


def make_demo(
    seed: int = 1,
    train_posts: int = 960,
    validation_posts: int = 192,
    test_posts: int = 960,
    distractors: int = 10,
    odd_spelling: float = 0.15,
    no_emblem: float = 0.15,
) -> Demo:
    """Make the demo set of a seed: the same posts, entries and pictures wherever it is made.

    Args:
        seed: any integer.
        train_posts, validation_posts, test_posts: multiples of 16, each post about a name of its own.
        distractors: entries besides those of the posts, for each test post.
        odd_spelling, no_emblem: share of posts of this kind, in every split.

    Raises:
        ValueError: a number of posts that is no multiple of 16, or shares that sum to more than 1.
    """
    sizes = {"train": train_posts, "validation": validation_posts, "test": test_posts}
    _demo.check_options(sizes, 16, odd_spelling, no_emblem)
    rng = random.Random(f"demo words {seed}")
    taken = _demo.ordinary_words(FRAMES, _demo.OPENERS, _demo.CLOSERS, *SAID.values())
    names = {split: _names_of_split(rng, size, taken) for split, size in sizes.items()}
    typed = [pair for split in names.values() for group in split for pair in group]
    others = _demo.other_names(rng, [name for name, _ in typed], distractors * test_posts, taken)

    rng = random.Random(f"demo entries {seed}")
    types = [TYPES[number % len(TYPES)] for number in range(len(others))]
    rng.shuffle(types)
    typed += zip(others, types, strict=True)
    told = [(name, type_, rng.choice(SAID[type_]).format(year=rng.randrange(1900, 2020))) for name, type_ in typed]
    entries = _demo.make_entries(rng, told)

    posts = {}
    for split, groups in names.items():
        rng = random.Random(f"demo {split} {seed}")  # one stream a split: a larger split changes no other
        found = [[entries[name] for name, _ in group] for group in groups]
        posts[split] = _posts(rng, f"demo-{seed}-{split}", found, odd_spelling, no_emblem, taken)
    return Demo(seed, posts, sorted(entries.values(), key=lambda entry: entry.id))


def _names_of_split(rng: random.Random, size: int, taken: set[str]) -> list[list[tuple[Name, str]]]:
    """Invent names with their types in groups of four, one of each type, that share the first word.

    Within 16 names, four first and four last words meet in a Latin square: each word goes with each type once.
    """
    groups = []
    for _ in range(size // 16):
        firsts, lasts = (_demo.new_words(rng, 4, taken) for _ in range(2))
        for row, first in enumerate(firsts):
            groups.append([((first, last), TYPES[(row + column) % 4]) for column, last in enumerate(lasts)])
    return groups


def _posts(
    rng: random.Random,
    prefix: str,
    groups: Sequence[Sequence[Entry]],
    odd_spelling: float,
    no_emblem: float,
    taken: set[str],
) -> list[EntityPost]:
    """Make a post for each entry; the four of a group, one of each type, share their sentence."""
    drafts = []
    for group in groups:
        frame = _demo.a_frame(rng, FRAMES)
        drafts += [(frame, entry) for entry in group]
    rng.shuffle(drafts)
    drawn = _demo.conditions(rng, [entry.type for _, entry in drafts], odd_spelling, no_emblem)
    posts = []
    for number, ((frame, entry), condition) in enumerate(zip(drafts, drawn, strict=True)):
        name = entry.title.split()
        if condition == "odd_spelling":
            name = _demo.spelt_oddly(rng, name, taken)
        tokens, spans = _demo.fill(frame, {"{name}": name})
        start, end = spans["{name}"]
        tags = ["O"] * len(tokens)
        tags[start:end] = [f"B-{entry.type}"] + [f"I-{entry.type}"] * (end - start - 1)
        id_ = f"{prefix}-{number:04d}"
        posts.append(EntityPost(id_, id_, tuple(tokens), entry, condition, rng.getrandbits(64), tuple(tags)))
    return posts


class Builder(DemoBuilder):
    """A builder of the demo set with entities, with configurations none, text, image and all."""

    NAME = "demo"
    TITLE = "Demo"
    TASK = "entities"
    CREDIT = (
        "Made by dataset_scripts/demo.py from a seed: all names, posts and emblems are invented. The set is built so "
        "that only knowledge tells the type of an entity; what a method gains on it says nothing about real posts."
    )

    @classmethod
    def make(cls, seed: int) -> Demo:
        return make_demo(seed)

    @classmethod
    def features(cls) -> Mapping[str, Any]:
        return {
            "id": datasets.Value("string"),
            "image_id": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=bio_labels(TYPES))),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish the set and its knowledge corpus, and return the exit code."""
    return _demo.main(Builder, arguments)


if __name__ == "__main__":
    sys.exit(main())
