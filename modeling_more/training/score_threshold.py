"""This module counts the posts whose knowledge `--min_score` leaves out, and chooses the least score on dev."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.sources import is_labelled
from ..data.tasks import Task
from ..encoding import EncodedPost
from ..markdown import markdown_table
from ..metrics import paired_bootstrap, standard_error
from ..pipelines import MoRePipeline
from ..posts import Posts
from ..predictions import Prediction
from ..processing_more import Entry, MoReProcessor
from ..retrieval_settings import READ_NOTHING
from .arguments import CHOSEN_ON_DEV, DataArguments

logger = logging.getLogger(__name__)

TENTHS = range(1, 10)  # of the dev posts, by their best scores: the thresholds that are tried


def check_min_score(args: DataArguments, splits: Mapping[str, Posts], task: Task) -> None:
    """Raise ValueError if `--min_score` can't work with these posts.

    Args:
        splits: the rows of each split, with the knowledge that `--retrieval` names.
    """
    if args.min_score is None:
        return
    told, column = f"--min_score {args.min_score}", f"knowledge_{args.retrieval}"
    read = splits
    if args.min_score == CHOSEN_ON_DEV:
        read = {"validation": splits.get("validation", [])}
        if not read["validation"] or not is_labelled(read["validation"], task):
            raise ValueError(f"{told} needs validation posts with labels to choose on: give a number, or such posts")
    if not any(entry.get("score") for posts in read.values() for post in posts for entry in post.get(column) or ()):
        raise ValueError(f"{told}: no entry of the {' and '.join(read)} posts has a score, so that all would be read")


def count_alone(processor: MoReProcessor, posts: Posts, name: str) -> dict[str, int]:
    """Return and log how many posts are read alone because all their entries score below `min_score`.

    Args:
        name: how the name of the number begins, such as `test`.
    """
    column = processor.knowledge_column
    if processor.min_score is None or column is None:
        return {}
    given = [(post.get(column) or ())[: processor.top_k] for post in posts]
    alone = sum(bool(entries) and not any(map(processor.reads, entries)) for entries in given)
    logger.info("%d of %d %s posts are read alone: no entry scores %g", alone, len(posts), name, processor.min_score)
    return {f"{name}_read_alone": alone}


def thresholds(knowledge: Sequence[Sequence[Entry]]) -> dict[float | None, float]:
    """Return the thresholds to try, from none to one above all scores, and the share of posts below each.

    They lie halfway between two scores, where rounding a score changes nothing.

    Args:
        knowledge: the entries of each post that may be read; posts of which none has a score do not count.
    """
    scores = [[entry["score"] for entry in entries if entry.get("score")] for entries in knowledge]
    best, every = sorted(max(one) for one in scores if one), sorted({score for one in scores for score in one})
    found: dict[float | None, float] = {None: 0.0}
    for tenth in TENTHS if best else ():
        score = best[tenth * len(best) // 10]
        if place := bisect_left(every, score):
            found.setdefault((every[place - 1] + score) / 2, tenth / 10)
    return found | {READ_NOTHING: 1.0}


def choose_min_score(
    task: Task,
    pipeline: MoRePipeline,
    posts: Posts,
    none_relation: str,
    forward: Callable[[list[EncodedPost]], list[Prediction]],
) -> dict[str, Any]:
    """Choose the `min_score` of the pipeline's processor by dev F1, and return it with the curve.

    Reading everything is preferred, or reading nothing where that is better: neither has a number that was fitted to
    these posts. Of the thresholds between, the best one of up to nine looks better by chance alone, so that it must
    beat the better of the two by more than a standard error of the paired difference (the rule of `train_gate`).

    Args:
        posts: the dev posts, with labels and knowledge.
        forward: gives the predictions for encoded posts.
    """
    processor: MoReProcessor = pipeline.processor
    given = [(post.get(str(processor.knowledge_column)) or ())[: processor.top_k] for post in posts]
    before: list[EncodedPost | None] = [None] * len(posts)
    found: dict[int, Prediction] = {}
    curve, counts = [], {}
    for least, share in thresholds(given).items():
        processor.min_score = least
        encoded = pipeline.preprocess(posts)
        # most posts read the same as at the threshold before
        pairs = zip(encoded, before, strict=True)
        changed = [now for now, old in pairs if old is None or now["input_ids"] != old["input_ids"]]
        if changed:
            found |= zip((post["index"] for post in changed), forward(changed), strict=True)
        before = [*encoded]
        said = [found[row] for row in range(len(posts))]
        reading = sum(bool(post["read_knowledge"]) for post in encoded) / len(posts)
        f1 = task.score(said, posts, none_relation)["f1"]
        curve.append({"share_below": share, "min_score": least, "share_that_reads": reading, "dev_f1": f1})
        counts[least] = task.count(said, posts, none_relation)

    everything, *between, nothing = curve
    plain = nothing if nothing["dev_f1"] > everything["dev_f1"] else everything
    chosen, results = plain, {"min_score_plain_f1": plain["dev_f1"]}
    if between:
        best = max(between, key=lambda row: row["dev_f1"])
        gain, low, high = paired_bootstrap(counts[best["min_score"]], counts[plain["min_score"]])
        error = standard_error(low, high)
        results |= {"min_score_gain": gain, "min_score_gain_error": error}
        if gain > error:
            chosen = best
    processor.min_score = chosen["min_score"]
    results |= {"min_score": processor.min_score, "min_score_curve": curve}
    logger.info("%s", _told(results))
    return results


def _told(results: Mapping[str, Any]) -> str:
    """Return in words what is read, and where it was chosen on dev, why."""
    least = results["min_score"]
    if least is None:
        read = "All entries are read."
    elif least == READ_NOTHING:
        read = "No entry that has a score is read: every post is read alone."
    else:
        read = f"Entries that score below {least:.6g} are not read, and a post of which none is left is read alone."
    if "min_score_curve" not in results:
        return read
    everything, f1 = results["min_score_curve"][0]["dev_f1"], results["min_score_plain_f1"]
    plain = f"reading {'all' if f1 == everything else 'none'} (dev F1 {f1:.2f})"
    if "min_score_gain" not in results:
        return f"{read} On the dev posts, {plain} was best, and no threshold lay between all and none."
    gain, error = results["min_score_gain"], results["min_score_gain_error"]
    compared = f"not more than a standard error, {error:.2f}"
    if least in (None, READ_NOTHING):
        return f"{read} On the dev posts, the best threshold gains {gain:.2f} over {plain}, {compared}."
    return f"{read} On the dev posts, this gains {gain:.2f} over {plain}, {compared.removeprefix('not ')}."


def card_section(results: Mapping[str, Any]) -> str:
    """Return the body of the card's section on what is read, with the curve where the threshold was chosen."""
    alone = [
        f"{results[f'{name}_read_alone']} {title} posts"
        for name, title in (("train", "training"), ("dev", "validation"), ("test", "test"))
        if f"{name}_read_alone" in results
    ]
    told = _told(results) + (f" Read alone for that reason: {', '.join(alone)}." if alone else "")
    names = {None: "all are read", READ_NOTHING: "none is read"}
    rows = [
        {
            "entries from this score on are read": names.get(row["min_score"]) or f"{row['min_score']:.6g}",
            "posts that read some": f"{100 * row['share_that_reads']:.0f} %",
            "dev F1": row["dev_f1"],
        }
        for row in results.get("min_score_curve", ())
    ]
    return f"{told}\n\n{markdown_table(rows)}" if rows else told
