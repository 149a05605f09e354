"""This module runs `--retrieval moe`: it builds a mixture, trains its gate, and scores it beside its experts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from ..configuration_mixture import GATE_INPUTS
from ..data.sources import is_labelled
from ..data.tasks import Task
from ..data_collator import MixtureCollator
from ..encoding import check_tower, encode_for_experts
from ..files import write_jsonl
from ..metrics import paired_bootstrap
from ..naming import nearest
from ..pipelines import MoRePipeline
from ..posts import Posts
from ..predictions import Prediction
from ..processing_mixture import MoReMixtureProcessor
from .arguments import Arguments, MixtureArguments
from .calibration import at_temperatures, fit_temperatures, label_likelihoods, oracle
from .checkpoints import TrainingState, check_checkpoint, description
from .command_line import one_sentence_errors
from .crossfit import Fold, folds_of, folds_to_train, said_by_folds
from .evaluation import NAMES, prediction_rows
from .expert_outputs import Features, Mixture, expert_features, mixed
from .experts import Expert, load_experts
from .gate_choice import FOLDS, Choice, candidates_of, known_of, shuffled
from .gate_training import DevResult, train_gate
from .loop import train
from .mixture_posts import cache_of, image_model_of
from .mixture_report import report_gate
from .models import load_expert, load_processor
from .optimization import check_scores, skipped_steps
from .output_folders import begin_scoring, begin_training
from .reliability import calibration_rows, draw_reliability
from .results import begin_results, save_run
from .retrieval import retrieval_of_run
from .setup import make_accelerator

logger = logging.getLogger(__name__)

#: options of the training of a gate that reads text and image alone
OF_EPOCHS = ("gate_epochs", "gate_batch_size", "gate_learning_rate", "image_dropout", "load_balancing", "gate_entropy")
MAIN_SCORES = ("f1", "precision", "recall", "accuracy")


@dataclass
class MixtureRun:
    """A mixture that is ready to be trained (unless it is a saved one) and scored.

    Attributes:
        args: the options of one seed.
        gate_posts: the posts that the gate learns from.
        candidates: what was compared to weigh the experts, see `gate_choice.Candidate`.
        temperatures: one an expert, fitted to the gate's posts where something was compared.
    """

    task: Task
    args: Arguments
    accelerator: Accelerator
    experts: list[Expert]
    model: Mixture
    processor: MoReMixtureProcessor
    splits: dict[str, Posts]
    gate_posts: Posts
    candidates: list[dict[str, Any]] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)

    def folds(self) -> Iterator[Fold]:
        """Return an iterator over the trainings that `--gate_data crossfit` needs first, see `folds_to_train`."""
        return folds_to_train(self.args, self.experts, self.splits, self.accelerator)

    def pipeline(self) -> MoRePipeline:
        """Return a pipeline around the mixture in its present state."""
        size = self.args.training.per_device_eval_batch_size
        return self.task.pipeline_class(self.model, self.processor, self.accelerator, size)

    def features(self, posts: Posts, name: str, model: Mixture | None = None) -> Features:
        """Return the gate's inputs for these posts, cached unless the experts are trained too."""
        size = self.args.training.per_device_eval_batch_size
        cache = None if self.args.mixture.train_experts else cache_of(self.args)
        told = f"experts on {name}"
        found = expert_features(model or self.model, self.processor, posts, self.accelerator, size, cache, told)
        if posts and "image" in posts[0]:
            found.images = torch.stack([p["image"] for p in posts]), torch.stack([p["has_image"] for p in posts])
        return found


def prepare_mixture(task: Task, args: Arguments, splits: dict[str, Posts], types: list[str]) -> MixtureRun:
    """Load experts, gate and processor, check that they fit posts and options, and prepare the output folder."""
    accelerator = make_accelerator(args.training)
    set_seed(args.training.seed)
    with one_sentence_errors():
        experts = load_experts(args.mixture.experts)
        model, processor = _build(task, args, experts, splits, accelerator)
        if unknown := sorted(set(task.labels(types, args.data.none_relation)) - set(model.config.label2id)):
            known = nearest(unknown[0], model.config.label2id)
            raise ValueError(f"the experts do not know the labels {', '.join(unknown)} of the data{known}")
        gate_posts: Posts = []
        if args.training.do_train:
            _check_gate_data(task, args, model, types)
            gate_posts = _gate_posts(args, experts, splits["train"], splits["validation"])
    if args.training.do_train:
        begin_training(args, accelerator)
    model.to(accelerator.device)
    return MixtureRun(task, args, accelerator, experts, model, processor, splits, gate_posts)


