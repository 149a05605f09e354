"""Make the demo sets: invented names, emblems, posts and knowledge, and the builder and publisher of both sets.

Text and pictures are made from a seed: `demo.py` has the set with entities, `demo_relations.py` that with relations.
"""

import argparse
import hashlib
import json
import logging
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
from PIL import Image

from dataset_scripts import _publish, demo_pictures
from dataset_scripts._archives import SPLITS
from dataset_scripts._builders import knowledge_feature
from dataset_scripts._card import About, make_card
from dataset_scripts.demo_pictures import CHARGES, COLOURS, LAYOUTS, OUTLINES, Emblem
from modeling_more.files import write_text
from modeling_more.naming import NamingParser
from modeling_more.posts import Row

logger = logging.getLogger(__name__)

#: columns of each configuration besides the posts
COLUMNS = {
    "none": (),
    "text": ("knowledge_text",),
    "image": ("knowledge_image",),
    "all": ("knowledge_text", "knowledge_image"),
}
TOP_K = 10
TOWER_EMBLEMS, TOWER_STEPS = 2000, 300

OPENERS = ("", "", "", "ok so", "lol", "honestly ,", "guys ,", "update :", "wow ,", "morning all ,", "not gonna lie ,")
CLOSERS = ("", "", "", "!", "!!", "...", ":)", "haha", "# mood", "# throwback", "# love")

#: few letters, so that a word is two or three sub-tokens
ONSETS = "b br d dr f g gr h j k kr l m n p r s t tr v w z".split()
VOWELS = "aeiou"
MIDDLES = "bdglmnrstvz"
CODAS = "nrlsx"
UNWANTED = ("fuk", "nig", "fag", "cum", "tit", "sex", "rap", "naz", "coon", "dik", "kunt", "slut")
ODD_LETTERS = {"c": "k", "k": "ck", "i": "y", "y": "i", "s": "z", "z": "s", "x": "ks", "v": "w", "w": "v", "f": "ph"}

Name = tuple[str, str]


@dataclass(frozen=True)
class Entry:
    """An entry of the knowledge corpus; its text says its `type`, an entity type or a relation."""

    id: str
    title: str
    text: str
    type: str
    emblem: Emblem


@dataclass(frozen=True)
class Post:
    """A post and the entry that tells its label.

    Attributes:
        condition: "" (text and picture both lead to the entry), "odd_spelling" or "no_emblem".
    """

    id: str
    image_id: str
    tokens: tuple[str, ...]
    entry: Entry
    condition: str
    picture_seed: int

    def picture(self) -> Image.Image:
        """Draw what the post shows, the same at every call: its entry's emblem distorted, or a plain picture."""
        rng = np.random.default_rng(self.picture_seed)
        if self.condition == "no_emblem":
            return demo_pictures.plain_picture(rng)
        return demo_pictures.distort(demo_pictures.draw_emblem(self.entry.emblem), rng)

    def row(self) -> Row:
        """Return {id, image_id, tokens}, to which a set adds its labels."""
        return {"id": self.id, "image_id": self.image_id, "tokens": list(self.tokens)}


@dataclass(frozen=True)
class Demo:
    """The posts of train, validation and test, and the entries of the knowledge corpus."""

    seed: int
    posts: Mapping[str, Sequence[Post]]
    entries: Sequence[Entry]

    def rows(self, split: str) -> list[Row]:
        """Return the posts as rows with their labels as strings."""
        return [post.row() for post in self.posts[split]]

    def write_knowledge(self, folder: str | Path, images: bool = True) -> Path:
        """Write knowledge.jsonl, a line {id, title, text, image} for each entry, and return its path.

        Args:
            images: whether to draw the emblems as emblems/ID.png, which `image` names; else `image` is null.
        """
        folder = Path(folder)
        (folder / "emblems" if images else folder).mkdir(parents=True, exist_ok=True)
        lines = []
        for entry in self.entries:
            image = f"emblems/{entry.id}.png" if images else None
            if image:
                demo_pictures.draw_emblem(entry.emblem).save(folder / image, compress_level=1)
            lines.append(json.dumps({"id": entry.id, "title": entry.title, "text": entry.text, "image": image}))
        path = folder / "knowledge.jsonl"
        write_text(path, "\n".join(lines) + "\n")
        return path


