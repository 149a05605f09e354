"""This module writes what a run leaves behind (model, scores, options, predictions, card), and uploads it."""

from __future__ import annotations

import json
import logging
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator

from ..data.tasks import Task
from ..files import apply_umask, copy_folder, write_json
from ..naming import without_folder
from ..pipelines import MoRePipeline
from ..posts import Posts, Row
from .arguments import Arguments
from .mixture_report import card_parts
from .model_card import scored_parts, write_model_card
from .output_folders import OPTIONS, RESULTS, forget_predictions, published, suffix_beside_record
from .predict_mode import write_predictions

logger = logging.getLogger(__name__)

NAMING_FOLDERS = (OPTIONS, RESULTS)  # name folders that a run read, which their copies on the Hub leave out


def begin_results(
    args: Arguments,
    report: dict[str, Any],
    accelerator: Accelerator,
    learned: Posts | None = None,
    held_out: Sequence[Row] = (),
) -> dict[str, Any]:
    """Return the results that are known before scoring, and write the ids of the posts that a training holds out.

    Args:
        learned: the posts to train on; None if nothing is trained.
    """
    results: dict[str, Any] = {
        "seed": args.training.seed,
        "dataset": args.data.dataset or args.data.train_file or args.data.test_file,
        "retrieval": args.data.retrieval,
    }
    if report:
        results["retrieval_report"] = report
    if learned is not None:
        results |= {"train_posts": len(learned), "held_out_posts": len(held_out)}
        if accelerator.is_main_process:
            write_json(Path(args.training.output_dir) / "holdout_ids.json", [post["id"] for post in held_out])
    return results


