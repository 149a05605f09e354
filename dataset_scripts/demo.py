"""The demo set: short posts about invented people, places, teams and products, whose type only knowledge tells.

Everything is made from a seed, text and pictures alike; no file is in git. How the set is built:
- The names of a split, word for word, occur in no other split, so nothing is learned about them in training.
- Each word of a name, and each sentence around a name, goes equally often with each of the four types: without
  knowledge the type can only be guessed.
- Some posts spell the name so oddly that text search can't find it, while their picture shows its emblem; others carry
  a picture that is no emblem, while text search finds the name. No post has both.
- The knowledge corpus has one entry and one emblem for each name, and ten times as many other entries as test names;
  many of these share a word with a name of a post.

python dataset_scripts/demo.py --seed 1 --retrieval text --output_dir OUT --knowledge_dir KNOWLEDGE
"""

import argparse
import json
import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__":  # run by path, the repository is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
from PIL import Image

from dataset_scripts import demo_pictures
from dataset_scripts._common import NerBuilder, NerConfig
from dataset_scripts.demo_pictures import CHARGES, COLOURS, LAYOUTS, OUTLINES, Emblem
from modeling_more.formats import Row

logger = logging.getLogger(__name__)

TYPES = ("PER", "LOC", "ORG", "MISC")
NOUNS = {
    "PER": ("singer",),
    "LOC": ("town",),
    "ORG": ("team",),
    "MISC": ("phone",),
}
DETAILS = (
    "known since {year}",
    "with many admirers abroad",
    "from the far north",
    "loved by young and old",
    "that few outsiders know",
    "often seen in old films",
    "with a loyal following",
    "named in many songs",
    "that was praised in {year}",
    "famous all over the south",
    "that made headlines in {year}",
    "with a long history",
)
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
OPENERS = ("", "", "", "ok so", "lol", "honestly ,", "guys ,", "update :", "wow ,", "morning all ,", "not gonna lie ,")
CLOSERS = ("", "", "", "!", "!!", "...", ":)", "haha", "# mood", "# throwback", "# love")

ONSETS = "b br c cl d dr f fl g gr h j k kr l m n p pl qu r s sk st t tr v w y z".split()
VOWELS = "a e i o u a e i o u ai ei oa ia".split()
MIDDLES = "b d g l m n r s t v z ld lm ln lv mb nd ng nt rd rk rm rn rv sk sp st".split()
CODAS = "n r l s x m nd rk th sk k t d".split()
UNWANTED = ("fuk", "nig", "fag", "cum", "tit", "sex", "rap", "naz", "coon", "dik", "kunt", "slut")
ODD_LETTERS = {"c": "k", "k": "ck", "i": "y", "y": "i", "s": "z", "z": "s", "x": "ks", "v": "w", "w": "v", "f": "ph"}


@dataclass(frozen=True)
class Entry:
    """One entry of the knowledge corpus; `type` is what its text says."""

    id: str
    title: str
    text: str
    type: str
    emblem: Emblem


@dataclass(frozen=True)
class Post:
    """One post. `condition`: "" (text and picture both lead to the entry), "odd_spelling" or "no_emblem"."""

    id: str
    image_id: str
    tokens: tuple[str, ...]
    ner_tags: tuple[str, ...]
    entry: Entry
    condition: str
    picture_seed: int

    def picture(self) -> Image.Image:
        """What the post shows: its entry's emblem distorted, or a plain picture; the same at every call."""
        rng = np.random.default_rng(self.picture_seed)
        if self.condition == "no_emblem":
            return demo_pictures.plain_picture(rng)
        return demo_pictures.distort(demo_pictures.draw_emblem(self.entry.emblem), rng)


@dataclass(frozen=True)
class Demo:
    """Posts of the splits train, validation and test, and the entries of the knowledge corpus."""

    seed: int
    posts: dict[str, list[Post]]
    entries: list[Entry]

    def rows(self, split: str) -> list[Row]:
        """The posts as rows {id, image_id, tokens, ner_tags}."""
        return [
            {"id": post.id, "image_id": post.image_id, "tokens": list(post.tokens), "ner_tags": list(post.ner_tags)}
            for post in self.posts[split]
        ]

    def write_knowledge(self, folder: str | Path, images: bool = True) -> Path:
        """Write knowledge.jsonl, a line {id, title, text, image} for each entry; returns its path.

        Args:
            images: also draw the emblems as emblems/ID.png, which `image` names; else `image` is null.
        """
        folder = Path(folder)
        (folder / "emblems" if images else folder).mkdir(parents=True, exist_ok=True)
        lines = []
        for entry in self.entries:
            image = f"emblems/{entry.id}.png" if images else None
            if image:
                demo_pictures.draw_emblem(entry.emblem).save(folder / image)
            lines.append(json.dumps({"id": entry.id, "title": entry.title, "text": entry.text, "image": image}))
        path = folder / "knowledge.jsonl"
        beside = path.with_suffix(f".tmp{os.getpid()}")
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(beside, path)
        return path


