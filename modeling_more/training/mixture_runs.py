"""`--retrieval moe`: join the posts as every expert reads them, train the gate, score it beside what it mixes."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from transformers import AutoConfig

from ..configuration_mixture import MoReMixtureConfig
from ..data.rows import as_bio
from ..data.sources import Posts, check_trainable, chosen, is_labelled, load_source, post_digest, with_knowledge
from ..files import write_jsonl
from ..metrics import paired_bootstrap
from ..naming import loaded_from, nearest
from ..processing_mixture import MoReMixtureProcessor
from ..tagging import bio_to_bioes
from .arguments import Arguments, DataArguments, MixtureArguments, ModelArguments, RunArguments
from .expert_outputs import (
    EXPERT_KNOWLEDGE,
    Features,
    MixedPost,
    Mixture,
    MixtureCollator,
    average,
    average_tags,
    encode_for_experts,
    expert_features,
    expert_tags,
    gate_batch,
    image_features,
    mix,
    mixture_tags,
)
from .experts import Expert, load_experts
from .loop import TrainingArguments, TrainingResult, check_checkpoint, make_accelerator, train
from .mixture_report import draw_gate_weights, gate_table
from .models import load_expert, load_processor
from .output_folders import begin_training, forget_predictions, suffix_beside_record
from .results import options_of
from .retrieval import knowledge_column
from .runs import description, one_sentence_errors, run_seed, save_run
from .tasks import Prediction, Task

logger = logging.getLogger(__name__)

CROSSFIT = "made_of.txt"  # of a finished fold: a digest of the posts and options that made its expert
MAIN_SCORES = ("f1", "precision", "recall", "accuracy")


def load_mixture_posts(
    task: Task, args: Arguments, load_named: Callable[..., DatasetDict], names: Sequence[str]
) -> tuple[dict[str, Posts], list[str], dict[str, Any]]:
    """The splits with what every expert retrieves, joined by id, and the embedding of each post's image.

    Returns:
        rows with `EXPERT_KNOWLEDGE` (a list over the experts) and, where the gate sees images, `image` and
        `has_image`; the types; what retrieval did, by expert.

    Raises:
        ValueError: an id that is missing or double for one of the experts.
    """
    data, _, _, run, mixture = args
    experts = load_experts(mixture.experts)
    tower = _image_model(args, experts)  # before anything is searched: a model that is no mixture ends here
    joined: dict[str, Posts] = {}
    all_ids: dict[str, set[str]] = {}
    types: list[str] = []
    reports: dict[str, Any] = {}
    for expert in experts:
        own = expert.data(data)
        source = load_source(own, task.schema, load_named, names)
        if run.do_train:
            check_trainable(source, task.schema)
        types = source.types
        if joined and source.rows.keys() != joined.keys():
            raise ValueError(
                f"expert {expert.name} has the splits {', '.join(source.rows)}, {experts[0].name} has "
                f"{', '.join(joined)}"
            )
        places = chosen(own, source)
        for split, rows in source.rows.items():
            if split in source.columns and "id" not in source.columns[split]:
                raise ValueError(f"the {split} posts have no column id, by which their knowledge is joined")
            at = {row["id"]: place for place, row in enumerate(rows)}
            if len(at) < len(rows):
                twice = next(id_ for id_, count in Counter(row["id"] for row in rows).items() if count > 1)
                raise ValueError(f"the {split} posts of expert {expert.name} have the id {twice} twice: ids join them")
            if expert is experts[0]:
                all_ids[split] = set(at)
                continue
            if differing := sorted(at.keys() ^ all_ids[split]):
                raise ValueError(
                    f"the {split} posts of expert {expert.name} are not those of {experts[0].name}: "
                    f"{len(differing)} ids are in one only, like {differing[0]}"
                )
            # experts may read other configurations of a data set, whose rows need not stand in one order
            places[split] = [at[row["id"]] for row in joined[split]]
        splits, report = with_knowledge(own, source, places)
        if report:
            reports[expert.name] = report
        column = knowledge_column(own.retrieval)
        for split, rows in splits.items():
            if expert is experts[0]:
                joined[split] = [{**row, EXPERT_KNOWLEDGE: []} for row in rows]
            for row, own_row in zip(joined[split], rows, strict=True):
                row[EXPERT_KNOWLEDGE].append(own_row.get(column) if column else None)
    if tower is not None:
        _add_images(task, args, experts, joined, load_named, names, tower)
    return joined, types, reports


def _cache(args: Arguments) -> Path | None:
    """Where what the experts and the tower say of the posts is kept; None where nothing is."""
    data, *_, mixture = args
    if not mixture.cache_expert_outputs:
        return None
    from ..knowledge.corpus import default_cache_dir

    return Path(data.cache_dir) if data.cache_dir else default_cache_dir()


def _add_images(
    task: Task,
    args: Arguments,
    experts: Sequence[Expert],
    joined: dict[str, Posts],
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
    tower: str,
) -> None:
    """Embed the posts' images where there are any: a column `image`, or `--image_dir`."""
    data = args[0]
    by_image = _by_image(data, experts)
    image_dir = data.image_dir or by_image.image_dir
    source = None
    if image_dir is None:
        # a published set may hold the pictures beside the knowledge that they found only
        published = by_image.retrieval == "image" and not by_image.knowledge
        own = replace(data, retrieval="image" if published else "none", knowledge=[])
        source = load_source(own, task.schema, load_named, names)
        if source.images.keys() != source.rows.keys():
            logger.info("the posts come without images: the gate sees their text alone")
            return
    from ..knowledge import ImageEncoder
    from ..knowledge.pictures import require_images

    if data.image_dir is not None:  # that of an expert's training may lie elsewhere now, and is only warned of
        require_images(data.image_dir, {split: [row["image_id"] for row in rows] for split, rows in joined.items()})
    encoder = ImageEncoder(tower)
    for split, rows in joined.items():
        if source is None:
            posts = Dataset.from_list([{"image_id": row["image_id"]} for row in rows])
        else:
            places = {row["id"]: place for place, row in enumerate(source.rows[split])}
            if lacking := [row["id"] for row in rows if row["id"] not in places]:
                raise ValueError(f"the {split} posts with images lack {len(lacking)} ids, like {lacking[0]}")
            posts = source.images[split].select([places[row["id"]] for row in rows])
        vectors, usable = image_features(posts, image_dir, encoder, _cache(args))
        for row, vector, one in zip(rows, vectors, usable, strict=True):
            row["image"], row["has_image"] = vector, one
    if data.image_dir is not None and not any(row["has_image"] for rows in joined.values() for row in rows):
        raise ValueError(f"no image of the posts in {data.image_dir} can be used")


