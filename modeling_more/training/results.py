"""This module writes what a run leaves behind (model, scores, options, predictions, card), and uploads it."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator

from ..data.tasks import Task
from ..files import HOLDER, LOCK, MANIFEST, apply_umask, code_names, write_json
from ..naming import without_folder
from ..pipelines import APART, MoRePipeline
from ..posts import Posts, Row
from ..provenance import remember
from ..retrieval_settings import ENCODERS
from .arguments import Arguments
from .command_line import one_sentence_errors
from .mixture_report import PLOT, card_parts
from .model_card import scored_parts, write_model_card
from .output_folders import begin_predicting, begin_scoring, suffix_beside_record
from .predict_mode import write_predictions
from .reliability import PLOT as RELIABILITY
from .reliability import calibration_sections
from .run_record import HOLDOUT, OPTIONS, RESULTS, below, identity, publish, read_entry, recorded, stage_of
from .score_threshold import card_section

logger = logging.getLogger(__name__)

NAMING_FOLDERS = (OPTIONS, RESULTS, "scores*.json")  # name folders that a run read, which their copies leave out


def begin_results(
    args: Arguments, report: dict[str, Any], learned: Posts | None = None, held_out: Sequence[Row] = ()
) -> dict[str, Any]:
    """Return the results that are known before scoring.

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
    return results