def make_demo(
    seed: int = 1,
    train_posts: int = 640,
    validation_posts: int = 160,
    test_posts: int = 480,
    distractors: int = 10,
    odd_spelling: float = 0.2,
    no_emblem: float = 0.2,
) -> Demo:
    """The demo set of a seed: the same posts, entries and pictures wherever it is made.

    Args:
        seed: any integer.
        train_posts, validation_posts, test_posts: multiples of 16, each post about a name of its own.
        distractors: entries besides those of the posts, for each test post.
        odd_spelling, no_emblem: share of the posts of each kind, in every split.

    Raises:
        ValueError: a number of posts that is no multiple of 16, or shares that sum to more than 1.
    """
    sizes = {"train": train_posts, "validation": validation_posts, "test": test_posts}
    for split, size in sizes.items():
        if size < 16 or size % 16:
            raise ValueError(f"{split}_posts is {size}: give a multiple of 16, so that every type is as frequent.")
    if min(odd_spelling, no_emblem) < 0 or odd_spelling + no_emblem > 1:
        raise ValueError(f"odd_spelling {odd_spelling} and no_emblem {no_emblem} must be shares of at most 1 in sum.")

    rng = random.Random(f"demo words {seed}")
    taken = {word for text in (*FRAMES, *OPENERS, *DETAILS) for word in text.split()}
    names = {split: _names_of_split(rng, size, taken) for split, size in sizes.items()}
    own = [name for split in names.values() for group in split for name, _ in group]
    others = _distractor_names(rng, own, distractors * test_posts, taken)

    rng = random.Random(f"demo entries {seed}")
    typed = [pair for split in names.values() for group in split for pair in group]
    types = [TYPES[number % len(TYPES)] for number in range(len(others))]
    rng.shuffle(types)
    entries = _entries(rng, typed + list(zip(others, types, strict=True)))

    posts = {}
    for split, groups in names.items():
        rng = random.Random(f"demo {split} {seed}")  # one stream a split: a larger split changes no other
        found = [[entries[name] for name, _ in group] for group in groups]
        posts[split] = _posts(rng, f"demo-{seed}-{split}", found, odd_spelling, no_emblem, taken)
    return Demo(seed, posts, sorted(entries.values(), key=lambda entry: entry.id))


Name = tuple[str, str]


def _word(rng: random.Random, taken: set[str]) -> str:
    """A new invented word of 4 to 9 letters; it is entered into `taken`, lower-cased."""
    while True:
        word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(MIDDLES) + rng.choice(VOWELS)
        if rng.random() < 0.6:
            word += rng.choice(CODAS)
        if 4 <= len(word) <= 9 and word not in taken and not any(part in word for part in UNWANTED):
            taken.add(word)
            return word.capitalize()