def count_cut(posts: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return and log how much of the encoded training posts is cut off at max_length."""
    cut = {f"train_{name}": sum(post[name] for post in posts) for name in ("cut_words", "cut_knowledge")}
    if words := cut["train_cut_words"]:
        logger.warning("%d words of training posts lie past max_length and are not learned from", words)
    if knowledge := cut["train_cut_knowledge"]:
        logger.info("%d sub-tokens of knowledge lie past max_length and are not read", knowledge)
    return cut


def write_card(task: Task, args: Arguments, output: Path, results: dict[str, Any], command: str) -> None:
    """Write the model card of one run or of several seeds."""
    runs = results.get("runs", [results])
    best = max(runs, key=_dev_score)
    history = [{**row, "seed": one["seed"]} for one in runs for row in one.get("history", [])]
    more, published_as = {}, args.hub.hub_model_id
    if "experts" in best:  # for several seeds: weights and gains of the seed whose model is kept
        more = card_parts(best, task.pipeline_tag, published_as or output.resolve().name)
    if not args.training.do_train:
        told = scored_parts(published_as or args.model.model_name_or_path, task.pipeline_tag, args.data.retrieval)
        more = told | more | {"description": told["description"]}
    write_model_card(output, results, args.options(), command, history, task=task.pipeline_tag, **more)


def save_run(
    task: Task, args: Arguments, pipeline: MoRePipeline, results: dict[str, Any], to_predict: Posts, command: str
) -> None:
    """Write model, processor, scores, options, card, and predictions for posts without labels.

    If nothing was trained, the model is only written if it is to be published; and in a folder with a training's
    record, only the scores are written, under a name of their own.
    """
    accelerator = pipeline.accelerator
    output = Path(args.training.output_dir)
    suffix = suffix_beside_record(args)
    if to_predict:
        write_predictions(output, pipeline, to_predict)
    if accelerator.is_main_process and suffix:
        write_json(output / f"scores{suffix}.json", results)
        logger.info("%s keeps its record: scores are in scores%s.json, predictions/*%s.jsonl", output, suffix, suffix)
    elif accelerator.is_main_process:
        if args.training.do_train or args.hub.push_to_hub:
            pipeline.core.save_pretrained(output)
            pipeline.processor.save_pretrained(output)
            apply_umask(output)
        write_json(output / RESULTS, results)
        write_json(output / OPTIONS, args.options())
        write_card(task, args, output, results, command)
        logger.info("written: %s", output)
    accelerator.wait_for_everyone()


def finish(
    task: Task, args: Arguments, accelerator: Accelerator, all_results: list[dict[str, Any]], command: str
) -> dict[str, Any]:
    """Sum several seeds up, log the scores, upload the run if asked to, and return the results."""
    results, output = all_results[0], Path(args.training.output_dir)
    if accelerator.is_main_process:
        if len(all_results) > 1:
            results = over_seeds(all_results, args.seeds)
            adopt_best(output, all_results)
            write_json(output / RESULTS, results)
            write_json(output / OPTIONS, args.options())
            write_card(task, args, output, results, command)
        log_scores(results, task.shown)
        if args.hub.push_to_hub:
            push(output, str(args.hub.hub_model_id), args.hub.hub_private, args.hub.push_predictions)
    accelerator.wait_for_everyone()
    return results


def over_seeds(results: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """Return the mean and sample deviation of every score over the seeds, and each seed's results as `runs`."""
    merged: dict[str, Any] = {"seeds": seeds}
    for key, value in results[0].items():
        if key.endswith("_per_type"):
            # a type that the reference lacks only appears if a seed predicted it
            types = {type_: scores for row in results for type_, scores in row[key].items()}
            found = [row[key] for row in results]
            merged[key] = {
                type_: {name: statistics.mean(one.get(type_, {}).get(name, 0.0) for one in found) for name in scores}
                for type_, scores in types.items()
            }
        if isinstance(value, float) and key.startswith(("dev_", "test_")):
            values = [row[key] for row in results]
            merged[key] = statistics.mean(values)
            merged[f"{key}_std"] = statistics.stdev(values)
    return merged | {"runs": results}


def _dev_score(result: dict[str, Any]) -> float:
    return float(result.get("dev_f1", result.get("test_f1", 0.0)))


def adopt_best(output: Path, results: list[dict[str, Any]]) -> None:
    """Copy the files of the seed with the best dev score into the output folder itself, ready to load."""
    best = max(results, key=_dev_score)
    forget_predictions(output, trained=True)
    copy_folder(output / f"seed-{best['seed']}", output, leave_out=("checkpoints", "logs", "crossfit"))


def log_scores(results: dict[str, Any], shown: Sequence[str]) -> None:
    """Log dev and test F1 and the scores `shown`, with their deviation over the seeds."""
    for key in ("dev_f1", "test_f1", *shown, "test_no_knowledge_f1"):
        if key in results:
            spread = f" ± {results[key + '_std']:.2f}" if key + "_std" in results else ""
            logger.info("%s %.2f%s", key, results[key], spread)


def privacy(private: bool) -> str:
    """Return in words how private a new repository becomes."""
    return "private" if private else "if it is new, as private as the account or organisation has it by default"


def push(folder: Path, repository: str, private: bool, predictions: bool = False) -> None:
    """Upload the files of a run, without the paths of local folders; if that fails, the error says how to try again.

    Args:
        private: whether a new repository is private; False leaves it to the account's or organisation's default.
        predictions: whether to upload the predictions too, which hold the posts' words.
    """
    from huggingface_hub import HfApi

    sent = published(folder, predictions)
    logger.info(
        "uploading to %s (%s): %s%s", repository, privacy(private), ", ".join(sent),
        "" if predictions else "; without the predictions, which hold the posts' words: --push_predictions",
    )  # fmt: skip
    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        with TemporaryDirectory() as beside:
            for name in sent:
                place = Path(beside) / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if name in NAMING_FOLDERS:
                    write_json(place, without_folder(json.loads((folder / name).read_text(encoding="utf-8"))))
                else:
                    place.symlink_to((folder / name).resolve())
            url = api.upload_folder(
                repo_id=repository,
                folder_path=beside,
                delete_patterns="predictions/*",  # of the model that was there before
                commit_message="Upload a MoRe expert",
            )
    except Exception as error:  # from the Hub, its HTTP library or the system: whatever it is, say how to go on
        logger.debug("upload failed", exc_info=True)
        left_out = [*NAMING_FOLDERS, *([] if predictions else ["predictions/*"])]
        again = f"hf upload {repository} {shlex.quote(str(folder))} . "
        again += " ".join(f"--include {shlex.quote(name)}" for name in sent if name not in NAMING_FOLDERS)
        again += "".join(f" --exclude '{pattern}'" for pattern in left_out) + " --private" * private
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise SystemExit(
            f"error: the upload to {repository} failed ({reason}). "
            f"Nothing is lost: all files are in {folder}. To push again: {again}"
        ) from None
    logger.info("uploaded to %s", url)