def _by_image(data: DataArguments, experts: Sequence[Expert]) -> DataArguments:
    """The options of the first expert that retrieves by image; without one, those of this run."""
    return next((own for expert in experts if (own := expert.data(data)).retrieval == "image"), data)


def _image_model(args: Arguments, experts: Sequence[Expert]) -> str | None:
    """The tower by which the gate sees images: the one that this run names, that a saved gate learned with, or that
    an expert searched with; None for a gate that sees no images."""
    data, model, _, run, mixture = args
    given = data.image_model if data.image_model != DataArguments.image_model else None
    if not run.do_train:
        saved = _saved_config(model)
        if saved.image_dim and not (given or saved.image_model):
            raise ValueError(f"{model.model_name_or_path} does not tell its gate's image tower: give --image_model")
        return given or saved.image_model if saved.image_dim else None
    return (given or _by_image(data, experts).image_model) if mixture.gate_images else None


def _saved_config(args: ModelArguments) -> MoReMixtureConfig:
    """Of the mixture that is scored as it is; ValueError where `--model_name_or_path` is none."""
    with loaded_from("--model_name_or_path", args.model_name_or_path):
        config = AutoConfig.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    if not isinstance(config, MoReMixtureConfig):
        raise ValueError(
            f"--retrieval moe with --no_do_train scores a saved mixture, {args.model_name_or_path} is "
            f"{config.model_type}: give the mixture's folder or Hub id as --model_name_or_path, or drop --no_do_train"
        )
    return config