def run_mixture(run: MixtureRun, report: dict[str, Any], to_predict: Posts, command: str) -> dict[str, Any]:
    """Train the gate (and the experts, if asked), score the mixture and its experts, and write the files of one seed.

    Returns:
        the content of `all_results.json`.
    """
    task, args, accelerator = run.task, run.args, run.accelerator
    for expert, processor in zip(run.experts, run.processor.processors, strict=True):
        searched = retrieval_of_run(expert.data(args.data), report.get(expert.name, {}))
        processor.retrieval = searched or processor.retrieval
    results = begin_results(args, report)
    named = zip(run.model.config.expert_names, run.experts, strict=True)
    results["experts"] = {name: expert.source for name, expert in named}
    if args.training.do_train:
        results |= {"gate_data": args.mixture.gate_data, "gate_posts": len(run.gate_posts)}
        trained = train_mixture(run)
        results |= {"best_epoch": trained.best_epoch, "history": trained.history} | skipped_steps(trained)
        results |= {"gate_inputs": run.model.config.gate_inputs}
        if run.candidates:
            results["gate_candidates"] = run.candidates

    output, suffix = begin_scoring(args, accelerator)
    pipeline = run.pipeline()
    readers, temperatures = run.model.config.readers, _temperatures(run)
    scored: dict[str, tuple[Posts, dict[str, list[Prediction]]]] = {}
    for split, name in NAMES.items():
        if split in run.splits:
            posts = run.splits[split]
            features = run.features(posts, name)
            found = predict_systems(pipeline, features)
            if run.model.config.temperatures:  # the plain average knows none, nor do the experts by themselves
                with at_temperatures(run.model, None):
                    plain = predict_systems(pipeline, features)
                found |= {name: plain[name] for name in plain if name == "average" or name.startswith("expert_")}
            if accelerator.is_main_process:
                encoded = encode_for_experts(posts, run.processor)
                rows = prediction_rows(task, pipeline, posts, found[""], encoded)
                for row, averaged in zip(rows, found["average"], strict=True):
                    row["average"] = task.prediction(averaged.labels)
                write_jsonl(output / "predictions" / f"{name}{suffix}.jsonl", rows)
            if is_labelled(posts, task):
                labels = [task.label_ids(post[task.label], run.model.config.label2id) for post in posts]
                likelihoods = label_likelihoods(run.model, features, labels)
                found["oracle"] = oracle(likelihoods, [found[f"expert_{one}"] for one in readers])
                tempered = None
                if temperatures:
                    with at_temperatures(run.model, temperatures):
                        tempered = predict_systems(pipeline, features)
                shown = [*temperatures, *(temperatures[place] for place in run.model.config.alone if temperatures)]
                rows = calibration_rows(task, posts, name, found, readers, tempered, shown[: len(readers)])
                results |= {"calibration": rows, f"{name}_calibration_error": rows[-1]["error"]}
                results |= score_systems(task, found, posts, name, args.data.none_relation)
                scored[name] = posts, found
            if accelerator.is_main_process and name == "test":
                results["gate"] = report_gate(posts, found[""], output / f"gate_weights{suffix}.png")
    if accelerator.is_main_process and "calibration" in results:
        draw_reliability(results["calibration"], output / f"reliability{suffix}.png")
    results |= _compare(task, readers, scored, results, args.data.none_relation)
    save_run(task, args, pipeline, results, to_predict, command)
    return results


def train_mixture(run: MixtureRun) -> TrainingState:
    """Train the gate on the experts' stored outputs, or with `--train_experts` together with the experts."""
    task, args, posts, dev = run.task, run.args, run.gate_posts, run.splits["validation"]
    labels = [task.label_ids(post[task.label], run.model.config.label2id) for post in posts]

    def dev_result(model: Mixture, features: Features) -> DevResult:
        pipeline = task.pipeline_class(model, run.processor, run.accelerator)
        found = []
        for output, mask in mixed(model, features):
            found += pipeline.decode(check_scores(run.accelerator, output.logits), mask)
        scored = found, [post[task.label] for post in dev], args.data.none_relation
        return DevResult(task.scores(*scored)["f1"], task.counts(*scored))

    if not args.mixture.train_experts:
        features = run.features(posts, "gate data")
        if args.mixture.gate_data == "crossfit":
            folds = args, run.experts, posts, task.mixture_class, run.features, run.model
            features.expert_log_probs, features.confidence = said_by_folds(*folds)
        if not set(run.model.config.gate_inputs) <= {"text", "image"}:
            choose_gate(run, features, labels)
            return TrainingState()  # there are no epochs
        dev_features = run.features(dev, "dev")
        return train_gate(
            run.model, features, labels, lambda: dev_result(run.model, dev_features), args.mixture, args.training.seed,
            run.accelerator.is_main_process,
        )  # fmt: skip
    encoded: list[dict[str, Any]] = encode_for_experts(posts, run.processor)
    for row, post, label in zip(encoded, posts, labels, strict=True):
        row |= {"labels": label} | {key: post[key] for key in ("image", "has_image") if key in post}
    encoded_dev = encode_for_experts(dev, run.processor)
    experts = dict(zip(run.model.config.expert_names, run.model.experts, strict=True))
    made_of = description(args, run.accelerator, [posts, dev], [encoded, encoded_dev], experts)
    with one_sentence_errors():
        check_checkpoint(args.training, made_of)

    def dev_score(candidate: torch.nn.Module) -> float:
        own = run.accelerator.unwrap_model(candidate)
        return dev_result(own, run.features(dev, "dev", own)).f1

    run.model, trained = train(
        run.accelerator, run.model, run.processor, encoded, dev_score, args.training,
        collate=MixtureCollator(run.processor), made_of=made_of,
    )  # fmt: skip
    return trained


