"""Knowledge by image: opening pictures, the image side of corpora, image towers, retrieval and attaching."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from datasets import load_dataset
from PIL import Image, ImageFile

import run_ner
from modeling_more.data.tasks import ENTITIES
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.knowledge.pictures import ImageError, find_image, open_image, read_bytes, require_images
from modeling_more.training.command_line import parse_arguments
from modeling_more.training.mixture_posts import _add_images
from modeling_more.training.predict_mode import posts_to_predict
from pictures import encoded, noise

# ---------------------------------------------------------------- pictures


def test_every_mode_becomes_rgb() -> None:
    """One red pixel per case and what must come out of it."""
    red = Image.new("RGB", (8, 6), (255, 0, 0))
    clear = Image.new("RGBA", (8, 6), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 6), (255, 0, 0, 128))
    palette = Image.new("P", (8, 6), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    cases = {
        "png": (encoded(red), (255, 0, 0)),
        "transparent": (encoded(clear), (255, 255, 255)),
        "half transparent": (encoded(half), (255, 127, 127)),
        "palette": (encoded(palette), (255, 0, 0)),
        "palette with transparency": (encoded(palette, transparency=1), (255, 255, 255)),
        "grey with alpha": (encoded(Image.new("LA", (8, 6), (0, 0))), (255, 255, 255)),
        "colour key": (encoded(red, transparency=(255, 0, 0)), (255, 255, 255)),
        "one bit": (encoded(Image.new("1", (8, 6), 1)), (255, 255, 255)),
        "grey": (encoded(Image.new("L", (8, 6), 70)), (70, 70, 70)),
        "16 bits": (encoded(Image.new("I;16", (8, 6), 128 * 257)), (128, 128, 128)),
        "float": (encoded(Image.new("F", (8, 6), 0.5), "TIFF"), (128, 128, 128)),
        "bmp": (encoded(red, "BMP"), (255, 0, 0)),
        "lossless webp": (encoded(half, "WEBP", lossless=True), (255, 127, 127)),
    }
    for name, (content, expected) in cases.items():
        image = open_image(content)
        assert (image.mode, image.size) == ("RGB", (8, 6)), name
        assert np.abs(np.array(image.getpixel((3, 3))) - expected).max() <= 1, (name, image.getpixel((3, 3)))
    cmyk = open_image(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.array(cmyk.getpixel((3, 3))) - (255, 0, 0)).max() <= 4


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert open_image(content).getpixel((2, 2)) == (255, 0, 0), kind


def test_exif_turns_the_image_and_damaged_exif_does_not_lose_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    turned = open_image(encoded(noise(), "JPEG", exif=exif, quality=95))
    assert turned.size == (30, 40)
    upright = noise().transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(turned).astype(int) - np.asarray(upright)).mean() < 10
    damaged = encoded(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert open_image(damaged).size == (40, 30)


def test_what_cannot_be_used_says_why(tmp_path: Path) -> None:
    jpeg, png, gif = (encoded(noise(), kind) for kind in ("JPEG", "PNG", "GIF"))
    unusable: list[tuple[Any, str]] = [
        (None, "missing"),
        ({"path": None, "bytes": None}, "missing"),
        (tmp_path / "none.jpg", "missing"),
        (tmp_path, "missing"),
        ("http://example.org/picture.jpg", "missing"),
        ("null\0character", "missing"),
        (b"", "not an image"),
        (b"<svg></svg>", "not an image"),
        (b"<html>404</html>", "not an image"),
        (jpeg[: len(jpeg) // 2], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (gif[: len(gif) // 2], "truncated"),
        (jpeg[:10], "truncated"),
        (png[:6], "not an image"),
        (png[:60] + b"\0" * 30 + png[90:], "damaged"),
    ]
    for source, reason in unusable:
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert caught.value.reason == reason, (source, caught.value)
        assert isinstance(caught.value, ValueError)


def test_over_large_images_are_never_decoded() -> None:
    with pytest.raises(ImageError, match="over-large .40 x 30 pixels, at most 1199"):
        open_image(encoded(noise()), max_pixels=1199)
    assert open_image(encoded(noise()), max_pixels=1200).size == (40, 30)
    huge = bytearray(encoded(Image.new("1", (8, 8))))
    import zlib

    huge[16:24] = (100_000).to_bytes(4, "big") * 2  # the header of a small file names ten thousand million pixels
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError) as caught:
        open_image(bytes(huge))
    assert caught.value.reason == "over-large"


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    noise().save(file)
    expected = np.asarray(noise())
    for source in (file, str(file), file.read_bytes(), noise(), Image.open(file)):
        assert (np.asarray(open_image(source)) == expected).all()
    both = {"path": "elsewhere.png", "bytes": file.read_bytes()}
    assert (np.asarray(open_image(both)) == expected).all()
    for name in (str(file), file.name):  # a row's own path counts inside the folder that the caller gives
        assert (np.asarray(open_image({"path": name, "bytes": None}, folder=tmp_path)) == expected).all()
    assert read_bytes(file) == read_bytes(both) == file.read_bytes()
    assert open_image(read_bytes(noise())).size == (40, 30)


def test_half_images_never_pass_as_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES is set"):
        open_image(encoded(noise()))


def test_images_are_found_by_id_and_only_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("1.jpg", "2", "3.PNG", "4.x.jpeg", "sub/5.gif", "../outside.jpg"):
        (folder / name).write_bytes(b"x")
    for image_id, name in (("1", "1.jpg"), ("1.jpg", "1.jpg"), ("2", "2"), ("3", "3.PNG"), ("4.x", "4.x.jpeg")):
        assert find_image(folder, image_id) == folder / name
    assert find_image(str(folder), "sub/5") == folder / "sub" / "5.gif"
    outside = str(tmp_path / "outside.jpg")
    for image_id in ("", "9", "sub", "../outside", "sub/../../outside", "..\\outside", outside, "a\0b", "x" * 5000):
        assert find_image(folder, image_id) is None, image_id


WRONG_FOLDER = "holds the image of none of the 2 {} posts; an image is a file named by its image_id, like 17.jpg"


def test_a_folder_without_any_image_of_the_posts_is_refused_by_the_scripts(
    tmp_path: Path, tiny_encoder: Callable[[str], str]
) -> None:
    """In training, in prediction and for a gate; before a tower is loaded or anything is embedded."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    noise().save(folder / "another.png")
    posts = [{"id": f"p{n}", "image_id": str(n), "tokens": ["Ada"], "ner_tags": ["B-PER"]} for n in (17, 18)]
    (tmp_path / "no_tower").mkdir()  # a folder that no tower can be loaded from
    train, knowledge = tmp_path / "train.jsonl", write_articles(tmp_path / "k")
    train.write_text("".join(json.dumps(post) + "\n" for post in posts))
    own = ["--image_dir", str(folder), "--use_cpu", "--output_dir", str(tmp_path / "out")]
    search = ["--retrieval", "image", "--knowledge", str(knowledge), "--image_model", str(tmp_path / "no_tower")]
    files = ["--train_file", str(train), "--validation_file", str(train)]
    with pytest.raises(SystemExit) as ended:
        run_ner.main([*own, *search, *files])
    assert str(ended.value).endswith(WRONG_FOLDER.format("training") + ".") and str(folder) in str(ended.value)
    encoder = ["--model_name_or_path", tiny_encoder("bert")]
    args = parse_arguments([*own, *encoder, "--predict_file", str(train)], "")
    with pytest.raises(ValueError, match=WRONG_FOLDER.format("predict")):
        posts_to_predict(ENTITIES, args, True, Accelerator(cpu=True))
    args = parse_arguments([*own, "--retrieval", "moe"], "")
    with pytest.raises(ValueError, match=WRONG_FOLDER.format("training")):
        _add_images(ENTITIES, args, [], {"train": posts}, lambda: None, [], str(tmp_path / "no_tower"))