def run_mixture_seed(
    task: Task,
    args: Arguments,
    splits: dict[str, Posts],
    types: list[str],
    report: dict[str, Any],
    to_predict: Posts,
    command: str,
) -> dict[str, Any]:
    """Train the gate (if told so, the experts too) or take a saved one; score the mixture and what it mixes; write."""
    data, _, training, run, mixture = args
    accelerator = make_accelerator(training)
    output = Path(training.output_dir)
    set_seed(training.seed)
    with one_sentence_errors():
        experts = load_experts(mixture.experts)
        model, processor = _build(task, args, experts, splits, accelerator)
        names: list[str] = model.config.expert_names
        unknown = sorted(set(task.labels(types, data)) - set(model.config.label2id))
        if unknown:
            known = nearest(unknown[0], model.config.label2id)
            raise ValueError(f"the experts do not know the labels {', '.join(unknown)} of the data{known}")
    model.to(accelerator.device)
    cache = None if mixture.train_experts else _cache(args)

    def features_of(posts: Posts, name: str, of: Mixture = model) -> Features:
        size = training.per_device_eval_batch_size
        found = expert_features(of, processor, posts, accelerator, size, cache, f"experts on {name}")
        if posts and "image" in posts[0]:
            found.images = torch.stack([p["image"] for p in posts]), torch.stack([p["has_image"] for p in posts])
        return found

    results: dict[str, Any] = {
        "seed": training.seed,
        "dataset": data.dataset or data.train_file or data.test_file,
        "retrieval": "moe",
        "experts": {name: expert.source for name, expert in zip(names, experts, strict=True)},
    }
    if report:
        results["retrieval_report"] = report
    if run.do_train:
        gate_posts, features = _gate_data(task, args, experts, splits, types, model, features_of, command)
        results |= {"gate_data": mixture.gate_data, "gate_posts": len(gate_posts)}
        dev = splits["validation"]
        model, trained = _train(task, args, accelerator, model, processor, gate_posts, features, dev, features_of)
        results |= {"best_epoch": trained.best_epoch, "history": trained.history}

    suffix = suffix_beside_record(args)
    if accelerator.is_main_process and not suffix:
        forget_predictions(output, run.do_train)
    last: tuple[str, str] | None = None  # split with labels, and its name in the results
    last_found: dict[str, list[Prediction]] = {}
    for split, name in (("validation", "dev"), ("test", "test")):
        if split in splits:
            outputs = mix(model, features_of(splits[split], name, model))  # training may have made another object
            found = systems(task, model, outputs)
            if is_labelled(splits[split], task.schema):
                results |= scores(task, model, found, splits[split], name, data)
                last, last_found = (split, name), found
            if accelerator.is_main_process:
                _write(task, model, output, name, suffix, splits[split], outputs, found, results)
    compared = {"average": "average"}
    if "dev_f1" in results:  # a saved mixture may be scored without
        best = max(names, key=lambda name: results[f"dev_expert_{name}_f1"])
        results["best_expert"] = best
        compared["best_expert"] = f"expert_{best}"
        if "test_f1" in results:
            results["test_best_expert_f1"] = results[f"test_expert_{best}_f1"]
    if last is not None:
        split, told = last
        for name, other in compared.items():
            pair = [task.counts(model, last_found[key], splits[split], data) for key in ("", other)]
            results[f"{told}_f1_minus_{name}"] = dict(
                zip(("difference", "low", "high"), paired_bootstrap(*pair), strict=True)
            )
    save_run(task, args, accelerator, model, processor, results, to_predict, command)
    return results


def _train(
    task: Task,
    args: Arguments,
    accelerator: Accelerator,
    model: Mixture,
    processor: MoReMixtureProcessor,
    gate_posts: Posts,
    features: Features,
    dev: Posts,
    features_of: Callable[..., Features],
) -> tuple[Mixture, TrainingResult]:
    """Train the gate on what the experts said of these posts, or the experts along with it."""
    data, _, training, _, mixture = args
    labels = [_labels(task, model, post) for post in gate_posts]

    def dev_result(candidate: Mixture, of: Features) -> DevResult:
        found = systems(task, candidate, mix(candidate, of), only_mixture=True)[""]
        return DevResult(task.score(candidate, found, dev, data)["f1"], task.counts(candidate, found, dev, data))

    if not mixture.train_experts:
        dev_features = features_of(dev, "dev")
        trained = train_gate(
            model, features, labels, lambda: dev_result(model, dev_features), mixture, training.seed,
            accelerator.is_main_process,
        )  # fmt: skip
        return model, trained
    encoded: list[dict[str, Any]] = encode_for_experts(gate_posts, processor)
    for row, post, label in zip(encoded, gate_posts, labels, strict=True):
        row |= {"labels": label} | {key: post[key] for key in ("image", "has_image") if key in post}
    made_of = description(args, gate_posts, dev)
    with one_sentence_errors():
        check_checkpoint(training, made_of)

    def dev_score(candidate: torch.nn.Module) -> float:
        own = accelerator.unwrap_model(candidate)
        return dev_result(own, features_of(dev, "dev", own)).f1

    tuned: tuple[Mixture, TrainingResult] = train(
        accelerator,
        model,
        processor,
        encoded,
        dev_score,
        training,
        collate=MixtureCollator(processor),
        lengths=[sum(len(ids) for view in row["experts"] for ids in view["input_ids"]) for row in encoded],
        made_of=made_of,
    )
    return tuned


