"""Make the demo set with relations: posts about two invented people, whose relation only knowledge tells.

It is made by the same rules as the set with entities (`demo.py`):
- The names of a split, word for word, occur in no other split.
- Each word of a name, each sentence, the order of the two names and which of them is the head go equally often with
  each of the four relations; both entities are always people.
- An entry about one of the two says how that one stands to the other. Where the relation is None, it names nobody.
- None is half as frequent as a relation, so that who can only guess does not guess None, which F1 would not count.
- Some posts spell both names so oddly that text search can't find them, while their picture shows the emblem; others
  carry a picture that is no emblem, while text search finds the names. No post has both.

python dataset_scripts/demo_relations.py --seed 1 --retrieval all --output_dir OUT --knowledge_dir KNOWLEDGE
"""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset_scripts import _demo
from dataset_scripts._builders import relation_features
from dataset_scripts._demo import Demo, DemoBuilder, Entry, Name, Post
from modeling_more.posts import Row

NONE = "None"
#: names as in MNRE; all four hold in both directions, so that head and tail may change places
SAID = {
    "/per/per/couple": "is the spouse of",
    "/per/per/siblings": "is the sibling of",
    "/per/per/peer": "is the colleague of",
    "/per/per/neighbor": "is the neighbour of",
}
RELATIONS = tuple(SAID)
ALONE = (
    "is a singer with a warm voice",
    "is a baker from the far north",
    "is a nurse with many admirers",
    "is a pilot loved by young and old",
)  # what the entry of a pair without a relation says
FRAMES = (
    "{one} and {two} in one picture",
    "just saw {one} with {two}",
    "{one} waved at {two} today",
    "what a day with {one} and {two}",
    "first {one} , then {two} , what a week",
    "so {one} and {two} met again",
    "{one} thanks {two}",
    "dinner with {one} and {two}",
    "everyone talks about {one} and {two}",
    "{one} sang for {two} last night",
    "throwback to {one} next to {two}",
    "nobody told me that {one} knows {two}",
    "{one} , here with {two}",
    "is that {one} behind {two} ?",
    "found this of {one} and {two}",
    "{one} and {two} never disappoint",
    "{one} laughed , {two} did not",
    "good to see {one} and {two}",
    "{one} wrote about {two} again",
    "still smiling about {one} and {two}",
    "who took this of {one} and {two} ?",
    "{one} met {two} at the station",
    "not a day without {one} and {two}",
    "{one} came late , {two} too",
)
BLOCK = 18  # posts in which each word of a name goes with each relation once: 16 with a relation, 2 with None


class Pair(NamedTuple):
    """A pair of names, that with the entry first, and their relation."""

    about: Name
    other: Name
    relation: str


@dataclass(frozen=True)
class RelationPost(Post):
    """A post with the spans [start, end) of head and tail, in words, and their relation."""

    head: tuple[int, int]
    tail: tuple[int, int]
    relation: str

    def row(self) -> Row:
        """Return {id, image_id, tokens, head, tail, relation}."""
        return {**super().row(), "head": list(self.head), "tail": list(self.tail), "relation": self.relation}