def check_options(sizes: Mapping[str, int], multiple: int, odd_spelling: float, no_emblem: float) -> None:
    """Raise ValueError for sizes that are no multiples of `multiple`, and for shares of more than 1 in sum."""
    for split, size in sizes.items():
        if size < multiple or size % multiple:
            raise ValueError(f"{split}_posts is {size}: give a multiple of {multiple}, so that the labels balance.")
    if min(odd_spelling, no_emblem) < 0 or odd_spelling + no_emblem > 1:
        raise ValueError(f"odd_spelling {odd_spelling} and no_emblem {no_emblem} must be shares of at most 1 in sum.")


def ordinary_words(*texts: Iterable[str]) -> set[str]:
    """Return the words that are no names."""
    return {word for part in texts for text in part for word in text.lower().split()}


def new_word(rng: random.Random, taken: set[str]) -> str:
    """Invent a word of 4 to 6 letters, and enter it into `taken`, lower-cased."""
    while True:
        word = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(MIDDLES) + rng.choice(VOWELS)
        if rng.random() < 0.6:
            word += rng.choice(CODAS)
        if word not in taken and not any(part in word for part in UNWANTED):
            taken.add(word)
            return word.capitalize()


def new_words(rng: random.Random, number: int, taken: set[str]) -> list[str]:
    """Invent so many words."""
    return [new_word(rng, taken) for _ in range(number)]