def _build(
    task: Task, args: Arguments, experts: Sequence[Expert], splits: dict[str, Posts], accelerator: Accelerator
) -> tuple[Mixture, MoReMixtureProcessor]:
    """A mixture of these experts with a fresh gate, or the saved one, of such experts, that is to be scored."""
    _, model_args, _, run, mixture = args
    first = next(iter(splits.values()))[0]
    model: Mixture
    processor: Any
    if not run.do_train:
        processor = load_processor(task, model_args, accelerator)
        model = cast(Mixture, load_expert(task, model_args, accelerator))
        given, known = (
            [one.knowledge_column for one in those]
            for those in ((expert.processor for expert in experts), processor.processors)
        )
        if given != known:
            raise ValueError(
                f"--experts read {given}, those of {model_args.model_name_or_path} read {known}: name the experts "
                "that it mixes, in its order"
            )
        if "image" in first and len(first["image"]) != model.config.image_dim:
            raise ValueError(
                f"the gate reads {model.config.image_dim} image features, --image_model gives {len(first['image'])}: "
                f"the tower must be {model.config.image_model or 'that of the training'}"
            )
        return model, processor
    with accelerator.main_process_first():
        model = task.mixture_class.from_experts(
            [expert.source for expert in experts],
            names=[expert.name for expert in experts],
            gate=mixture.gate,
            image_dim=len(first["image"]) if "image" in first else 0,
            image_model=_image_model(args, experts) if "image" in first else None,
            image_dropout=mixture.image_dropout,
            load_balancing=mixture.load_balancing,
            entropy=mixture.gate_entropy,
            train_experts=mixture.train_experts,
            decoding=mixture.decoding,
            copy_experts=mixture.copy_experts,
        )
    return model, MoReMixtureProcessor([expert.processor for expert in experts], [one.name for one in experts])