def count_cut(posts: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return and log how much of the encoded training posts is cut off at max_length."""
    cut = {f"train_{name}": sum(post[name] for post in posts) for name in ("cut_words", "cut_knowledge")}
    if words := cut["train_cut_words"]:
        logger.warning("%d words of training posts lie past max_length and are not learned from", words)
    if knowledge := cut["train_cut_knowledge"]:
        logger.info("%d sub-tokens of knowledge lie past max_length and are not read", knowledge)
    pairs = [post for post in posts if "label" in post]
    if apart := sum(len(set(post["word_rows"])) > 1 for post in pairs):
        cut["train_pairs_apart"] = apart
        logger.warning("%d of %d pairs %s", apart, len(pairs), APART)
    return cut


def write_card(task: Task, args: Arguments, folder: Path, results: dict[str, Any], command: str) -> None:
    """Write the model card of one run or of several seeds to a folder, from where it will be published."""
    runs = results.get("runs", [results])
    best = max(runs, key=_dev_score)
    history = [{**row, "seed": one["seed"]} for one in runs for row in one.get("history", [])]
    more: dict[str, Any] = {"name": args.hub.hub_model_id or Path(args.training.output_dir).resolve().name}
    if "experts" in best:  # for several seeds: weights and gains of the seed whose model is kept
        more |= card_parts(best, task.pipeline_tag, more["name"])
    else:
        more["sections"] = calibration_sections(best)
    if "min_score" in best:
        more["sections"] = [*more.get("sections", []), ("Which knowledge is read", card_section(best))]
    if not args.training.do_train:
        told = scored_parts(
            args.hub.hub_model_id or args.model.model_name_or_path, task.pipeline_tag, args.data.retrieval
        )
        more = told | more | {"description": told["description"]}
    write_model_card(folder, results, args.options(), command, history, task=task.pipeline_tag, **more)


def save_run(
    task: Task,
    args: Arguments,
    pipeline: MoRePipeline,
    results: dict[str, Any],
    to_predict: Posts,
    command: str,
    held_out: Sequence[Row] | None = None,
) -> None:
    """Write model, processor, scores, options, card, and then predictions for posts without labels.

    All but these appear at once, with the predictions of the scored posts, which `begin_scoring` gave a place. If
    nothing was trained, the model is only written if it is to be published; and in a folder with the record of
    something else, only the scores are written, under a name of their own.

    Args:
        held_out: the posts that an expert's training held out, whose ids belong to its model.
    """
    accelerator = pipeline.accelerator
    output = Path(args.training.output_dir)
    suffix, stage = suffix_beside_record(args), stage_of(output)
    if accelerator.is_main_process:
        loaded: set[str] = set()
        if suffix:
            write_json(stage / f"scores{suffix}.json", results)
        else:
            if args.training.do_train or args.hub.push_to_hub:
                before = below(stage)
                pipeline.core.save_pretrained(stage)
                pipeline.processor.save_pretrained(stage)
                apply_umask(stage)
                if held_out is not None:
                    write_json(stage / HOLDOUT, [post["id"] for post in held_out])
                # not the code, which is not read where this package is
                loaded = below(stage) - before - set(code_names())
            write_json(stage / RESULTS, results)
            remember_options(stage, args)
            write_card(task, args, stage, results, command)
        with one_sentence_errors():
            publish(output, loaded, identity(args), args.trains)
        if suffix:
            logger.info(
                "%s keeps its record: scores are in scores%s.json, predictions/*%s.jsonl", output, suffix, suffix
            )
        else:
            logger.info("written: %s", output)
    accelerator.wait_for_everyone()
    if to_predict:
        write_predictions(output, pipeline, to_predict, args.data, begin_predicting(args, accelerator))


def remember_options(folder: Path, args: Arguments) -> None:
    """Write the options of a run, and remember them as this user's unless they name what a stranger's expert named."""
    options = args.options()
    write_json(folder / OPTIONS, options)
    remember(folder / OPTIONS, options.values())


def finish(
    task: Task, args: Arguments, accelerator: Accelerator, all_results: list[dict[str, Any]], command: str
) -> dict[str, Any]:
    """Sum several seeds up, log the scores, upload the run if asked to, and return the results."""
    results, output = all_results[0], Path(args.training.output_dir)
    if accelerator.is_main_process:
        if len(all_results) > 1:
            results = over_seeds(all_results, args.seeds)
            stage, _ = begin_scoring(args, accelerator)
            best = output / f"seed-{max(all_results, key=_dev_score)['seed']}"
            loaded = adopt_best(stage, best)
            # each seed may have searched for entities that it predicted itself: the model's options name its own
            searched = args.data.entities or read_entry(best / OPTIONS).get("entities", [])
            args = replace(args, data=replace(args.data, entities=searched))
            write_json(stage / RESULTS, results)
            remember_options(stage, args)
            write_card(task, args, stage, results, command)
            with one_sentence_errors():
                publish(output, loaded, identity(args), trained=True)
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


def adopt_best(stage: Path, best: Path) -> list[str]:
    """Copy the files of the seed with the best dev score, ready to load; return the names of those that loading reads.

    Args:
        best: the folder of that seed.
    """
    for name in recorded(best):
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best / name, stage / name)
    return [name for name in read_entry(best / MANIFEST)["files"] if (stage / name).is_file()]


def log_scores(results: dict[str, Any], shown: Sequence[str]) -> None:
    """Log dev and test F1 and the scores `shown`, with their deviation over the seeds."""
    for key in ("dev_f1", "test_f1", *shown, "test_no_knowledge_f1"):
        if key in results:
            spread = f" ± {results[key + '_std']:.2f}" if key + "_std" in results else ""
            logger.info("%s %.2f%s", key, results[key], spread)


#: what another model may have left in a repository, and does not belong to the one that is uploaded
OLDER = ["predictions/*", "model*.safetensors", "model.safetensors.index.json", "experts/*", HOLDOUT, MANIFEST]
OLDER += [PLOT, RELIABILITY, *(f"{folder}/*" for folder in ENCODERS.values())]
OLDER += code_names()


def privacy(private: bool) -> str:
    """Return in words how private a new repository becomes."""
    return "private" if private else "if it is new, as private as the account or organisation has it by default"


def published(folder: Path, predictions: bool) -> list[str]:
    """Return the files of a run to upload, with or without predictions: those that it recorded when it wrote them."""
    names = [name for name in recorded(folder) if predictions or not name.startswith("predictions/")]
    return sorted(name for name in names if (folder / name).is_file() and not (folder / name).is_symlink())


def foreign_files(folder: Path) -> int:
    """Return the number of files in a run's folder that no run wrote, those of its checkpoints and folds left out."""
    known = {*recorded(folder), MANIFEST, LOCK, HOLDER}
    inner = ("checkpoints/", "crossfit/", "logs/", "seed-")
    return sum(1 for name in below(folder) - known if not name.startswith(inner))


def shown_size(size: float) -> str:
    """Return a number of bytes in words, like `2.2 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _names_folders(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in NAMING_FOLDERS)


def push(folder: Path, repository: str, private: bool, predictions: bool = False) -> None:
    """Upload the files of a run, without the paths of local folders; if that fails, the error says how to try again.

    Args:
        private: whether a new repository is private; False leaves it to the account's or organisation's default.
        predictions: whether to upload the predictions too, which hold the posts' words.
    """
    from huggingface_hub import HfApi

    sent = published(folder, predictions)
    sizes = [f"{name} ({shown_size((folder / name).stat().st_size)})" for name in sent]
    logger.info(
        "uploading to %s (%s): %s%s", repository, privacy(private), ", ".join([*sizes, MANIFEST]),
        "" if predictions else "; without the predictions, which hold the posts' words: --push_predictions",
    )  # fmt: skip
    if left_out := foreign_files(folder):
        logger.info("left out: %d files in %s that this run did not write", left_out, folder)
    try:
        api = HfApi()
        api.create_repo(repository, private=private or None, exist_ok=True)
        with TemporaryDirectory() as beside:
            described = read_entry(folder / MANIFEST).get("files", {})
            for name in sent:
                place = Path(beside) / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if _names_folders(name):
                    write_json(place, without_folder(json.loads((folder / name).read_text(encoding="utf-8"))))
                else:
                    place.symlink_to((folder / name).resolve())
            if described:  # of an older run, or one whose manifest was deleted, nothing is vouched for
                vouched = {name: described[name] for name in sent if name in described}
                write_json(Path(beside) / MANIFEST, {"files": vouched})
            url = api.upload_folder(
                repo_id=repository,
                folder_path=beside,
                delete_patterns=OLDER,  # of the model that was there before, but for what replaces it
                commit_message="Upload a MoRe expert",
            )
    except Exception as error:  # from the Hub, its HTTP library or the system: whatever it is, say how to go on
        logger.debug("upload failed", exc_info=True)
        excluded = [*NAMING_FOLDERS, *([] if predictions else ["predictions/*"])]
        again = f"hf upload {repository} {shlex.quote(str(folder))} . "
        again += " ".join(f"--include {shlex.quote(name)}" for name in sent if not _names_folders(name))
        again += "".join(f" --exclude '{pattern}'" for pattern in excluded) + " --private" * private
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise SystemExit(
            f"error: the upload to {repository} failed ({reason}). "
            f"Nothing is lost: all files are in {folder}. To push again: {again}"
        ) from None
    logger.info("uploaded to %s", url)