def choose_gate(run: MixtureRun, features: Features, labels: Sequence[Any]) -> None:
    """Choose by cross-validation what weighs the experts, and fit it to the gate's posts; see `gate_choice`."""
    task, args, posts, model = run.task, run.args, run.gate_posts, run.model
    pipeline = task.pipeline_class(model, run.processor, run.accelerator)
    if unused := [one for one in OF_EPOCHS if getattr(args.mixture, one) != getattr(MixtureArguments, one)]:
        logger.warning("--%s: not used, a gate that may read evidence is fitted in one go", ", --".join(unused))
    model.config.load_balancing = model.config.entropy = 0.0  # of a training by epochs
    images, tower = features.images is not None, model.config.image_model
    own = features.expert_log_probs is None  # the experts' own outputs, not those of other folds'
    candidates = candidates_of(args.mixture.gate_inputs, images, len(model.config.readers), own)
    known, ready = known_of(model, features, labels)
    if args.mixture.shuffle_evidence:
        known, ready = shuffled(known, ready, args.training.seed)

    def score(rows: Sequence[int]) -> tuple[np.ndarray, float]:
        stored = features if model.config.temperatures else ready  # which holds what is said at temperature 1
        found: list[Any] = []
        nll = 0.0
        for output, mask in mixed(model, stored.select(rows), labels=[labels[row] for row in rows]):
            found += pipeline.decode(check_scores(run.accelerator, output.logits), mask)
            nll += float(cast(Tensor, output.loss)) * len(mask)
        gold = [posts[row][task.label] for row in rows]
        return task.counts(found, gold, args.data.none_relation), nll

    def temperatures(rows: Sequence[int]) -> list[float]:
        return fit_temperatures(model, features.select(rows), [labels[row] for row in rows])

    choice = Choice(model, known, folds_of(posts, FOLDS), score, temperatures, args.training.seed)
    choice.run(candidates, run.accelerator.is_main_process)
    model.config.image_model = tower if model.config.image_dim else None
    if not model.config.abstain and "confidence" not in model.config.gate_inputs:
        model.config.alone, run.processor.alone = [], False  # nothing asks for it: half the time of reading is spared
    if own and args.mixture.gate_data != "train":  # whose posts the experts know
        run.temperatures = temperatures(range(len(features)))
    run.candidates = [asdict(one) | {"inputs": list(one.inputs)} for one in candidates]


def _temperatures(run: MixtureRun) -> list[float]:
    """Return a temperature for each expert, none if nothing is trained: of the gate's posts if they were held out."""
    if run.temperatures or not run.args.training.do_train:
        return run.temperatures
    held_out = run.args.mixture.gate_data == "holdout"
    posts, name = (run.gate_posts, "gate data") if held_out else (run.splits["validation"], "dev")
    labels = [run.task.label_ids(post[run.task.label], run.model.config.label2id) for post in posts]
    return fit_temperatures(run.model, run.features(posts, name), labels)


def predict_systems(pipeline: MoRePipeline, features: Features) -> dict[str, list[Prediction]]:
    """Return the predictions of the mixture (""), of each expert, of their average, and of the other decoding."""
    config = pipeline.core.config
    found: dict[str, list[Prediction]] = {"": [], "average": []}
    other = None if pipeline.processor.markers else "word" if config.decoding == "viterbi" else "viterbi"
    if other:
        found[f"{other}_decoding"] = []
    for output, mask in mixed(pipeline.core, features):
        found[""] += pipeline.read(output, mask)
        said = output.expert_log_probs
        average = said.logsumexp(1) - np.log(said.shape[1])
        found["average"] += [Prediction(labels, []) for labels in pipeline.decode(average, mask)]
        if other:
            decoded = pipeline.decode(output.logits, mask, other)
            found[f"{other}_decoding"] += [Prediction(labels, []) for labels in decoded]
    for name in config.readers:
        found[f"expert_{name}"] = [(one.experts or {})[name] for one in found[""]]
    return found