def make_demo_relations(
    seed: int = 1,
    train_posts: int = 558,
    validation_posts: int = 144,
    test_posts: int = 360,
    distractors: int = 10,
    odd_spelling: float = 0.15,
    no_emblem: float = 0.15,
) -> Demo:
    """Make the demo set with relations of a seed: the same posts, entries and pictures wherever it is made.

    Args:
        seed: any integer.
        train_posts, validation_posts, test_posts: multiples of 18, each post about two names of its own.
        distractors: entries besides those of the posts, for each of the two entities of a test post.
        odd_spelling, no_emblem: share of posts of this kind, in every split.

    Raises:
        ValueError: a number of posts that is no multiple of 18, or shares that sum to more than 1.
    """
    sizes = {"train": train_posts, "validation": validation_posts, "test": test_posts}
    _demo.check_options(sizes, BLOCK, odd_spelling, no_emblem)
    rng = random.Random(f"demo relations words {seed}")
    taken = _demo.ordinary_words(FRAMES, _demo.OPENERS, _demo.CLOSERS, ALONE, SAID.values())
    groups = {split: _groups_of_split(rng, size, taken) for split, size in sizes.items()}
    pairs = [pair for split in groups.values() for group in split for pair in group]
    own = [name for pair in pairs for name in (pair.about, pair.other)]
    others = _demo.other_names(rng, own, 2 * distractors * test_posts, taken)
    words = _demo.new_words(rng, 2 * max(1, len(others) // 8), taken)
    thirds = list(zip(words[::2], words[1::2], strict=True))  # names in no post and no entry's title

    rng = random.Random(f"demo relations entries {seed}")
    relations = [(*RELATIONS, *RELATIONS, NONE)[number % 9] for number in range(len(others))]
    rng.shuffle(relations)
    pairs += [Pair(name, rng.choice(thirds), relation) for name, relation in zip(others, relations, strict=True)]
    told = [(pair.about, pair.relation, _said(rng, pair)) for pair in pairs]
    entries = _demo.make_entries(rng, told)

    posts = {}
    for split, found in groups.items():
        rng = random.Random(f"demo relations {split} {seed}")
        prefix = f"demo-relations-{seed}-{split}"
        posts[split] = _posts(rng, prefix, found, entries, odd_spelling, no_emblem, taken)
    return Demo(seed, posts, sorted(entries.values(), key=lambda entry: entry.id))


def _said(rng: random.Random, pair: Pair) -> str:
    if pair.relation == NONE:
        return rng.choice(ALONE)
    return f"{SAID[pair.relation]} {' '.join(pair.other)}"


def _groups_of_split(rng: random.Random, size: int, taken: set[str]) -> list[list[Pair]]:
    """Invent pairs in groups of nine, two of each relation and one of None.

    Of 16 pairs, four first and four last words make up the names with an entry, four others the names without, each
    time in a Latin square: every word goes with each relation once.
    """
    groups = []
    for _ in range(size // BLOCK):
        about_first, about_last, first, last = (_demo.new_words(rng, 4, taken) for _ in range(4))
        rows = [
            [
                Pair((about_first[row], about_last[i]), (first[row], last[i]), RELATIONS[(row + i) % 4])
                for i in range(4)
            ]
            for row in range(4)
        ]
        for one, two in ((0, 1), (2, 3)):
            lasts = _demo.new_words(rng, 2, taken)
            none = Pair((about_first[one], lasts[0]), (first[two], lasts[1]), NONE)
            groups.append([*rows[one], *rows[two], none])
    return groups


def _posts(
    rng: random.Random,
    prefix: str,
    groups: Sequence[Sequence[Pair]],
    entries: dict[Name, Entry],
    odd_spelling: float,
    no_emblem: float,
    taken: set[str],
) -> list[RelationPost]:
    """Make a post for each pair; those of a group share sentence and order."""
    drafts = []
    for group in groups:
        frame = _demo.a_frame(rng, FRAMES)
        about, other = rng.sample(("{one}", "{two}"), 2)  # places of the name that has the entry and of the other
        head = rng.choice((about, other))
        drafts += [(pair, frame, about, other, head) for pair in group]
    rng.shuffle(drafts)
    drawn = _demo.conditions(rng, [draft[0].relation for draft in drafts], odd_spelling, no_emblem)
    posts = []
    for number, ((pair, frame, about, other, head), condition) in enumerate(zip(drafts, drawn, strict=True)):
        names: dict[str, Sequence[str]] = {about: pair.about, other: pair.other}
        if condition == "odd_spelling":
            names = {place: _demo.spelt_oddly(rng, name, taken) for place, name in names.items()}
        tokens, spans = _demo.fill(frame, names)
        tail = other if head == about else about
        id_ = f"{prefix}-{number:04d}"
        posts.append(
            RelationPost(
                id_, id_, tuple(tokens), entries[pair.about], condition, rng.getrandbits(64),
                spans[head], spans[tail], pair.relation,
            )
        )  # fmt: skip
    return posts


class Builder(DemoBuilder):
    """A builder of the demo set with relations, with configurations none, text, image and all."""

    NAME = "demo_relations"
    TITLE = "Demo, relations"
    TASK = "relations"
    CREDIT = (
        "Made by dataset_scripts/demo_relations.py from a seed: all names, posts and emblems are invented. The set is "
        "built so that only knowledge tells how the two people of a post stand to each other; what a method gains on "
        "it says nothing about real posts."
    )

    @classmethod
    def make(cls, seed: int) -> Demo:
        return make_demo_relations(seed)

    @classmethod
    def features(cls) -> Mapping[str, Any]:
        return relation_features((NONE, *RELATIONS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish the set and its knowledge corpus, and return the exit code."""
    return _demo.main(Builder, arguments)


if __name__ == "__main__":
    sys.exit(main())