def _gate_data(
    task: Task,
    args: Arguments,
    experts: Sequence[Expert],
    splits: dict[str, Posts],
    types: list[str],
    model: Mixture,
    features_of: Callable[..., Features],
    command: str,
) -> tuple[Posts, Features]:
    """The posts that the gate learns from, and what it reads of them."""
    data, _, training, _, mixture = args
    posts = splits["train"]
    if mixture.gate_data == "holdout":
        with one_sentence_errors():
            for expert in experts:
                if not expert.holdout_ids:
                    raise ValueError(
                        f"expert {expert.name} ({expert.source}) held no training posts out for the gate: train it "
                        "with --holdout_fraction 0.2, or choose --gate_data crossfit or train"
                    )
            common = set.intersection(*(expert.holdout_ids or set() for expert in experts))
            posts = [post for post in posts if post["id"] in common]
            if not posts:
                raise ValueError(
                    "no training post was held out by all experts: train them with one --holdout_fraction"
                )
    elif mixture.gate_data == "train":
        logger.warning("the gate learns from posts that the experts trained on: there they look right too often")
    else:
        with one_sentence_errors():
            for expert in experts:
                if not expert.options:
                    raise ValueError(
                        f"expert {expert.name} ({expert.source}) does not tell how it was trained (arguments.json is "
                        "missing): choose --gate_data holdout or train"
                    )
            lacking = sorted(set(model.config.label2id) - set(task.labels(types, data)))
            if lacking:
                raise ValueError(f"crossfit trains experts anew, but these posts lack the labels {', '.join(lacking)}")
    begin_training(args, options_of(args))
    if mixture.gate_data != "crossfit":
        empty = Features([], [])
        return posts, empty if mixture.train_experts else features_of(posts, "gate data")
    whole = features_of(posts, "gate data")
    said: dict[int, Any] = {}
    folds = [post_digest(post) % mixture.crossfit_folds for post in posts]
    for fold in sorted(set(folds)):
        folders = []
        for number, expert in enumerate(experts):
            column = expert.processor.knowledge_column or "knowledge"
            own = {
                split: [{**post, column: post[EXPERT_KNOWLEDGE][number]} for post in rows]
                for split, rows in (
                    ("train", [post for post, one in zip(posts, folds, strict=True) if one != fold]),
                    ("validation", splits["validation"]),
                )
            }
            folder = Path(training.output_dir) / "crossfit" / f"{expert.name}-{fold}"
            folders.append(str(folder))
            # the gate's images are tensors, and no expert reads them
            told = [[{**post, "image": None, "has_image": None} for post in rows] for rows in own.values()]
            made_of = hashlib.sha256(json.dumps([expert.options, told], default=str).encode()).hexdigest()[:32]
            if (folder / CROSSFIT).is_file() and (folder / CROSSFIT).read_text(encoding="utf-8") == made_of:
                continue  # of a run that was killed
            logger.info("crossfit: expert %s without fold %d of %d", expert.name, fold + 1, mixture.crossfit_folds)
            again = expert.options_of(
                TrainingArguments, output_dir=str(folder), seeds=[], resume_from_checkpoint=None, report_to=[],
                save_checkpoints=False, use_cpu=training.use_cpu, bf16=training.bf16,
            )  # fmt: skip
            once = expert.options_of(DataArguments, holdout_fraction=0.0)
            run_seed(
                task, (once, expert.options_of(ModelArguments), again, RunArguments(), MixtureArguments()), own, types,
                {}, [], command,
            )  # fmt: skip
            if PartialState().is_main_process:
                (folder / CROSSFIT).write_text(made_of, encoding="utf-8")
        rows = [row for row, one in enumerate(folds) if one == fold]
        of_fold = task.mixture_class.from_experts(
            folders, names=[expert.name for expert in experts], gate=mixture.gate
        ).to(model.device)
        found = features_of([posts[row] for row in rows], f"fold {fold + 1}", of_fold)
        found.images = None  # this mixture's own gate is not asked
        # the fold's experts speak for themselves: their CRFs are others than those of the final experts
        labels = [of_fold.config.label2id[label] for _, label in sorted(model.config.id2label.items())]
        for row, output in zip(rows, mix(of_fold, found), strict=True):
            said[row] = output.expert_log_probs[..., labels]
    whole.expert_log_probs = [said[row] for row in range(len(posts))]
    return posts, whole


def _labels(task: Task, model: Mixture, post: dict[str, Any]) -> Any:
    label2id = model.config.label2id
    if task.markers:
        return label2id[post["relation"]]
    return [label2id[tag] for tag in bio_to_bioes(post["ner_tags"])]


class DevResult(NamedTuple):
    """F1 on dev in percent, and the counts of each post that it comes from, int [posts, 3]."""

    f1: float
    counts: np.ndarray


def train_gate(
    model: Mixture,
    features: Features,
    labels: Sequence[Any],
    evaluate: Callable[[], DevResult],
    args: MixtureArguments,
    seed: int,
    progress: bool = True,
) -> TrainingResult:
    """Train the gate on the experts' stored outputs; the model keeps the epoch with the best dev score.

    Untrained, the gate is the plain average of the experts, which stays (epoch 0) unless the best epoch is better than
    it on dev by more than a standard error: of forty epochs the best one looks better by chance alone. (The
    one-standard-error rule: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3.)

    Every process does the same here: the posts are few numbers, and no expert runs.
    """
    from tqdm.auto import tqdm

    torch.manual_seed(seed)  # of the dropped images: what ran before must not matter, a cache that was warm or cold
    text = torch.cat([one if one.dim() == 2 else one[None] for one in features.text])
    images = None if features.images is None else features.images[0][features.images[1]]
    model.gate.standardise(text, images)
    optimizer = torch.optim.AdamW(model.gate.parameters(), lr=args.gate_learning_rate, weight_decay=0.01)
    average, untrained = evaluate(), deepcopy(model.gate.state_dict())
    best, best_result = untrained, average
    result = TrainingResult([{"epoch": 0, "dev_f1": average.f1}], average.f1)
    for epoch in tqdm(range(args.gate_epochs), desc="gate", disable=not progress):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(features), generator=generator).tolist()
        model.train()
        total = 0.0
        for first in range(0, len(order), args.gate_batch_size):
            rows = order[first : first + args.gate_batch_size]
            batch = {key: value.to(model.device) for key, value in gate_batch(features, rows, labels).items()}
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        found = evaluate()
        seconds = round(time.perf_counter() - began, 2)
        result.history.append({"epoch": epoch + 1, "loss": total / len(order), "dev_f1": found.f1, "seconds": seconds})
        if found.f1 > best_result.f1:
            best, best_result, result.best_epoch = deepcopy(model.gate.state_dict()), found, epoch + 1
    if result.best_epoch:
        gain, low, high = paired_bootstrap(best_result.counts, average.counts)
        if gain <= (high - low) / (2 * 1.96):
            logger.info("the gate's gain on dev, %.2f, may be chance: the plain average stays", gain)
            best, best_result, result.best_epoch = untrained, average, 0
    result.best_score = best_result.f1
    model.gate.load_state_dict(best)
    return result