def score_systems(
    task: Task, found: Mapping[str, Sequence[Prediction]], posts: Posts, name: str, none_relation: str
) -> dict[str, Any]:
    """Return the scores of every system, under keys like `test_f1`, `test_average_f1`, `test_expert_text_f1`."""
    results: dict[str, Any] = {}
    for system, predictions in found.items():
        scored = task.score(predictions, posts, none_relation)
        prefix = f"{name}_{system}_" if system else f"{name}_"
        results |= {prefix + key: value for key, value in scored.items() if not system or key in MAIN_SCORES}
    return results


def _compare(
    task: Task, names: Sequence[str], scored: Mapping[str, tuple[Posts, Mapping[str, Sequence[Prediction]]]],
    results: Mapping[str, Any], none_relation: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the mixture's gains over the average, and over the best expert on dev, on the last scored split."""
    compared = {"average": "average"}
    more: dict[str, Any] = {}
    if "dev_f1" in results:  # a saved mixture may be scored without a dev split
        best = max(names, key=lambda name: results[f"dev_expert_{name}_f1"])
        more["best_expert"] = best
        compared["best_expert"] = f"expert_{best}"
        if "test_f1" in results:
            more["test_best_expert_f1"] = results[f"test_expert_{best}_f1"]
    if scored:
        name, (posts, found) = list(scored.items())[-1]
        for other, system in compared.items():
            own, its = (task.count(found[key], posts, none_relation) for key in ("", system))
            difference, low, high = paired_bootstrap(own, its)
            more[f"{name}_f1_minus_{other}"] = {"difference": difference, "low": low, "high": high}
    return more


def _build(
    task: Task, args: Arguments, experts: Sequence[Expert], splits: dict[str, Posts], accelerator: Accelerator
) -> tuple[Mixture, MoReMixtureProcessor]:
    """Return a mixture of these experts with a new gate, or the saved mixture to score, whose experts must match."""
    model_args, mixture = args.model, args.mixture
    first = next(iter(splits.values()))[0]
    model: Mixture
    processor: Any
    if not args.training.do_train:
        processor = load_processor(task, model_args, accelerator)
        model = cast(Mixture, load_expert(task, model_args, accelerator))
        given = [expert.processor.knowledge_column for expert in experts]
        known = [one.knowledge_column for one in processor.processors]
        if given != known:
            raise ValueError(
                f"--experts read {given}, those of {model_args.model_name_or_path} read {known}: name the experts "
                "that it mixes, in its order"
            )
        if "image" in first:
            check_tower(model.config, "--image_model", len(first["image"]))
        return model, processor
    processor = MoReMixtureProcessor([expert.processor for expert in experts], [one.name for one in experts])
    inputs = [one for one in GATE_INPUTS if one in mixture.gate_inputs]
    if "auto" in mixture.gate_inputs:
        inputs = ["text", "image"] if mixture.train_experts else list(GATE_INPUTS)
    if inputs == ["image"] and "image" not in first:
        raise ValueError("--gate_inputs image: the posts come without images")
    processor.alone = mixture.abstain or "confidence" in inputs
    with accelerator.main_process_first():
        model = task.mixture_class.from_experts(
            [expert.source for expert in experts], names=[expert.name for expert in experts], gate=mixture.gate,
            image_dim=len(first["image"]) if "image" in first else 0,
            image_model=image_model_of(args, experts) if "image" in first else None,
            image_dropout=mixture.image_dropout, load_balancing=mixture.load_balancing, entropy=mixture.gate_entropy,
            train_experts=mixture.train_experts, decoding=mixture.decoding, copy_experts=mixture.copy_experts,
            gate_inputs=inputs, alone=processor.alone_places, abstain=mixture.abstain,
        )  # fmt: skip
    return model, processor


def _check_gate_data(task: Task, args: Arguments, model: Mixture, types: list[str]) -> None:
    """Raise ValueError if these posts do not allow the choice of `--gate_data`."""
    lacking = sorted(set(model.config.label2id) - set(task.labels(types, args.data.none_relation)))
    if lacking and args.mixture.gate_data == "crossfit":
        raise ValueError(f"crossfit trains experts anew, but these posts lack the labels {', '.join(lacking)}")


def _gate_posts(args: Arguments, experts: Sequence[Expert], posts: Posts, dev: Posts) -> Posts:
    """Return the posts that the gate learns from."""
    if args.mixture.gate_data == "train":
        logger.warning("the gate learns from posts that the experts trained on: there they look right too often")
    if args.mixture.gate_data == "dev":
        return dev
    if args.mixture.gate_data != "holdout":
        return posts
    common = set.intersection(*(expert.holdout_ids or set() for expert in experts))
    posts = [post for post in posts if post["id"] in common]
    if not posts:
        raise ValueError("no training post was held out by all experts: train them with one --holdout_fraction")
    return posts