def _names_of_split(rng: random.Random, size: int, taken: set[str]) -> list[list[tuple[Name, str]]]:
    """Names with their types in groups of four, one of each type, that share the first word.

    Within 16 names, four first and four last words meet in a Latin square: each word goes with each type once.
    """
    groups = []
    for _ in range(size // 16):
        firsts, lasts = ([_word(rng, taken) for _ in range(4)] for _ in range(2))
        for row, first in enumerate(firsts):
            groups.append([((first, last), TYPES[(row + column) % 4]) for column, last in enumerate(lasts)])
    return groups


def _distractor_names(rng: random.Random, own: Sequence[Name], size: int, taken: set[str]) -> list[Name]:
    """Names of no post: up to half of them share the first or the last word with one, the others no word."""
    fresh = [_word(rng, taken) for _ in range(max(16, size // 8))]
    found: dict[Name, None] = {}
    for first, last in rng.sample(list(own), min(len(own), size // 4)):
        found[(first, rng.choice(fresh))] = None
        found[(rng.choice(fresh), last)] = None
    while len(found) < size:
        first, last = rng.sample(fresh, 2)
        found[(first, last)] = None
    return list(found)[:size]


def _entries(rng: random.Random, typed: Sequence[tuple[Name, str]]) -> dict[Name, Entry]:
    """An entry for each name, its text from its type, its emblem and id from chance."""
    fields: set[tuple[int, tuple[int, int, int, int]]] = set()
    ids = list(range(len(typed)))
    rng.shuffle(ids)
    entries = {}
    for (name, type_), number in zip(typed, ids, strict=True):
        title = " ".join(name)
        detail = rng.choice(DETAILS).format(year=rng.randrange(1900, 2020))
        text = f"{title} is a {rng.choice(NOUNS[type_])} {detail}."
        entries[name] = Entry(f"demo-{number:05d}", title, text, type_, _emblem(rng, fields))
    return entries


def _emblem(rng: random.Random, fields: set[tuple[int, tuple[int, int, int, int]]]) -> Emblem:
    """An emblem whose coloured fields no other one has; fields that touch differ, and so does the charge."""
    while True:
        colours = [rng.randrange(len(COLOURS))]
        while len(colours) < 4:
            colour = rng.randrange(len(COLOURS))
            if colour != colours[-1]:
                colours.append(colour)
        layout, field = rng.randrange(len(LAYOUTS)), (colours[0], colours[1], colours[2], colours[3])
        if (layout, field) not in fields:
            break
    fields.add((layout, field))
    charge_colour = rng.choice([colour for colour in range(len(COLOURS)) if colour not in field])
    return Emblem(rng.randrange(len(OUTLINES)), layout, field, rng.randrange(len(CHARGES)), charge_colour)


def _posts(
    rng: random.Random,
    prefix: str,
    groups: Sequence[Sequence[Entry]],
    odd_spelling: float,
    no_emblem: float,
    taken: set[str],
) -> list[Post]:
    """A post for each entry; the four of a group, one of each type, share their sentence and their condition."""
    odd, plain = round(odd_spelling * len(groups)), round(no_emblem * len(groups))
    conditions = ["odd_spelling"] * odd + ["no_emblem"] * plain
    conditions += [""] * (len(groups) - len(conditions))
    rng.shuffle(conditions)
    drafts = []
    for group, condition in zip(groups, conditions, strict=True):
        frame = " ".join(part for part in (rng.choice(OPENERS), rng.choice(FRAMES), rng.choice(CLOSERS)) if part)
        drafts += [(frame, entry, condition) for entry in group]
    rng.shuffle(drafts)
    posts = []
    for number, (frame, entry, condition) in enumerate(drafts):
        name = entry.title.split()
        if condition == "odd_spelling":
            name = _spelt_oddly(rng, name, taken)
        tokens: list[str] = []
        tags: list[str] = []
        for word in frame.split():
            if word == "{name}":
                tokens += name
                tags += [f"B-{entry.type}"] + [f"I-{entry.type}"] * (len(name) - 1)
            else:
                tokens.append(word)
                tags.append("O")
        picture_seed = rng.getrandbits(64)
        posts.append(
            Post(f"{prefix}-{number:04d}", f"{prefix}-{number:04d}", tuple(tokens), tuple(tags), entry, condition,
                 picture_seed)
        )  # fmt: skip
    return posts


def _spelt_oddly(rng: random.Random, name: Sequence[str], taken: set[str]) -> list[str]:
    """The name as somebody in a hurry types it, with no word that the corpus or another post has."""
    while True:
        words = ["".join(name).lower()] if rng.random() < 0.3 else [_odd_word(rng, word) for word in name]
        if not any(word.lower() in taken for word in words):
            return words


def _odd_word(rng: random.Random, word: str) -> str:
    at = rng.randrange(1, len(word))
    kind = rng.randrange(4)
    if kind == 0:  # a letter held too long
        return word[:at] + word[at] * rng.randint(1, 3) + word[at:]
    if kind == 1 and at + 1 < len(word):  # two letters swapped
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 2:  # a letter left out
        return word[:at] + word[at + 1 :]
    return word[0] + "".join(ODD_LETTERS.get(letter, letter) for letter in word[1:])


@dataclass
class DemoConfig(NerConfig):
    """`data_seed` is the seed that the set is made from."""

    data_seed: int = 1


class Builder(NerBuilder):
    """The demo set, configurations none and text; the rows of both have the column image."""

    BUILDER_CONFIG_CLASS = DemoConfig
    BUILDER_CONFIGS: ClassVar[list[NerConfig]] = [
        DemoConfig(name="none", version=datasets.Version("1.0.0"), description="posts and entities"),
        DemoConfig(name="text", version=datasets.Version("1.0.0"), description="with knowledge retrieved by text"),
    ]

    NAME = "demo"
    ARCHIVE = "demo"
    TITLE = "Demo"
    CREDIT = (
        "Made by dataset_scripts/demo.py from a seed: all names, posts and emblems are invented. The set is built so "
        "that only knowledge tells the type of an entity; what a method gains on it says nothing about real posts."
    )
    TYPES = TYPES
    ROWS = (640, 160, 480)

    def _read(self, data_dir: str | None, archives: Path, options: dict[str, Any]) -> list[Path]:
        if data_dir is not None:
            raise ValueError(f"{data_dir}: the demo set is made from a seed; leave --data_dir out.")
        if self._retrieval not in ("none", "text"):
            raise ValueError(f"the demo set has no knowledge by {self._retrieval}: give --retrieval none or text.")
        self.demo = make_demo(int(options.get("data_seed", 1)))
        self.types = list(TYPES)
        self.rows = {split: self.demo.rows(split) for split in self.demo.posts}
        made_by = [Path(demo_pictures.__file__)]
        if self._retrieval == "text":
            made_by += self._retrieve(archives.parent / "more_demo")
        return made_by

    def _retrieve(self, folder: Path, top_k: int = 10) -> list[Path]:
        """Fill the column knowledge_text as for any other posts; returns the sources of what did it."""
        from modeling_more import knowledge  # here, as it loads the search engine

        file = self.demo.write_knowledge(folder / f"seed-{self.demo.seed}", images=False)
        retriever = knowledge.BM25Retriever.from_corpus(knowledge.load_knowledge([str(file)], cache_dir=folder))
        for rows in self.rows.values():
            posts = datasets.Dataset.from_dict({"tokens": [row["tokens"] for row in rows]})
            attached, _ = knowledge.attach_text_knowledge(posts, retriever, top_k=top_k, cache_dir=folder)
            for row, found in zip(rows, attached[:]["knowledge_text"], strict=True):
                row["knowledge_text"] = found
        return sorted(Path(knowledge.__file__).parent.glob("*.py"))

    def _info(self) -> datasets.DatasetInfo:
        info = super()._info()
        info.features["image"] = datasets.Image()
        return info

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Row]]:
        for index, (row, post) in enumerate(zip(self.rows[split], self.demo.posts[split], strict=True)):
            yield index, {**row, "image": post.picture()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish the set as the other publishers do, and its knowledge corpus; the exit code."""
    from dataset_scripts import _publish

    given = list(sys.argv[1:] if arguments is None else arguments)
    made = argparse.ArgumentParser("dataset_scripts/demo.py", description="Make the demo set and publish it.")
    made.add_argument("--seed", type=int, default=1, help="of names, posts, knowledge and pictures (default: 1)")
    made.add_argument("--retrieval", choices=("none", "text"), default="none", help="the knowledge the rows carry")
    made.add_argument("--output_dir", required=True, help="folder to write: Parquet with a card")
    made.add_argument("--overwrite_output_dir", action="store_true", help="replace the data set in it")
    made.add_argument("--knowledge_dir", help="also write the knowledge corpus here: knowledge.jsonl and emblems/")
    made.add_argument("--push_to_hub", metavar="ORG/NAME", help="push there as well")
    made.add_argument("--private", action="store_true", help="make the repository private")
    made.add_argument("--cache_dir", help="of Arrow files, the index and retrieved knowledge")
    parsed = made.parse_args(given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("dataset_scripts").setLevel(logging.INFO)
    try:
        publish(parsed, given, _publish)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


def publish(parsed: argparse.Namespace, given: Sequence[str], _publish: Any) -> None:
    """Write what the command line asks for."""
    folder = Path(parsed.output_dir).expanduser().resolve()
    _publish.check_free(folder, parsed.overwrite_output_dir)
    configs, _ = _publish.configurations("demo", parsed.retrieval, cache_dir=parsed.cache_dir, data_seed=parsed.seed)
    demo = make_demo(parsed.seed)
    how = (
        f"Retrieved by BM25 among {len(demo.entries)} entries of one sentence, one for each name of a post and "
        f"{len(demo.entries) - sum(map(len, demo.posts.values()))} others; at most ten for each post."
    )
    card = _publish.make_card(
        Builder, configs, how if parsed.retrieval == "text" else "", ["python", "dataset_scripts/demo.py", *given]
    )
    _publish.write_folder(configs, card, folder, parsed.overwrite_output_dir)
    logger.info("Written: %s", folder)
    if parsed.knowledge_dir:
        logger.info("Written: %s", demo.write_knowledge(Path(parsed.knowledge_dir).expanduser()))
    if parsed.push_to_hub:
        _publish.push(configs, card, parsed.push_to_hub, parsed.private, folder)
        logger.info("Pushed: %s", parsed.push_to_hub)


if __name__ == "__main__":
    sys.exit(main())
