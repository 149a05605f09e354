"""Bad rows given to `predict`: one sentence that names the row and what would be right."""

import uuid
from typing import Any

import numpy as np
import pytest
import torch

from mixture_experts import LABELS, builder, save_experts
from modeling_more.modeling_more import MoReForTokenClassification
from modeling_more.pipelines import predict
from modeling_more.processing_more import MoReProcessor


@pytest.fixture(scope="module")
def expert(tiny_encoder: Any) -> tuple[Any, MoReProcessor]:
    torch.manual_seed(0)
    model = MoReForTokenClassification.from_encoder_pretrained(tiny_encoder("bert"), id2label=dict(enumerate(LABELS)))
    return model, MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=64)


@pytest.mark.parametrize(
    ("post", "told"),
    [
        (None, "post 1 is a NoneType, it should be an object"),
        (["Ada"], "post 1 is a list"),
        ({"id": "x", "text": None, "tokens": None}, "post 1 (id x) has neither text nor tokens"),
        ({"id": "x", "text": 5}, 'post 1 (id x): "text" should be a string'),
        ({"id": 7, "tokens": ["Ada", 1]}, 'post 1 (id 7): "tokens" should be a list of words'),
        ({"tokens": ["Ada", ""]}, 'post 1: "tokens" should be a list of words, none of them empty'),
        ({"tokens": ["Ada", None]}, 'post 1: "tokens" should be a list of words'),
        ({"tokens": [["Ada"]]}, 'post 1: "tokens" should be a list of words'),
        ({"text": "Ada \ud83d"}, 'post 1: "text" holds half a surrogate pair'),
        ({"id": b"x", "text": "Ada"}, '"id" should be a string or a whole number, not a bytes'),
        ({"id": float("nan"), "text": "Ada"}, '"id" should be a string or a whole number, not a float'),
        ({"id": True, "text": "Ada"}, "not a bool"),
        ({"id": uuid.UUID(int=1), "text": "Ada"}, "not a UUID"),
        ({"id": "\ud83d", "text": "Ada"}, r'post 1 (id \ud83d): "id" holds half a surrogate pair'),
        ({"text": "Ada", "knowledge_text": [{"text": "x", "score": float("inf")}]}, '"knowledge_text" should be'),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(expert: tuple[Any, MoReProcessor], post: Any, told: str) -> None:
    with pytest.raises(ValueError) as raised:
        predict(*expert, [{"text": "Ada met Rivera"}, post])
    assert told in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("posts", [{"text": "Ada"}, "Ada", b"Ada", None, 5])
def test_what_is_no_list_of_posts_is_told(expert: tuple[Any, MoReProcessor], posts: Any) -> None:
    with pytest.raises(ValueError, match=rf"posts are given as a {type(posts).__name__}, they should be a list"):
        predict(*expert, posts)


def test_generators_and_numbers_of_numpy_are_taken(expert: tuple[Any, MoReProcessor]) -> None:
    posts = [{"id": np.int64(3), "text": "Ada met Rivera"}, {"id": 4.0, "text": ""}, {"tokens": []}]
    found = predict(*expert, (post for post in posts))
    assert found == predict(*expert, posts) and [row.get("id") for row in found] == [3, 4, None]
    assert type(found[0]["id"]) is int and predict(*expert, []) == []


def test_a_bar_is_shown_for_several_batches_only(expert: tuple[Any, MoReProcessor], capfd: Any) -> None:
    posts = [{"text": "Ada met Rivera"}] * 3
    predict(*expert, posts)
    assert capfd.readouterr() == ("", "")
    predict(*expert, posts, batch_size=1)
    assert "predict:" in capfd.readouterr().err


def test_a_post_that_cannot_be_computed_is_named(expert: tuple[Any, MoReProcessor]) -> None:
    """A weight that is no number, which one word alone reads: that post is named, not its whole batch."""
    model, processor = expert
    [[pieces]] = processor._tokenize_words([["phone"]])
    embeddings = model.get_input_embeddings().weight
    kept = embeddings.detach().clone()
    others = {piece for word in processor._tokenize_words([["Ada", "met", "in", "Oslo"]])[0] for piece in word}
    [bad, *_] = [piece for piece in pieces if piece not in others]
    try:
        with torch.no_grad():
            embeddings[bad] = float("nan")
        posts = [{"id": f"p{n}", "text": "Ada met in Oslo"} for n in range(20)]
        assert predict(model, processor, posts)
        posts[13]["text"] = "Ada met in Oslo phone"
        with pytest.raises(ValueError, match=r"^post 13 \(id p13\): the model can't read it: its scores are"):
            predict(model, processor, posts)
    finally:
        with torch.no_grad():
            embeddings.copy_(kept)


def test_the_knowledge_of_experts_is_checked(tiny_encoder: Any, tmp_path: Any) -> None:
    mixture, processor, _ = builder(save_experts(tmp_path, tiny_encoder))("entities", image_dim=0)
    good = {"text": "Ada", "expert_knowledge": [[{"text": "Ada sings"}], None]}
    assert predict(mixture, processor, [good])
    for bad in ([None], "x", [["x"], None], [[{"text": 3}], None]):
        with pytest.raises(ValueError, match='post 0: "expert_knowledge" should be'):
            predict(mixture, processor, [{"text": "Ada", "expert_knowledge": bad}])
