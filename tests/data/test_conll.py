"""CoNLL files as other people write them: columns, lines that are no words, line ends, labels, what is no CoNLL."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator

import run_ner
from modeling_more.data.conll import looks_like_conll, read_conll
from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.tasks import ENTITIES, RELATIONS
from modeling_more.training.command_line import parse_arguments
from modeling_more.training.posts import load_posts
from modeling_more.training.predict_mode import posts_to_predict

POSTS = [(["Ada", "lives"], ["B-PER", "O"]), (["Oslo"], ["B-LOC"])]


def write(folder: Path, text: str, name: str = "train.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def read(folder: Path, text: str, columns: list[int] | None = None) -> list[tuple[list[str], list[str]]]:
    """Words and tags of each post; as posts to predict on, the same words."""
    path = write(folder, text)
    posts = [(row["tokens"], row["ner_tags"]) for row in read_conll(path, columns=columns)]
    assert looks_like_conll(text, columns)
    return posts


# --- the forms


def test_raw_file_without_last_blank_line(tmp_path: Path) -> None:
    path = write(tmp_path, "IMGID:7\nAda\tB-PER\nwon\tO\n\nIMGID:9\nOslo\tI-LOC")
    assert read_conll(path) == [
        {"id": "7", "image_id": "7", "tokens": ["Ada", "won"], "ner_tags": ["B-PER", "O"]},
        {"id": "9", "image_id": "9", "tokens": ["Oslo"], "ner_tags": ["I-LOC"]},
    ]


def test_image_line_opens_a_post_without_a_blank_line_and_ids_stay_distinct(tmp_path: Path) -> None:
    rows = read_conll(write(tmp_path, "IMGID:7\na\tO\nIMGID:7\nb\tO\n"))
    assert [(row["id"], row["image_id"], row["tokens"]) for row in rows] == [("7", "7", ["a"]), ("7#2", "7", ["b"])]


def test_words_of_invisible_characters_survive(tmp_path: Path) -> None:
    odd = ["\u00a0", "\ufe0f", "\u200b", "\u200d", "\u0092", "\u00ad", "\u0085", "\u2028", "\x0b", "\x1c", "IMGID:3"]
    path = write(tmp_path, "".join(f"{word}\tO\n" for word in odd) + "\n\n\nb\tB-PER\n\n")
    assert [row["tokens"] for row in read_conll(path)] == [odd, ["b"]]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, "\ufeff" + end.join(["Ada\tB-PER", "won\tO", "", "Oslo\tB-LOC"]))
    assert [row["tokens"] for row in read_conll(path)] == [["Ada", "won"], ["Oslo"]]
    assert [row["ner_tags"] for row in read_conll(path)] == [["B-PER", "O"], ["B-LOC"]]


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_columns_as_in_conll_2003(tmp_path: Path, separator: str) -> None:
    lines = ["-DOCSTART- -X- O O", "", "EU NNP B-NP B-ORG", "rejects VBZ B-VP O", ""]
    rows = read_conll(write(tmp_path, "\n".join(line.replace(" ", separator) for line in lines)))
    assert [(row["tokens"], row["ner_tags"]) for row in rows] == [(["EU", "rejects"], ["B-ORG", "O"])]


def test_bioes_becomes_bio(tmp_path: Path) -> None:
    rows = read_conll(write(tmp_path, "Ada\tB-PER\nLovelace\tE-PER\nin\tO\nOslo\tS-LOC\n"))
    assert rows[0]["ner_tags"] == ["B-PER", "I-PER", "O", "B-LOC"]


def test_archive_form_gives_one_entry_a_post(tmp_path: Path) -> None:
    text = "Ada\tB-PER\r\nwon\tO\r\n<EOS>\tX\r\nAda\tX\r\nis\tX\r\n\r\n<EOS>\tO\r\n\r\nb\tO\r\n<EOS>\tX\r\n"
    rows = read_conll(write(tmp_path, text), knowledge_column="knowledge_image", id_prefix="validation")
    told = {"title": "", "text": "Ada is", "source": "archive"}
    entry = {**told, "score": 0.0, "scale": 0.0, "match_start": 0, "match_end": 0}
    assert rows == [
        {
            "id": "validation-0",
            "image_id": None,
            "tokens": ["Ada", "won"],
            "ner_tags": ["B-PER", "O"],
            "knowledge_image": [entry],
        },
        # the same word with a label is a word of the post
        {"id": "validation-1", "image_id": None, "tokens": ["<EOS>"], "ner_tags": ["O"], "knowledge_image": []},
        {"id": "validation-2", "image_id": None, "tokens": ["b"], "ner_tags": ["O"], "knowledge_image": []},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.txt: the file is empty; it should hold at least one post."),
        ("\n \r\n\n", "train.txt: the file is empty"),
        ("Ada\tB-PER\nwon\n", "train.txt, line 2: no label; a line is a word, a tab and a label."),
        ("Ada\tB-PER\nwon\t\n", "train.txt, line 2: no label"),
        ("Ada\tB-PER\n\tO\n", "train.txt, line 2: no word before the label 'O'"),
        ("a\tO\n\nb\tB\n", "train.txt, line 3: unknown label 'B'; a label is O, or B- or I- and a type, like B-PER."),
        ("a\tQ-PER\n", "train.txt, line 1: unknown label 'Q-PER'"),
        ("a\tB-\n", "train.txt, line 1: unknown label 'B-'"),
        ("IMGID:7\n\nIMGID:8\na\tO\n", "train.txt, line 1: no words follow the image '7'."),
        ("a\tO\n\nIMGID:8\n", "train.txt, line 3: no words follow the image '8'."),
        ("a\tO\n\n<EOS>\tX\nb\tX\n", "knowledge (label X) without a post before it."),
        ("a\tO\n<EOS>\tX\nb\tB-PER\n", "train.txt, line 3: a word labelled 'B-PER' after the post's knowledge"),
        ("<E>\t/per/per/peer\nAda\tO\n", "train.txt, line 1: this is relation data, use run_re.py."),
        ("a\tO\n<O>\tNone\nAda\tO\n", "train.txt, line 2: this is relation data, use run_re.py."),
        ("<E>\tfounder_of\nAda\tO\n", "train.txt, line 1: this is relation data, use run_re.py."),
        ("{'token': ['a'], 'h': {}, 't': {}, 'relation': 'None'}\n", "line 1: this is relation data, use run_re.py."),
    ],
)
def test_bad_conll_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        read_labelled(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_types_can_be_fixed(tmp_path: Path) -> None:
    path = write(tmp_path, "Ada\tB-PER\nOslo\tB-LOC\n")
    assert read_conll(path, ["PER", "LOC"])[0]["ner_tags"] == ["B-PER", "B-LOC"]
    with pytest.raises(ValueError, match="line 2: unknown label 'B-LOC'; the types are PER, ORG"):
        read_conll(path, ["PER", "ORG"])


def test_file_that_is_not_there_not_a_file_or_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such file"):
        read_labelled(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_labelled(tmp_path)
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a\tO\ncaf\xe9\tO\n")
    with pytest.raises(ValueError, match=r"latin\.txt, line 2: not UTF-8"):
        read_labelled(path)


# --- columns


@pytest.mark.parametrize(
    "text",
    [
        "Ada B-PER\nlives O\n\nOslo B-LOC\n",
        "Ada NNP B-NP B-PER\nlives VBZ B-VP O\n\nOslo NNP B-NP B-LOC\n",
        "Ada\tNNP\tB-NP\tB-PER\nlives\tVBZ\tB-VP\tO\n\nOslo\tNNP\tB-NP\tB-LOC\n",
        # aligned by blanks, by blanks and tabs, with blanks at the ends
        "Ada  NNP  B-NP  B-PER\nlives VBZ B-VP O\n\nOslo  NNP B-NP   B-LOC\n",
        "Ada        B-PER\nlives      O\n\nOslo       B-LOC\n",
        "  Ada B-PER  \n  lives O\t\n\n Oslo B-LOC \n",
        "Ada  \tB-PER\nlives\t  O\n\nOslo \t B-LOC\n",
        "Ada\tB-PER\nlives O\n\nOslo\tB-LOC",
        # documents, whatever else stands on their line, end a post
        "-DOCSTART- O\n\nAda NNP B-NP B-PER\nlives VBZ B-VP O\n\n-DOCSTART- -X- -X- O\n\nOslo NNP B-NP B-LOC\n",
        "-docstart-\nAda\tB-PER\nlives\tO\n-DOCSTART-\tO\nOslo\tB-LOC\n",
        "-DOCSTART- (doc1)\n\nAda B-PER\nlives O\n-DOCSTART- -X- O O\nOslo B-LOC\n",
        # an index, of the post from 1 or 0 or of the file, in brackets or with a point
        "1 Ada B-PER\n2 lives O\n\n1 Oslo B-LOC\n",
        "0\tAda\t_\tB-PER\n1\tlives\t_\tO\n\n0\tOslo\t_\tB-LOC\n",
        "1 Ada NNP B-PER\n2 lives VBZ O\n\n3 Oslo NNP B-LOC\n",
        "1. Ada B-PER\n2. lives O\n\n1. Oslo B-LOC\n",
        "1 -DOCSTART- O\n\n1 Ada B-PER\n2 lives O\n\n1 Oslo B-LOC\n",
        # lines that say something of the file
        "# id 5e3f\tdomain=en\nAda _ _ B-PER\nlives _ _ O\n\n# id 77\tdomain=en\nOslo _ _ B-LOC\n",
        "# newdoc\n# sent_id = 1\n# text = Ada lives\nAda\tB-PER\nlives\tO\n\n# text = Oslo O\nOslo\tB-LOC\n",
        "#begin document (bc/cctv); part 000\nAda B-PER\nlives O\n\nOslo B-LOC\n\n#end document\n",
        "#\tnews.example of 26.02.2005 [2005-02-26]\n1\tAda\tB-PER\n2\tlives\tO\n\n#\tn\n1\tOslo\tB-LOC\n",
        "# a file of ours\nAda B-PER\nlives O\n\nOslo B-LOC\n",
        # blank lines that are not empty
        "Ada\tB-PER\nlives\tO\n\t\nOslo\tB-LOC\n\t\n",
        "Ada B-PER\nlives O\n \t  \nOslo B-LOC\n  \n \n",
        # ends of lines, byte-order marks
        "Ada\tB-PER\rlives\tO\r\rOslo\tB-LOC\r",
        "Ada B-PER\rlives O\r\rOslo B-LOC",
        "Ada\tB-PER\r\r\nlives\tO\r\r\n\r\r\nOslo\tB-LOC\r\r\n",
        "Ada\tB-PER\rlives\tO\r\rOslo\tB-LOC\n",
        "\ufeffAda B-PER\n\ufefflives O\n\ufeff\n\ufeff\ufeffOslo B-LOC\n\ufeff",
        # white space around a label
        "Ada\tB-PER \nlives\tO\u3000\n\nOslo\t B-LOC\u00a0\n",
    ],
)
def test_every_form_gives_the_same_posts(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == POSTS
    assert [row["tokens"] for row in read_posts(write(tmp_path, text))] == [words for words, _ in POSTS]


def test_words_keep_what_is_theirs(tmp_path: Path) -> None:
    """Spaces where tabs part the columns, no-break spaces everywhere; "#" is a word where it has a label."""
    assert read(tmp_path, "New York\tB-LOC\nis\tO\n") == [(["New York", "is"], ["B-LOC", "O"])]
    assert read(tmp_path, "\u00a0 O\na\u00a0b B-PER\n") == [(["\u00a0", "a\u00a0b"], ["O", "B-PER"])]
    assert read(tmp_path, "# O\nOslo B-LOC\n#Oslo B-LOC\n") == [(["#", "Oslo", "#Oslo"], ["O", "B-LOC", "B-LOC"])]
    assert read(tmp_path, "#\tO\n#id\tO\n## \tO\n#\tB-PER\n")[0][0] == ["#", "#id", "##", "#"]
    assert read(tmp_path, "# NN B-NP O\nOslo NNP B-NP B-LOC\n")[0][0] == ["#", "Oslo"]
    assert read(tmp_path, "2024 CD O\nOslo NNP B-LOC\n")[0][0] == ["2024", "Oslo"]
    assert read(tmp_path, "1\tO\n2\tO\n3\tB-NUM\n")[0][0] == ["1", "2", "3"]
    assert read(tmp_path, "Ada\tB-PER\u200b\nBo\tB-PER\u00a0\n") == [(["Ada", "Bo"], ["B-PER", "B-PER"])]


def test_what_is_left_out_or_odd_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(tmp_path, "# id 1\n# text = Ada\n1 Ada B-PER\n2 lives O\n")
        assert "train.txt: 2 comment lines (# …) are left out" in caplog.text
        assert "train.txt: the first column is an index, words are read from the second" in caplog.text
        read(tmp_path, "Ada NNP\tB-PER\nlives VBZ\tO\n")
    assert "train.txt: every word holds a space, like 'Ada NNP'" in caplog.text


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("Ada B-PER NNP\nlives O VBZ\n", [1, 2], ["Ada", "lives"]),
        ("B-PER\tAda\nO\tlives\n", [2, 1], ["Ada", "lives"]),
        ("bc/1 0 0 Ada B-PER x\nbc/1 0 1 lives O x\n", [4, 5], ["Ada", "lives"]),
        ("1\tAda\tB-PER\tO\n2\tlives\tO\tO\n", [2, 3], ["Ada", "lives"]),
        ("7 CD B-PER\n7 CD O\n", [1, 3], ["7", "7"]),
    ],
)
def test_columns_can_be_named(tmp_path: Path, text: str, columns: list[int], words: list[str]) -> None:
    assert read(tmp_path, text, columns) == [(words, ["B-PER", "O"])]
    path = write(tmp_path, text)
    assert read_labelled(path, columns=columns)[0]["tokens"] == words
    assert read_posts(path, columns=columns)[0]["tokens"] == words


def test_columns_are_an_option_of_the_scripts(tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    """For training and predicting alike, from the command line and from an options file."""
    train = write(tmp_path, "1 Ada B-PER NNP\n2 lives O VBZ\n")
    pairs = write(tmp_path, "1 <E> /y x\n2 Ada O x\n3 </E> O x\n4 <O> O x\n5 Oslo O x\n6 </O> O x\n", "pairs.txt")
    (tmp_path / "options.yaml").write_text("columns: [2, 3]")
    for words in (["--columns", "2", "3"], [str(tmp_path / "options.yaml")]):
        words += ["--model_name_or_path", tiny_encoder("bert")]
        args = parse_arguments([*words, "--train_file", str(train), "--predict_file", str(train)], "")
        rows, types, _ = load_posts(args.data, ENTITIES, lambda: None, [])
        assert rows["train"][0]["tokens"] == ["Ada", "lives"] and types == ["PER"]
        [post] = posts_to_predict(ENTITIES, args, True, Accelerator(cpu=True))
        assert post["tokens"] == ["Ada", "lives"]
        args = parse_arguments([*words, "--train_file", str(pairs), "--predict_file", str(pairs)], "")
        rows, types, _ = load_posts(args.data, RELATIONS, lambda: None, [])
        assert rows["train"][0]["tokens"] == ["Ada", "Oslo"] and types == ["/y"]
        assert posts_to_predict(RELATIONS, args, True, Accelerator(cpu=True))[0]["tokens"] == [
            "Ada",
            "Oslo",
        ]
    for given, message in (
        (["--columns", "2", "--train_file", str(train)], "--columns 2: give the number of the word's column"),
        (["--columns", "2", "3", "--dataset", "demo"], "--columns is for files of your own"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_ner.main([*given, "--use_cpu", "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("Ada NNP B-PER\nlives O\n", None, "line 2: 2 columns where the file has 3; all lines have the same."),
        ("Ada B-PER\nAda NNP B-PER\nlives VBZ O\n", None, "line 1: 2 columns where the file has 3"),
        ("New York B-LOC\nis O\nold O\n", None, "line 1: 3 columns where the file has 2"),
        ("a\tb\tO\nc\tB-PER\nd\tO\n", None, "line 1: 3 columns where the file has 2"),
        ("Ada NNP\tB-NP B-PER\nlives VBZ B-VP O\nin IN B-PP O\n", None, "line 1: 2 columns where the file has 4"),
        ("# O\nAda NNP B-PER\nlives VBZ O\n", None, "line 1: 2 columns where the file has 3"),
        ("#Oslo B-LOC\nAda NNP B-PER\nlives VBZ O\n", None, "line 1: 2 columns where the file has 3"),
        ("Ada B-PER\n# B\n", None, "line 2: unknown label 'B'"),
        ("Ada B-PER\n#\n", None, "line 2: no label"),
        ("Ada\tB-PER\n\ufeff\tO\n", None, "line 2: no word before the label 'O'"),
        ("Ada\tB-PER\n \tO\n", None, "line 2: no word before the label 'O'"),
        ("Ada\tB- PER\n", None, "line 1: the label 'B- PER' has white space within"),
        ("Ada\tB-PER SON\n", None, "the label 'B-PER SON' has white space within"),
        ("Ada B-\u00a0PER\n", None, "has white space within"),
        ("Ada\tB-P\u200bER\n", None, "has white space within"),
        ("EU B-ORG NNP\nsays O VBZ\n", None, "unknown label 'NNP'; a label is O, or B- or I- and a type, like B-PER. "
         "--columns says which columns are words and labels."),
        # a first column that holds no words
        ("7 Ada B-PER\n7 lives O\n\n8 Oslo B-LOC\n", None, "line 1: the first column holds nothing but numbers; say "
         "which columns are words and labels, like --columns 2 3."),
        ("1-2 am _ O\n1 an _ O\n2 dem _ O\n", None, "line 1: the first column holds nothing but numbers"),
        ("1 CD O\n2 CD O\n", None, "the first column holds nothing but numbers"),
        ("bc/1 0 Ada B-PER\nbc/1 1 lives O\n\nbc/1 0 Oslo B-LOC\n", None, "line 1: the first column is 'bc/1' for "
         "every word of a post; say which columns are words and labels, like --columns 2 4."),
        ("T1 Ada B-PER\nT2 lives O\n\nT1 Oslo B-LOC\n", None, "line 1: the first column counts T1, T2, …; say which "
         "columns are words and labels, like --columns 2 3."),
        # lines that end in something else than lines do
        ("Ada\tB-PER\u0085lives\tO\u0085", None, "train.txt: lines end in '\\x85'; save the file with LF."),
        ("Ada B-PER\u2028lives O\u2028\u2028Oslo B-LOC", None, "lines end in '\\u2028'; save the file with LF."),
        # --columns
        ("Ada B-PER\n", [1, 4], "train.txt: has 2 columns, --columns names column 4."),
        ("Ada B-PER\n", [1], "--columns 1: give the number of the word's column and that of the label's"),
        ("Ada B-PER\n", [0, 1], "--columns 0 1: give"),
        ("Ada B-PER\n", [2, 2], "--columns 2 2: give"),
        ("Ada x B-PER\nlives O\n", [1, 3], "line 2: 2 columns where the file has 3"),
    ],
)  # fmt: skip
def test_bad_columns_are_named_with_their_line(
    tmp_path: Path, text: str, columns: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        read_conll(write(tmp_path, text), columns=columns)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["\ufeff", "\ufeff\n\ufeff\r\n \t\n", "\r\r"])
def test_files_of_nothing_are_empty(tmp_path: Path, text: str) -> None:
    for name in ("train.txt", "train.jsonl", "train.conll"):
        with pytest.raises(ValueError, match="the file is empty; it should hold at least one post"):
            read_labelled(write(tmp_path, text, name))


def test_bad_bytes_are_named_with_their_line_whatever_ends_lines(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    for end in (b"\n", b"\r", b"\r\n"):
        path.write_bytes(end.join([b"a\tO", b"b\tO", b"caf\xe9\tO"]))
        with pytest.raises(ValueError, match=r"latin\.txt, line 3: not UTF-8"):
            read_labelled(path)


# --- what is CoNLL and what is text


@pytest.mark.parametrize(
    "text",
    [
        "I scored an O\n",
        "traffic jam on I-95\n",
        "with the S-Bahn\n",
        "with the S-Bahn\nor on the U-Bahn\nor on foot",
        "I scored an O\nAda is here\nand so is Oslo\n",
        "Ada in Oslo\nso she said X\n",
        "# of goals: O\n#Oslo\nAda is in Oslo\n",
        "Ada\tis here\nOslo\tis there\n",
        "Bye.\n\nIs it vitamin O\n",
        "Ada",
        "",
    ],
)
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    assert not looks_like_conll(text)
    if text:
        posts = read_posts(write(tmp_path, text), splitter="whitespace")
        assert [post["text"] for post in posts] == [line for line in text.split("\n") if line]


@pytest.mark.parametrize(
    "text",
    [
        "Bob B-PER\n",
        "ran\tO",
        "IMGID:7\nran O\n",
        "so O\nit O\nis O\n",
        "Ada\tB-PER\nwon\n",
        "Ada NNP B-NP B-PER\nlives VBZ B-VP O\n\nBob NNP B-PER\nran VBD B-VP O\n",
        "-DOCSTART- O\n\nAda NNP B-NP\n",
        "Ada B-PER\n<EOS> X\nAda X\nis X\n",
        "Ada I-PER\nLovelace E-PER\nOslo S-LOC\n",
        "-docstart- O\n\nAda B-PER\n",
        "Ada U-PER\nlives O\n",
        '{ O\n" O\nAda B-PER\n',
    ],
)
def test_conll_is_known(text: str) -> None:
    assert looks_like_conll(text)


def test_lone_ends_of_lines_part_posts_of_text(tmp_path: Path) -> None:
    posts = read_posts(write(tmp_path, "\ufeffAda is here\r\ufeffBye\r\r\n\ufeff\r\n"))
    assert [post["text"] for post in posts] == ["Ada is here", "Bye"]
