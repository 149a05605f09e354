"""The command `more`: predict posts, search a corpus, open a page, each in one line of a terminal."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .naming import NamingParser
from .retrieval_settings import SEARCHES
from .training.arguments import DataArguments
from .training.interruption import end_at_once, interrupted, raise_again

# No library is imported before the arguments are read: help and a mistyped option are answered at once.

EPILOG = """examples:
  more predict ORG/NAME "Rivera joins Northfield United"
  more predict out "Rivera at the ground" --image photo.jpg --knowledge articles.jsonl
  more predict out --file posts.csv --output found.jsonl
  more search ORG/CORPUS "Northfield United"
  more search ORG/CORPUS --image photo.jpg
  more page out"""
MODEL = "folder or Hub id of a saved expert or mixture"


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of the command, or end the program with what is wrong with them."""
    plain: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    whole = NamingParser(prog="more", description=__doc__, epilog=EPILOG, **plain)
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=NamingParser)

    one = commands.add_parser("predict", help="find entities or relations in a post, or in a file of posts", **plain)
    one.add_argument("model", help=MODEL)
    one.add_argument("text", nargs="?", help="a post; on a terminal a table is shown, else a line of JSON")
    one.add_argument("--image", type=Path, help="its image")
    one.add_argument("--file", type=Path, help="a file of posts: JSONL, CSV, TSV, Parquet, CoNLL, or a post a line")
    one.add_argument("--output", type=Path, help="JSONL to write for --file; started again, it goes on where it was")
    one.add_argument("--image_dir", type=Path, help="folder of the images of the posts in --file, named by image id")
    one.add_argument("--no_retrieve", action="store_true", help="read posts alone, or with the knowledge they bring")
    one.add_argument("--min_score", type=float, help="read no entries of a lower score (default: as trained)")
    one.add_argument("--threshold", type=float, default=0.0, help="leave out what is less probable (default: 0)")
    one.add_argument("--entity_model", help="for a model of relations: that which finds the entities")
    one.add_argument("--batch_size", type=int, default=16, help="posts of a batch (default: 16)")

    two = commands.add_parser("search", help="search a corpus of knowledge", **plain)
    two.add_argument("corpus", nargs="+", metavar="CORPUS", help="files, a folder or a Hub id, then the query")
    two.add_argument("--image", type=Path, help="search by this image instead of a query")
    two.add_argument("--retriever", choices=SEARCHES, default="bm25", help="how texts are searched")
    two.add_argument("--text_model", default=DataArguments.text_model, help="of dense (default: %(default)s)")
    two.add_argument("--image_model", default=DataArguments.image_model, help="image tower (default: %(default)s)")

    three = commands.add_parser("page", help="open a page in the browser on which the model can be tried", **plain)
    three.add_argument("model", nargs="+", help=MODEL)
    three.add_argument("--relation_model", help="a model of relations, asked of two entities that are chosen")
    three.add_argument("--port", type=int, help="default: a free one from 7860 on")

    for command in (one, two, three):
        command.add_argument("--cache_dir", type=Path, help="for corpora and indices")
    for command in (one, three):
        command.add_argument("--knowledge", nargs="+", default=[], metavar="CORPUS",
                             help="corpus to search instead of that of the training")  # fmt: skip
    for command in (one, two):
        command.add_argument("--top_k", type=int, help="entries of knowledge (default: as trained; of a search 5)")
    args, unknown = whole.parse_known_args(argv)
    try:
        commands.choices[args.command].check_known(unknown)
    except ValueError as error:
        commands.choices[args.command].error(str(error))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the program), and return its exit code."""
    end_at_once()
    args = read_arguments(argv)
    from .training.command_line import one_sentence_errors
    from .training.setup import quiet_libraries

    quiet_libraries()
    try:
        raise_again()
        with one_sentence_errors():
            {"predict": predict, "search": search, "page": page}[args.command](args)
    except KeyboardInterrupt:
        raise interrupted() from None
    except BrokenPipeError:  # of `more … | head`
        sys.stderr.close()
    return 0


def predict(args: argparse.Namespace) -> None:
    """Predict a post, or the posts of a file.

    Raises:
        ValueError, OSError: an option, the model or a post can't be used.
    """
    if (args.text is None) == (args.file is None):
        raise ValueError('give a post, like more predict MODEL "text", or posts by --file FILE --output OUT.jsonl')
    for name, other in (("image", "file"), ("image_dir", "text"), ("output", "text")):
        if getattr(args, name) is not None and getattr(args, other) is not None:
            raise ValueError(f"--{name} is not for {'--file' if other == 'file' else 'a single post'}")
    if args.file is not None and args.output is None:
        raise ValueError("--file needs --output OUT.jsonl")
    if args.image is not None and not args.image.is_file():
        raise FileNotFoundError(f"--image {args.image}: there is no such file")
    pipe = load(args)
    if args.file is not None:
        predict_file(pipe, args)
        return
    post: dict[str, Any] = {"text": args.text}
    if args.image is not None:
        from .knowledge import open_image

        post["image"] = open_image(args.image)  # one that can't be used is an error here, where there is only one
    result = pipe(post)
    show(result, table(result) if sys.stdout.isatty() else None)


def load(args: argparse.Namespace) -> Any:
    """Return the pipeline of a saved model."""
    from transformers import pipeline

    from . import auto_pipelines as auto_pipelines  # transformers then knows the pipelines
    from .loading import config_of
    from .naming import loaded_from
    from .training.models import SAVED, check_saved

    with loaded_from("MODEL", args.model):
        config = config_of(args.model)
    if config.model_type not in SAVED:
        raise ValueError(f"{args.model} is a {config.model_type}, not a saved expert or mixture")
    check_saved(args.model)
    task = "more-re" if str((config.architectures or [""])[0]).endswith("RelationExtraction") else "more-ner"
    more: dict[str, Any] = {"knowledge": args.knowledge, "retrieve": not args.no_retrieve, "top_k": args.top_k}
    more |= {name: getattr(args, name) for name in ("min_score", "threshold", "batch_size", "cache_dir")}
    if args.entity_model is not None:
        if task == "more-ner":
            raise ValueError(f"--entity_model is for models of relations, {args.model} finds entities")
        more["entity_model"] = args.entity_model
    build: Any = pipeline
    return build(task, model=args.model, **more)


def predict_file(pipe: Any, args: argparse.Namespace) -> None:
    """Write the predictions for the posts of `--file` to `--output`, which appears whole."""
    from .data.tasks import ENTITIES, RELATIONS
    from .pipelines import columns_read
    from .posts import KNOWLEDGE_COLUMNS
    from .training.predict_mode import add_images
    from .training.shards import predict_in_shards

    if args.entity_model is not None or args.threshold:
        raise ValueError("--entity_model and --threshold are for a single post")
    task = RELATIONS if pipe.processor.markers else ENTITIES
    read = columns_read(pipe.processor)
    column = read.pop() if len(read) == 1 else KNOWLEDGE_COLUMNS[0]
    posts = task.read_unlabelled(str(args.file), pipe.processor.splitter, column, None)
    if args.image_dir is not None:
        add_images(posts, str(args.image_dir))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with pipe.reading() as reader:
        predict_in_shards(args.output, reader, posts, progress=True)
    print(f"{len(posts)} posts: {args.output}", file=sys.stderr)


def search(args: argparse.Namespace) -> None:
    """Search a corpus by a query or an image.

    Raises:
        ValueError, OSError: the corpus or the image can't be used.
    """
    *sources, query = args.corpus if args.image is None else [*args.corpus, None]
    if not sources:
        raise ValueError('give a corpus and a query, like more search CORPUS "words", or --image FILE')
    from .knowledge.online import OnlineRetrieval
    from .knowledge.pictures import open_image
    from .predictions import evidence
    from .retrieval_settings import RetrievalSettings

    image = None if args.image is None else open_image(args.image)
    settings = RetrievalSettings(
        kind="text" if image is None else "image", corpora=sources, fingerprint="", retriever=args.retriever,
        text_model=args.text_model, image_model=args.image_model,
    )  # fmt: skip
    retriever = OnlineRetrieval.open(settings, sources, args.cache_dir).retriever
    found = [evidence(entry) for entry in retriever.search([query if image is None else image], args.top_k or 5)[0]]
    terminal = sys.stdout.isatty()
    for entry in found:
        show(entry, list(entry_lines(entry)) if terminal else None)
    if terminal and not found:
        print("nothing is found")


def page(args: argparse.Namespace) -> None:
    """Open the page of some models.

    Raises:
        ValueError, OSError: the package of the page is not installed, or a model or a corpus can't be used.
    """
    from .page import by_name, named_corpus, serve

    serve(args.model, args.relation_model, by_name(list(map(named_corpus, args.knowledge))), port=args.port,
          cache_dir=args.cache_dir)  # fmt: skip


def show(value: Mapping[str, Any], lines: Sequence[str] | None) -> None:
    """Print lines for a reader, or the value as a line of JSON where there are none."""
    print("\n".join(lines) if lines is not None else json.dumps(value, ensure_ascii=False), flush=True)


def table(result: Mapping[str, Any]) -> list[str]:
    """Return a result as a terminal shows it: what was found, the weights of experts, and what was read."""
    rows = [(one["type"], one["text"], f"{one['score']:.2f}") for one in result.get("entities", ())]
    for one in result.get("relations", ()):
        rows.append((one["relation"], f"{one['head_text']} – {one['tail_text']}", f"{one['score']:.2f}"))
    wide = [max((len(printable(row[place])) for row in rows), default=0) for place in (0, 1)]
    lines = [f"{printable(a):<{wide[0]}}  {printable(b):<{wide[1]}}  {c}" for a, b, c in rows] or ["nothing is found"]
    if weights := result.get("expert_weights"):
        lines += ["", "weights: " + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())]
        for name, said in result["experts"].items():
            told = [f"{one['text']} ({one['type']})" for one in said] if isinstance(said, list) else [str(said)]
            lines.append(f"{name} alone: {printable(', '.join(told)) or 'nothing'}")
    knowledge = result.get("knowledge", [])
    for name, entries in (knowledge if isinstance(knowledge, Mapping) else {"": knowledge}).items():
        if entries:
            lines += ["", f"read by {name}:" if name else "read:"]
            lines += [line for entry in entries for line in entry_lines(entry)]
    return lines


def entry_lines(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield an entry of knowledge in lines as wide as the terminal."""
    source = f", {printable(entry['source'])}" if entry.get("source") else ""
    yield f"  {printable(entry['title'] or '')} ({entry['score'] or 0:.2f}{source})"
    width = max(40, shutil.get_terminal_size().columns)
    yield from textwrap.wrap(printable(entry["sentence"]), width, initial_indent="    ", subsequent_indent="    ")


def printable(text: str) -> str:
    """Return a text without what a terminal would act on: words of others are shown, not obeyed."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "�" for letter in text)


if __name__ == "__main__":
    sys.exit(main())
