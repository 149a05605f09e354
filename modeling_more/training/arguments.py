"""This module defines the options of a run as dataclasses, without other libraries, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..posts import MAX_PAIRS, MAX_WORDS
from ..retrieval_settings import QUERIES

RETRIEVALS = ("none", "text", "image", "moe")
CHOSEN_ON_DEV = "dev"  # a --min_score that is no number
#: the trackers that accelerate knows, and "all" for those that are installed
TRACKERS = [*("all", "aim", "tensorboard", "wandb", "trackio", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab")]


def option(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """Return the field of an option; a default that is a list is a new one in each run."""
    metadata: dict[str, Any] = {"help": help, "choices": list(choices)} if choices else {"help": help}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataArguments:
    """A group of options that name the posts and their knowledge."""

    dataset: str | None = option(
        None,
        "a set by name (twitter15, twitter17, snap, wikidiverse, demo; of relations mnre, demo_relations), a folder "
        "of Parquet or a Hub id",
    )
    retrieval: str = option("none", "knowledge that is read with the post; moe: a mixture of --experts", RETRIEVALS)
    data_dir: str | None = option(None, "folder or .zip with the named set's files; default: downloaded")
    columns: list[int] | None = option(
        None,
        "columns of words and of labels in your CoNLL files, from 1, like 1 4; default: the first (the second behind "
        "an index) and the last",
    )
    train_file: str | None = option(None, "your own posts: CoNLL, JSONL, CSV, TSV or Parquet")
    validation_file: str | None = option(None, "likewise, to choose the best epoch")
    test_file: str | None = option(
        None, "likewise, scored once at the end; where all labels are hidden (null or -1), predicted only"
    )
    predict_file: str | None = option(
        None,
        "posts without labels, for --do_predict: what --train_file reads, labels not needed (text or tokens, id, "
        "image), or text with one post a line",
    )
    knowledge: list[str] = option(
        [],
        "corpus to retrieve from: JSONL, JSONL.gz or Parquet files, a saved corpus, or a Hub id; with --experts: "
        "instead of what those that retrieve were trained with",
    )
    top_k: int = option(10, "entries of knowledge retrieved and read")
    min_score: str | None = option(
        None,
        "entries of a lower score are not read, and a post of which none is left is read alone: a number, or dev, to "
        "choose it on the validation posts after the training; default: all are read",
    )
    knowledge_words: int | None = option(None, "words read of each entry, around its matched sentence; default: all")
    title_in_key: bool = option(False, "search title and sentence instead of the sentence alone")
    retriever: str = option(
        "bm25",
        "how text is searched: by words (bm25), by a sentence encoder (dense), by both, or by a class of your own, "
        "FILE.py:CLASS",
    )
    text_model: str = option(
        "sentence-transformers/all-MiniLM-L6-v2", "sentence encoder of --retriever dense or both: folder or Hub id"
    )
    query: str = option(
        "words",
        "what is searched for: the post's words, its image's caption, or also, in the titles, its entities (of a "
        "relation: its two); those of run_ner.py are predicted by --query_folds + 1 more trainings, or --entities",
        QUERIES,
    )
    captions: str | None = option(
        None, "captions of the images, for --query caption: `ID.jpg :caption` lines or JSONL"
    )
    entities: list[str] = option(
        [],
        "predictions/*.jsonl of runs that did not train on these posts, for --query entities; default: made by this "
        "run (--query_folds)",
    )
    query_folds: int = option(
        5,
        "--query entities without --entities: so many experts, each trained without a fold of the training posts, "
        "predict that fold, and one more, trained on all, the dev and test posts; they search words alone and are "
        "kept in OUTPUT_DIR/crossfit (run_ner.py)",
    )
    image_dir: str | None = option(None, "folder with the posts' images, named by image id, for --retrieval image")
    image_model: str = option("openai/clip-vit-base-patch32", "image tower of --retrieval image: folder or Hub id")
    shuffle_knowledge: bool = option(False, "control: every post gets another post's knowledge (same split)")
    max_length: int = option(
        512, "sub-tokens of a post with its knowledge; lowered to what encoder and tokenizer read"
    )
    overflow: str = option("cut", "knowledge past max_length: cut its end, or skip whole entries", ["cut", "skip"])
    max_words: int = option(
        MAX_WORDS,
        "words of the longest post that is scored or predicted, in windows of --max_length; of a post to train on, "
        "what lies past --max_length is cut",
    )
    max_pairs: int = option(MAX_PAIRS, "pairs of entities of one post that are predicted at most (run_re.py)")
    none_relation: str = option("None", "the class of pairs without a relation, which F1 leaves out (run_re.py)")
    splitter: str = option(
        "twitter17",
        "how raw text becomes words (in predict mode: as the expert was trained); of scripts without blanks "
        "(Chinese, Thai …) each letter is a word, but for whitespace, which splits at blanks alone",
        ["twitter17", "twitter15", "whitespace"],
    )
    max_train_samples: int | None = option(None, "train on the first so many posts")
    max_eval_samples: int | None = option(None, "score on the first so many posts of a split")
    holdout_fraction: float = option(0.0, "share of the training posts kept unseen, for a gate to learn from later")
    cache_dir: str | None = option(None, "for data, corpora and downloads")

    @property
    def least_score(self) -> float | None:
        """Return the number that `--min_score` gives, or None where it gives none."""
        return None if self.min_score in (None, CHOSEN_ON_DEV) else float(str(self.min_score))


@dataclass
class ModelArguments:
    """A group of options that choose the encoder or expert, its head and its loss."""

    model_name_or_path: str = option("FacebookAI/xlm-roberta-large", "encoder, or a saved expert: folder or Hub id")
    model_revision: str = option("main", "branch, tag or commit of the model on the Hub")
    attn_implementation: str | None = option(None, "eager, sdpa, flash_attention_2 … (default: the library's choice)")
    head: str = option("crf", "layer over the words of entities", ["crf", "softmax"])
    two_views: str = option("off", "loss that ties the views with and without knowledge", ["off", "crf_kl", "kl"])
    kl_temperature: float = option(1.0, "softens both sides of that loss")
    nll_weight: float = option(0.5, "lambda: weight of the likelihoods; KL weighs the rest")
    kl_target_transitions: bool = option(False, "let the KL's target move the transitions, as the authors' code does")
    head_dropout: float = option(0.0, "on what the head reads")
    word_dropout: float = option(0.0, "zero a word's whole representation")
    class_weights: bool = option(False, "weigh relations by the inverse root of their number in training (run_re.py)")


@dataclass
class TrainingArguments:
    """A group of options for training; the defaults are the paper's, and a data set's recipe sets the rest."""

    output_dir: str = option(
        "out",
        "folder for model, processor, scores, predictions, card; default: out, of a model that is only scored or "
        "predicts a folder named after it, like out-scored-posts",
    )
    seed: int = option(42, "of the head's initialisation, the batches and the dropout")
    seeds: list[int] = option([], "train once with each of these seeds; reports mean and deviation")
    num_train_epochs: int = option(10, "epochs")
    per_device_train_batch_size: int = option(4, "posts of a batch on each device")
    per_device_eval_batch_size: int = option(16, "posts of a batch when not training")
    auto_find_batch_size: bool = option(
        False,
        "where a batch does not fit into memory, halve it and double the accumulation: an optimizer step keeps its "
        "posts; what was used is in all_results.json and arguments.json",
    )
    max_tokens_per_batch: int | None = option(
        None, "batches hold at most so many padded sub-tokens, instead of so many posts"
    )
    group_by_length: bool = option(False, "batch posts of like length together: less padding, less random batches")
    gradient_accumulation_steps: int = option(1, "batches of one optimizer step, in which every post weighs the same")
    learning_rate: float = option(1e-5, "of the encoder and the linear layer")
    crf_learning_rate: float | None = option(None, "of the CRF's parameters; default: the learning rate")
    weight_decay: float = option(0.01, "of AdamW")
    lr_decay: str = option(
        "step",
        "linear decay to 0 after every step, or after every epoch as the authors' recipes do",
        ["step", "epoch"],
    )
    warmup_ratio: float = option(0.0, "share of the steps in which the rates rise from 0")
    max_grad_norm: float = option(0.0, "clip gradients to this norm; 0: no clipping")
    skip_nonfinite_steps: int = option(
        0,
        "skip, and count, up to so many optimizer steps whose loss or gradient is NaN or infinite; at one more (by "
        "default at the first) training stops; DeepSpeed can't skip",
    )
    early_stopping_patience: int | None = option(None, "stop after so many epochs without a better dev score")
    bf16: bool = option(False, "compute in bfloat16 (weights and CRF stay float32)")
    do_train: bool = option(True, "train (with --no_do_train: only score the given model)")
    do_predict: bool = option(False, "predict --predict_file; alone, without --dataset, only that")
    overwrite_output_dir: bool = option(False, "let a training delete the run that its folder holds")
    use_cpu: bool = option(False, "stay on the CPU even where a GPU is")
    gradient_checkpointing: bool = option(False, "less memory for a third more time")
    resume_from_checkpoint: str | None = option(
        None,
        "'latest', or the folder of a checkpoint of the same run, launched with as many processes; with another "
        "--num_train_epochs the rates are those of the new length from there on",
    )
    save_checkpoints: bool = option(True, "write the optimizer's state after each epoch, so that the run can resume")
    report_to: list[str] = option([], "trackers, e.g. tensorboard trackio wandb; logs go to OUTPUT_DIR/logs", TRACKERS)

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, it must be at least 1")


@dataclass
class MixtureArguments:
    """A group of options that say how experts are mixed (--retrieval moe)."""

    experts: list[str] = option(
        [],
        "experts to mix: folders of earlier runs, or Hub ids; of experts that were not trained by you on this machine "
        "no files and addresses are used but those that you give (--knowledge, --captions, --image_dir …)",
    )
    gate_data: str = option(
        "holdout",
        "posts the gate learns from: those the experts held out (--holdout_fraction), all training posts with "
        "experts trained anew on the other folds, all although the experts know them, or the dev posts, which then "
        "tell no more how good the gate is",
        ["holdout", "crossfit", "train", "dev"],
    )
    crossfit_folds: int = option(5, "folds of --gate_data crossfit")
    gate: str = option("post", "one weight per expert and post, or per word", ["post", "word"])
    gate_inputs: list[str] = option(
        ["auto"],
        "what the gate reads: the post's text and image (the paper), the scores of what each expert's search found, "
        "the confidence of what it says; auto: what does best in cross-validation on the gate's posts, the plain "
        "average among it; with evidence the gate is fitted in one go, not by --gate_epochs",
        ["auto", "text", "image", "scores", "confidence"],
    )
    shuffle_evidence: bool = option(
        False, "control: the gate is chosen and fitted with the evidence of another post each (--gate post)"
    )
    abstain: bool = option(
        False, "mix what each expert with knowledge says without it, too, so that the gate may ignore its search"
    )
    gate_images: bool = option(True, "let the gate see the posts' images, where there are any")
    gate_epochs: int = option(40, "epochs of the gate over the experts' cached outputs")
    gate_batch_size: int = option(32, "posts of a batch of the gate")
    gate_learning_rate: float = option(1e-3, "of the gate")
    image_dropout: float = option(0.1, "share of images hidden from the gate in training")
    load_balancing: float = option(0.0, "weight of the term that evens out the experts' use")
    gate_entropy: float = option(0.0, "weight of the gate's entropy in the loss")
    decoding: str = option(
        "viterbi",
        "tags of entities: the best valid sequence, or each word's best (the paper); both are scored",
        ["viterbi", "word"],
    )
    train_experts: bool = option(False, "train the experts along, for --num_train_epochs at --learning_rate")
    copy_experts: bool = option(True, "save the experts with the mixture, instead of their names")
    cache_expert_outputs: bool = option(True, "keep the experts' outputs for later runs")


@dataclass
class HubArguments:
    """A group of options that say what is published, and where."""

    push_to_hub: bool = option(False, "upload model, processor, scores and card at the end")
    push_predictions: bool = option(False, "upload the predictions, too: they hold the posts' words")
    hub_model_id: str | None = option(None, "ORG/NAME to upload to")
    hub_private: bool = option(False, "create that repository private; else as the account or organisation has it")


@dataclass
class Arguments:
    """A set of all options of a run, in groups."""

    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    mixture: MixtureArguments = field(default_factory=MixtureArguments)
    hub: HubArguments = field(default_factory=HubArguments)

    @property
    def posts(self) -> str | None:
        """Return the name of the posts that are trained on or scored, or None if the run only predicts."""
        return self.data.dataset or self.data.test_file or self.data.validation_file or self.data.train_file

    @property
    def trains(self) -> bool:
        """Return whether the run trains, rather than just scores a given model or predicts."""
        return self.training.do_train and self.posts is not None

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the runs; a scoring has only one, since its result is the same with every seed."""
        return (self.training.seeds if self.training.do_train else []) or [self.training.seed]

    def each_seed(self) -> Iterator[Arguments]:
        """Yield the options of the run with each seed; several seeds have a folder each."""
        for seed in self.seeds:
            folder = Path(self.training.output_dir)
            folder = folder / f"seed-{seed}" if len(self.seeds) > 1 else folder
            yield replace(self, training=replace(self.training, seed=seed, output_dir=str(folder)))

    def options(self) -> dict[str, Any]:
        """Return all options by name, for an options file; a run repeated from it must not overwrite this one."""
        parts = (asdict(part) for part in vars(self).values())
        return {name: value for part in parts for name, value in part.items()} | {"overwrite_output_dir": False}