def other_names(rng: random.Random, own: Sequence[Name], size: int, taken: set[str]) -> list[Name]:
    """Invent names of no post; up to half of them share the first or last word with one, the others none."""
    fresh = new_words(rng, max(16, size // 8), taken)
    found: dict[Name, None] = {}
    for first, last in rng.sample(list(own), min(len(own), size // 4)):
        found[(first, rng.choice(fresh))] = None
        found[(rng.choice(fresh), last)] = None
    while len(found) < size:
        first, last = rng.sample(fresh, 2)
        found[(first, last)] = None
    return list(found)[:size]


def make_entries(rng: random.Random, told: Sequence[tuple[Name, str, str]]) -> dict[Name, Entry]:
    """Make an entry for each (name, type, what is said of it), with id and emblem drawn by lot."""
    fields: set[tuple[int, tuple[int, int, int, int]]] = set()
    ids = list(range(len(told)))
    rng.shuffle(ids)
    entries = {}
    for (name, type_, said), number in zip(told, ids, strict=True):
        title = " ".join(name)
        entries[name] = Entry(f"demo-{number:05d}", title, f"{title} {said}.", type_, _new_emblem(rng, fields))
    return entries


def _new_emblem(rng: random.Random, fields: set[tuple[int, tuple[int, int, int, int]]]) -> Emblem:
    """Make an emblem with coloured fields of its own; fields that touch differ, and so does the charge."""
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


def conditions(rng: random.Random, labels: Sequence[str], odd_spelling: float, no_emblem: float) -> list[str]:
    """Draw a condition for each post, in these shares and in the labels' proportions.

    Posts that share a sentence draw one each, as a gate must not learn it by the sentence.
    """
    places = {label: [place for place, own in enumerate(labels) if own == label] for label in sorted(set(labels))}
    rarest = min(map(len, places.values()))
    odd = round(odd_spelling * rarest)
    plain = min(round(no_emblem * rarest), rarest - odd)
    drawn = [""] * len(labels)
    for own in places.values():
        times = len(own) // rarest
        chosen = rng.sample(own, (odd + plain) * times)
        for number, place in enumerate(chosen):
            drawn[place] = "odd_spelling" if number < odd * times else "no_emblem"
    return drawn


def a_frame(rng: random.Random, frames: Sequence[str]) -> str:
    """Draw a sentence with places for names, as people post it."""
    return " ".join(part for part in (rng.choice(OPENERS), rng.choice(frames), rng.choice(CLOSERS)) if part)


def fill(frame: str, names: Mapping[str, Sequence[str]]) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Put names at their places in a frame; return its words and the span [start, end) of each name."""
    tokens: list[str] = []
    spans = {}
    for word in frame.split():
        name = names.get(word)
        if name is None:
            tokens.append(word)
        else:
            spans[word] = (len(tokens), len(tokens) + len(name))
            tokens += name
    return tokens, spans


def spelt_oddly(rng: random.Random, name: Sequence[str], taken: set[str]) -> list[str]:
    """Spell a name as somebody in a hurry would, with no word of the corpus or another post."""
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
class DemoConfig(datasets.BuilderConfig):
    """The configuration of a demo set; `data_seed` makes it, not the seed of a training run."""

    data_seed: int = 1


class DemoBuilder(datasets.GeneratorBasedBuilder):
    """A builder of a demo set, made when first loaded; every row has the column image."""

    BUILDER_CONFIG_CLASS = DemoConfig
    BUILDER_CONFIGS: ClassVar[list[DemoConfig]] = [
        DemoConfig(name=name, version=datasets.Version("2.0.0"), description=f"posts with {name} knowledge")
        for name in COLUMNS
    ]
    DEFAULT_CONFIG_NAME = "none"

    NAME: ClassVar[str]  # as in `load`
    TITLE: ClassVar[str]
    CREDIT: ClassVar[str]
    TASK: ClassVar[str]
    TERMS = "All names, posts, entries and pictures are invented by the program, and nobody's rights are touched."

    def __init__(
        self,
        cache_dir: str | None = None,
        config_name: str | None = None,
        hash: str | None = None,
        data_dir: str | None = None,
        **options: Any,
    ) -> None:
        if data_dir is not None:
            raise ValueError(f"{data_dir}: the demo set is made from a seed; leave --data_dir out.")
        config_name = config_name or "none"
        if config_name not in COLUMNS:
            raise ValueError(f"the demo set has no configuration {config_name!r}: give one of {', '.join(COLUMNS)}.")
        self._columns = COLUMNS[config_name]
        super().__init__(cache_dir=cache_dir, config_name=config_name, hash=hash or self._source_digest(), **options)

    @classmethod
    def make(cls, seed: int) -> Demo:
        """Make the set of a seed."""
        raise NotImplementedError

    @classmethod
    def features(cls) -> Mapping[str, Any]:
        """Return the features of rows without image and knowledge."""
        raise NotImplementedError

    def _source_digest(self) -> str:
        """Return the digest of the builder's source and of what it retrieves with, which `datasets` ignores."""
        own = sys.modules[type(self).__module__]
        files = [Path(str(module.__file__)) for module in (own, sys.modules[__name__], demo_pictures)]
        if self._columns:
            from modeling_more import knowledge  # here, as it loads the search engine

            files += sorted(Path(knowledge.__file__).parent.glob("*.py"))
        if "knowledge_image" in self._columns:
            files.append(Path(__file__).with_name("demo_tower.py"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    def _info(self) -> datasets.DatasetInfo:
        features = dict(self.features()) | dict.fromkeys(self._columns, knowledge_feature())
        features["image"] = datasets.Image()
        return datasets.DatasetInfo(description=f"{self.TITLE}. {self.CREDIT}", features=datasets.Features(features))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        demo = self.make(self.config.data_seed)
        folder = Path(self._cache_dir_root) / "more_demo"
        found = retrieve(demo, self._columns, folder / f"{self.NAME}-{demo.seed}-{self.config.name}", folder)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"posts": demo.posts[split], "knowledge": found[split]})
            for split in SPLITS
        ]

    def _generate_examples(self, posts: Sequence[Post], knowledge: datasets.Dataset) -> Iterator[tuple[int, Row]]:
        for index, (post, found) in enumerate(zip(posts, knowledge, strict=True)):
            yield index, post.row() | {column: found[column] for column in (*self._columns, "image")}


def retrieve(demo: Demo, columns: Sequence[str], folder: Path, cache_dir: Path) -> dict[str, datasets.Dataset]:
    """Return tokens, image and knowledge of the posts, retrieved as for any other posts.

    Args:
        folder: folder for the knowledge corpus.
        cache_dir: folder for indices, results and the image tower.
    """
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "image": datasets.Image()})
    splits = datasets.DatasetDict()
    for split, posts in demo.posts.items():
        rows: Row = {"tokens": [list(post.tokens) for post in posts], "image": [post.picture() for post in posts]}
        splits[split] = datasets.Dataset.from_dict(rows, features)
    if columns:
        from modeling_more import knowledge

        file = demo.write_knowledge(folder, images="knowledge_image" in columns)
        corpus = knowledge.load_knowledge([str(file)], cache_dir=cache_dir)
    if "knowledge_text" in columns:
        by_text = knowledge.BM25Retriever.from_corpus(corpus)
        splits, _ = knowledge.attach_text_knowledge(splits, by_text, top_k=TOP_K, cache_dir=cache_dir)
    if "knowledge_image" in columns:
        encoder = knowledge.ImageEncoder(str(tower(demo.seed, cache_dir)), device="cpu")
        by_image = knowledge.ImageRetriever.from_corpus(corpus, encoder)
        splits, _ = knowledge.attach_image_knowledge(splits, by_image, top_k=TOP_K, cache_dir=cache_dir)
    return splits


def tower(seed: int, folder: Path) -> Path:
    """Return the image tower of a seed, trained on emblems of no demo set and kept in `folder`."""
    target = folder / f"tower-{seed}"
    if not (target / "config.json").is_file():
        from dataset_scripts.demo_tower import train_tower  # here, as it loads torch
        from modeling_more.knowledge.corpus_tables import build_once

        rng, fields = random.Random(f"demo tower {seed}"), set[Any]()
        emblems = [demo_pictures.draw_emblem(_new_emblem(rng, fields)) for _ in range(TOWER_EMBLEMS)]
        build_once(target, "config.json", lambda beside: train_tower(emblems, beside, seed, TOWER_STEPS))
    return target


def main(builder: type[DemoBuilder], arguments: Sequence[str] | None = None) -> int:
    """Publish a demo set and its knowledge corpus, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    made = NamingParser(f"dataset_scripts/{builder.NAME}.py", description="Make a demo set and publish it.")
    made.add_argument("--seed", type=int, default=1, help="of names, posts, knowledge and pictures (default: 1)")
    made.add_argument("--retrieval", choices=list(COLUMNS), default="none", help="the knowledge the rows carry")
    _publish.add_output_options(made)
    made.add_argument("--knowledge_dir", help="also write the knowledge corpus here: knowledge.jsonl and emblems/")
    made.add_argument("--cache_dir", help="of Arrow files, indices, the image tower and retrieved knowledge")
    parsed = made.parse_args(given)
    return _publish.exit_code(lambda: publish(builder, parsed, given))


def publish(builder: type[DemoBuilder], parsed: argparse.Namespace, given: Sequence[str]) -> None:
    """Write what the command line asks for; with knowledge of both kinds all four configurations."""
    folder = _publish.free_folder(parsed)
    made = builder(cache_dir=parsed.cache_dir, config_name=parsed.retrieval, data_seed=parsed.seed)
    made.download_and_prepare()
    found: Any = made.as_dataset()
    columns = COLUMNS[parsed.retrieval]
    configs = _publish.split_configurations(found, _publish.KINDS[parsed.retrieval])
    demo = builder.make(parsed.seed)
    posts = sum(map(len, demo.posts.values()))
    keys = {
        "knowledge_text": "BM25, by the words of the post",
        "knowledge_image": "a small image tower, by its picture",
    }
    how = (
        f"Retrieved by {' and '.join(keys[column] for column in columns)}, among {len(demo.entries)} entries of one "
        f"sentence and one emblem, {posts} about a name of a post and {len(demo.entries) - posts} about others; at "
        f"most {TOP_K} for each post."
    )
    command = ["python", f"dataset_scripts/{builder.NAME}.py", *map(_publish.without_folder, given)]
    if parsed.knowledge_dir:
        logger.info("Written: %s", demo.write_knowledge(Path(parsed.knowledge_dir).expanduser()))
    _publish.hand_over(configs, make_card(About.of(builder), configs, how if columns else "", command), folder, parsed)