def systems(
    task: Task, model: Any, outputs: Sequence[MixedPost], only_mixture: bool = False
) -> dict[str, list[Prediction]]:
    """What the mixture ("") says of each post, and beside it each expert, the average, and the other decoding."""
    names: list[str] = model.config.expert_names
    if task.markers:
        found: dict[str, list[Prediction]] = {"": [output.logits.exp().tolist() for output in outputs]}
        if only_mixture:
            return found
        for number, name in enumerate(names):
            found[f"expert_{name}"] = [output.expert_log_probs[number].exp().tolist() for output in outputs]
        return found | {"average": [average(output).exp().tolist() for output in outputs]}
    if only_mixture:
        return {"": mixture_tags(model, outputs, scored=False)}
    other = "word" if model.config.decoding == "viterbi" else "viterbi"
    return {
        "": mixture_tags(model, outputs),
        f"{other}_decoding": mixture_tags(model, outputs, other, scored=False),
        **{f"expert_{name}": expert_tags(model, outputs, number) for number, name in enumerate(names)},
        "average": average_tags(model, outputs),
    }


def scores(
    task: Task, model: Any, found: dict[str, list[Prediction]], posts: Posts, name: str, data: DataArguments
) -> dict[str, Any]:
    """Scores of every system under keys like `test_f1`, `test_average_f1`, `test_expert_text_f1`."""
    results: dict[str, Any] = {}
    for system, predictions in found.items():
        scored = task.score(model, predictions, posts, data)
        prefix = f"{name}_{system}_" if system else f"{name}_"
        results |= {prefix + key: value for key, value in scored.items() if not system or key in MAIN_SCORES}
    return results


def _write(
    task: Task,
    model: Any,
    folder: Path,
    name: str,
    suffix: str,
    posts: Posts,
    outputs: Sequence[MixedPost],
    found: dict[str, list[Prediction]],
    results: dict[str, Any],
) -> None:
    """Predictions with weights and each expert's opinion; of the test set, how the weights distribute."""
    names: list[str] = model.config.expert_names
    weights = [output.mean_weights for output in outputs]
    opinions = [
        [task.record(model, one, post) for one, post in zip(found[f"expert_{n}"], posts, strict=True)] for n in names
    ]
    said, kind = ("relation", "relation") if task.markers else ("entities", "tags")
    rows = []
    for number, post in enumerate(posts):
        row = task.record(model, found[""][number], post)
        row["expert_weights"] = dict(zip(names, weights[number].tolist(), strict=True))
        row["experts"] = {n: opinions[place][number][said] for place, n in enumerate(names)}
        averaged = found["average"][number]
        row["average"] = {kind: task.record(model, averaged, post)[kind] if task.markers else as_bio(averaged[0])}
        rows.append(row)
    write_jsonl(folder / "predictions" / f"{name}{suffix}.jsonl", rows)
    if name == "test":
        stacked = torch.stack(weights)
        agree = [len({str(opinion[number][kind]) for opinion in opinions}) == 1 for number in range(len(posts))]
        images = [bool(post["has_image"]) for post in posts] if posts and "has_image" in posts[0] else None
        results["gate"] = gate_table(stacked, names, agree, images)
        draw_gate_weights(stacked, names, agree, folder / f"gate_weights{suffix}.png")