def test_images_of_some_posts_are_enough_but_training_needs_its_own(tmp_path: Path) -> None:
    noise().save(tmp_path / "17.png")
    require_images(tmp_path, {"train": ["17", "18", None], "test": ["19"], "validation": []})
    require_images(tmp_path, {"predict": [None, "17"]})
    require_images(tmp_path, {"train": [], "test": []})
    with pytest.raises(ValueError, match="the image of none of the 1 training posts"):
        require_images(tmp_path, {"train": ["18"], "test": ["17"]})
    with pytest.raises(ValueError, match="the image of none of the 3 posts; an image .* like 18.jpg"):
        require_images(tmp_path, {"validation": ["18"], "test": [None, "19"]})
    with pytest.raises(ValueError, match="the image of none of the 2 training posts, which have no image_id"):
        require_images(tmp_path, {"train": [None, ""]})


# ---------------------------------------------------------------- corpora


def article(name: str, image: Any = None, **more: Any) -> dict[str, Any]:
    """A row of a knowledge file; the image only where there is one."""
    row = {"id": f"Q{name}", "title": f"Title {name}", "text": f"{name} is a thing.\nIt has a picture."}
    return {**row, **({} if image is None else {"image": image}), **more}


def write_articles(folder: Path) -> Path:
    """Ten articles: six usable images, two of them of one entity and alike; three unusable ones; one without."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        noise(number).save(folder / f"{number}.png")
    noise(1).resize((80, 60)).save(folder / "again.jpg", quality=75)  # another file of the same picture
    (folder / "cut.jpg").write_bytes(encoded(noise(5), "JPEG")[:-300])
    (folder / "page.png").write_bytes(b"<html>404</html>")
    rows = [
        article("0", "0.png"),
        article("1", "1.png", lead="The lead of one."),
        article("cut", "cut.jpg"),
        article("2", "2.png"),
        article("none"),
        article("gone", "gone.png"),
        article("1", "again.jpg", id="Q1b"),  # another article on the same thing
        article("page", "page.png"),
        article("3", "3.png"),
        article("other", "1.png"),  # the same picture, but of another thing
    ]
    file = folder / "articles.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_corpus_takes_the_usable_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = KnowledgeCorpus.from_files(write_articles(tmp_path / "k"), tmp_path / "cache")
    assert corpus.images is not None
    assert corpus.images["id"][:] == ["Q0", "Q1", "Q2", "Q3", "Qother"]
    assert corpus.images[1]["value"] == "The lead of one."
    assert corpus.images[2]["value"] == "2 is a thing.\nIt has a picture."
    assert (np.asarray(corpus.images[3]["image"]) == np.asarray(noise(3))).all()
    info = corpus.info
    assert (info.articles, info.images, info.unusable_images, info.merged_images) == (10, 5, 3, 1)
    assert "3 knowledge images can't be used" in caplog.text
    for part in ("1 truncated (Qcut)", "1 missing (Qgone)", "1 not an image (Qpage)"):
        assert part in caplog.text
    assert "5 images" in repr(corpus)


def test_images_change_the_fingerprint_and_text_alone_keeps_it(tmp_path: Path) -> None:
    file = write_articles(tmp_path / "k")
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    bare.write_text("".join(json.dumps({k: row[k] for k in ("id", "title", "text")}) + "\n" for row in rows))
    corpus, text = (KnowledgeCorpus.from_files(source, tmp_path / "cache") for source in (file, bare))
    assert text.images is None and text.info.image_fingerprint == ""
    assert text.fingerprint != corpus.fingerprint and list(text.keys()) == list(corpus.keys())
    assert text.fingerprint == "07fab72704a263893df3b399335a0730"  # what it was before corpora had images


def test_a_changed_image_file_builds_the_corpus_again(tmp_path: Path) -> None:
    file = write_articles(tmp_path / "k")
    first = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").fingerprint == first.fingerprint
    os.utime(tmp_path / "k" / "0.png", (1, 1))  # touched, not changed
    (first.folder / "mark").touch()
    again = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    assert (again.folder / "mark").exists()
    noise(7).save(tmp_path / "k" / "gone.png")  # it has come since
    second = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    assert (second.info.images, second.info.unusable_images) == (6, 2)
    noise(8).save(tmp_path / "k" / "0.png")
    third = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    assert third.info.images == 6 and third.fingerprint != second.fingerprint


def test_the_same_file_beside_other_images_is_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_articles(tmp_path / "one")
    other = write_articles(tmp_path / "two")
    noise(9).save(tmp_path / "two" / "0.png")
    bare = tmp_path / "three" / file.name
    bare.parent.mkdir()
    bare.write_text(file.read_text())
    for _ in range(2):
        corpora = [KnowledgeCorpus.from_files(place, tmp_path / "cache") for place in (file, other, bare)]
        assert [corpus.info.images for corpus in corpora] == [5, 5, 0]
        assert len({corpus.fingerprint for corpus in corpora}) == 3
        for corpus in corpora:
            (corpus.folder / "mark").touch()
    # named from another working directory it is still the same
    monkeypatch.chdir(tmp_path / "one")
    assert (KnowledgeCorpus.from_files(file.name, tmp_path / "cache").folder / "mark").exists()
    monkeypatch.chdir(tmp_path)
    assert (KnowledgeCorpus.from_files("one/" + file.name, tmp_path / "cache").folder / "mark").exists()


def test_parquet_and_jsonl_give_the_same_images(tmp_path: Path) -> None:
    file = write_articles(tmp_path / "k")
    corpus = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    paths = [{**row, "image": row.get("image"), "lead": row.get("lead")} for row in rows]
    embedded = []
    for row in paths:
        source = tmp_path / "k" / str(row["image"])
        embedded.append(
            {**row, "image": {"bytes": source.read_bytes(), "path": source.name}} if source.is_file() else row
        )
    embedded = [
        {**row, "image": {"path": row["image"], "bytes": None}} if isinstance(row["image"], str) else row
        for row in embedded
    ]
    for name, table in (("paths", paths), ("embedded", embedded)):
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "k" / f"{name}.parquet")
        again = KnowledgeCorpus.from_files(tmp_path / "k" / f"{name}.parquet", tmp_path / "cache")
        assert again.info == corpus.info, name
    halves = [tmp_path / "k" / "a.jsonl", tmp_path / "k" / "b.jsonl"]
    for half, part in zip(halves, (rows[:5], rows[5:]), strict=True):
        half.write_text("".join(json.dumps(row) + "\n" for row in part))
    parts = [KnowledgeCorpus.from_files(half, tmp_path / "cache") for half in halves]
    joined = KnowledgeCorpus.concatenate(parts, tmp_path / "cache")  # near-identical ones are found across the parts
    assert joined.info == corpus.info


def test_a_saved_corpus_carries_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = KnowledgeCorpus.from_files(write_articles(tmp_path / "k"), tmp_path / "cache")
    monkeypatch.setattr("modeling_more.knowledge.corpus._SHARD_BYTES", 500)  # several Parquet files
    folder = corpus.save_pretrained(tmp_path / "saved", license="cc-by-sa-4.0", date="20231101")
    assert len(list((folder / "images").iterdir())) > 1
    loaded = KnowledgeCorpus.from_pretrained(folder, tmp_path / "new")
    assert loaded.info == corpus.info and loaded.images is not None and corpus.images is not None
    assert loaded.images.features == corpus.images.features
    for one, other in zip(loaded.images, corpus.images, strict=True):
        assert (np.asarray(one.pop("image")) == np.asarray(other.pop("image"))).all() and one == other
    published = load_dataset(str(folder), "images", split="train", cache_dir=str(tmp_path / "datasets"))
    assert published["id"][:] == corpus.images["id"][:] and published[0]["image"].size == (40, 30)
    card = (folder / "README.md").read_text()
    assert "| images | 5 (3 more could not be used, 1 were nearly identical to another) |" in card
    assert "20231101" in card and "license: cc-by-sa-4.0" in card
    file = sorted((folder / "images").iterdir())[0]
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(ValueError, match="its digest differs"):
        KnowledgeCorpus.from_pretrained(folder, tmp_path / "newer")
    text_only = KnowledgeCorpus.from_files(write_text(tmp_path / "t.jsonl"), tmp_path / "cache")
    text_only.save_pretrained(folder)  # saving over it replaces all of it
    assert not (folder / "images").exists()
    assert KnowledgeCorpus.from_pretrained(folder, tmp_path / "new").images is None


def write_text(file: Path) -> Path:
    file.write_text(json.dumps(article("text")) + "\n")
    return file


def test_an_image_column_of_another_kind_is_named(tmp_path: Path) -> None:
    file = tmp_path / "k.jsonl"
    file.write_text(json.dumps(article("1", 3)) + "\n")
    with pytest.raises(ValueError, match=r"k\.jsonl, line 1: image is int, neither a path nor"):
        KnowledgeCorpus.from_files(file, tmp_path / "cache")
    file.write_text(json.dumps(article("1", lead=3)) + "\n")
    with pytest.raises(ValueError, match=r"k\.jsonl, line 1: lead is int, not a string"):
        KnowledgeCorpus.from_files(file, tmp_path / "cache")
