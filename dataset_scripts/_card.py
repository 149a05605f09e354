"""Write the card of a published data set: what it holds, where it comes from, how its knowledge was retrieved."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from datasets import __version__ as datasets_version
from huggingface_hub import DatasetCard, DatasetCardData

from modeling_more.data.rows import HIDDEN
from modeling_more.markdown import escaped, fenced, markdown_table
from modeling_more.naming import without_secrets
from modeling_more.tagging import tags_to_spans
from modeling_more.training.model_card import scrub_command

TAG = "modeling-more"
WHAT = {
    "none": "the posts and their labels",
    "text": "the same posts with `knowledge_text`, knowledge retrieved by the post's words",
    "image": "the same posts with `knowledge_image`, knowledge retrieved by the post's image",
    "all": "the same posts with both columns",
}
TERMS = "The copyrights of the posts stay with their authors. Whoever publishes this set has to see that they may."


@dataclass(frozen=True)
class About:
    """A description of a set beyond its rows.

    Attributes:
        title: its name, plain text.
        credit: where it comes from, and under which terms, as Markdown.
        terms: a paragraph on the rights to the posts, as Markdown.
        license: as the Hub spells it; one that the Hub doesn't know is "other", with a `license_name`.
        language: of the posts, as the Hub spells it.
    """

    title: str
    credit: str
    terms: str = TERMS
    license: str | None = "other"
    license_name: str | None = "see-card"
    language: str | None = "en"

    @classmethod
    def of(cls, builder: Any) -> "About":
        """Return what a builder says of its set: TITLE and CREDIT, and TERMS where it has its own."""
        return cls(builder.TITLE, builder.CREDIT, getattr(builder, "TERMS", TERMS))


def make_card(about: About, configs: Mapping[str, DatasetDict], knowledge: str, command: Sequence[str]) -> DatasetCard:
    """Make the card: configurations, counts, source and terms, how the knowledge was retrieved.

    Args:
        knowledge: paragraphs on the knowledge of the posts, as Markdown.
        command: the words of the command that made the set; folders and secrets are taken out.
    """
    data_files = {
        name: [{"split": split, "path": f"{name}/{split}-*"} for split in splits] for name, splits in configs.items()
    }
    posts = configs["none"]
    columns = next(iter(posts.values())).features
    relations = "relation" in columns
    pictures = "image" in columns or not any(any(data["image_id"]) for data in posts.values())
    data = DatasetCardData(
        language=about.language,
        license=about.license,
        license_name=about.license_name,
        pretty_name=about.title,
        task_categories=["text-classification" if relations else "token-classification"],
        tags=["relation-extraction" if relations else "named-entity-recognition", "retrieval", TAG],
        configs=[
            {"config_name": name, **({"default": True} if name == "none" else {}), "data_files": files}
            for name, files in data_files.items()
        ],
    )
    held = "two marked entities and their relation" if relations else "named entities (BIO)"
    sections = [
        f"# {escaped(about.title)}",
        f"Posts as words with {held}, as read by the MoRe library.",
        "## Configurations",
        markdown_table([{"name": f"`{name}`", "rows hold": WHAT[name]} for name in configs]),
        f'```python\nimport datasets\n\nposts = datasets.load_dataset("ORG/NAME", "{list(configs)[-1]}")\n```',
        "" if pictures else "`image_id` names a post's picture; the pictures are not part of this set.",
        "## Counts",
        *_counts(posts, relations),
        *(["## Knowledge", knowledge] if knowledge else []),
        "## Source and terms",
        about.credit,
        about.terms,
        "## Made by",
        f"{fenced(scrub_command(command), 'bash')}\n\ndatasets {datasets_version}",
    ]
    text = without_secrets("\n\n".join(filter(None, sections)))
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def _counts(posts: DatasetDict, relations: bool) -> list[str]:
    """Return the tables of rows and labels in each split, and what is to be known about them."""
    found = {split: (_relations if relations else _entities)(data) for split, data in posts.items()}
    totals: list[dict[str, Any]] = []
    for split, data in posts.items():
        totals.append({"split": split, "rows" if relations else "posts": len(data)})
        totals[-1]["words"] = sum(map(len, data["tokens"]))
        if not relations:
            totals[-1]["entities"] = _number(found[split])
    features = next(iter(posts.values())).features
    names = features["relation"].names if relations else features["ner_tags"].feature.names
    labels = names if relations else list(dict.fromkeys(name[2:] for name in names if name != "O"))
    each = [
        {"relation" if relations else "type": escaped(label)}
        | {split: _number(counted, label) for split, counted in found.items()}
        for label in labels
    ]
    hidden = [split for split, counted in found.items() if counted is None]
    return [
        markdown_table(totals),
        markdown_table(each),
        "" if relations else "Entities as seqeval reads them: an I- that continues nothing begins one.",
        f"The labels of the {' and '.join(hidden)} split are hidden ({HIDDEN})." if hidden else "",
    ]


def _number(counted: Counter[str] | None, label: str | None = None) -> int | None:
    """Return how often a label occurs, or all of them do; None where they are hidden."""
    if counted is None:
        return None
    return counted.total() if label is None else counted[label]


def _entities(data: Dataset) -> Counter[str] | None:
    """Return how many entities of each type there are, or None where they are hidden."""
    tags, labels = data["ner_tags"][:], data.features["ner_tags"].feature
    if any(HIDDEN in row for row in tags):
        return None
    return Counter(span.type for row in tags for span in tags_to_spans(labels.int2str(row)))


def _relations(data: Dataset) -> Counter[str] | None:
    """Return how many rows have each relation, or None where they are hidden."""
    numbers = data["relation"][:]
    return None if HIDDEN in numbers else Counter(data.features["relation"].int2str(numbers))
