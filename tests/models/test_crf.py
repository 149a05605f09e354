"""The CRF's values, gradients, paths and spans against the list of all paths and against pytorch-crf."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torchcrf
from torch import Tensor

from crf_problems import NAMES, Problem, assert_all_close, gradients, make, rows
from modeling_more import crf as crf_module
from modeling_more.tagging import allowed_transitions, bioes_labels, tags_to_spans


@pytest.fixture(params=["matrix products", "elementwise"])
def recursion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to run the recursions; the second is the one for far-apart transitions and for other devices."""
    if request.param == "elementwise":
        monkeypatch.setattr(crf_module, "_matmul_is_exact", lambda transitions: False)
    else:
        monkeypatch.setattr(crf_module, "_matmul_is_exact", lambda transitions: True)
    return request.param


@pytest.mark.parametrize("num_tags", [2, 3, 4, 5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_values_and_gradients_equal_enumeration(recursion: str, num_tags: int, scale: float) -> None:
    problem = make(num_tags, scale=scale, seed=num_tags)
    crf, emissions, mask, tags = problem
    weights = torch.arange(1.0, len(mask) + 1, dtype=torch.float64)
    weight_q = torch.randn(emissions.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    likelihood, partition = crf.log_likelihood(emissions, tags, mask), crf.log_partition(emissions, mask)
    log_q, q = crf.log_marginals(emissions, mask), crf.marginals(emissions, mask)
    enumerations = [enumeration for _, enumeration in rows(problem)]
    expected_likelihood = torch.stack([e.log_likelihood(tags[row]) for row, e in enumerate(enumerations)])
    expected_partition = torch.stack([e.log_z for e in enumerations])
    assert_all_close((likelihood, partition), (expected_likelihood, expected_partition), 1e-11)
    for row, length in enumerate(problem.lengths):
        torch.testing.assert_close(log_q[row, :length], enumerations[row].log_q, atol=1e-11, rtol=1e-12)
        torch.testing.assert_close(q[row, :length], enumerations[row].log_q.exp(), atol=1e-12, rtol=0)

    for actual, expected in ((likelihood, expected_likelihood), (partition, expected_partition)):
        assert_all_close(
            gradients((actual * weights).sum(), problem.inputs),
            gradients((expected * weights).sum(), problem.inputs),
            1e-11,
        )
    # A linear and a curved function of the marginals, and one of their logarithms, tiny ones included.
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda log_q, w: (log_q.exp() * w).sum(),
        lambda log_q, w: (log_q.exp() ** 2 * log_q * w).sum(),
        lambda log_q, w: (log_q * w).sum(),
    ]
    for function in functions:
        actual = torch.stack([function(log_q[r, :n], weight_q[r, :n]) for r, n in enumerate(problem.lengths)]).sum()
        expected = torch.stack(
            [function(enumerations[r].log_q, weight_q[r, :n]) for r, n in enumerate(problem.lengths)]
        ).sum()
        assert_all_close(
            gradients(actual, problem.inputs),
            gradients(expected, problem.inputs),
            1e-9 * max(1.0, actual.abs().item()),
        )


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("method", ["log_likelihood", "log_partition", "log_marginals"])
def test_gradcheck(method: str, scale: float) -> None:
    problem = make(3, lengths=(4, 1, 3), scale=scale)

    def function(emissions: Tensor, *parameters: Tensor) -> Tensor:
        # The parameters that gradcheck perturbs are the module's own, in place.
        if method == "log_likelihood":
            return problem.crf.log_likelihood(emissions, problem.tags, problem.mask)
        return getattr(problem.crf, method)(emissions, problem.mask)

    assert torch.autograd.gradcheck(function, problem.inputs)


@pytest.mark.parametrize(
    ("recursion", "scale"),
    [("matrix products", 1.0), ("elementwise", 1.0), ("elementwise", 1e3)],
    indirect=["recursion"],
)
def test_float32_is_within_rounding_of_float64(recursion: str, scale: float) -> None:
    for seed, lengths in enumerate([(6, 1, 3, 5, 2, 4), (40, 17, 1, 33)]):
        single = make(5, lengths, scale, torch.float32, seed)
        double = Problem(single.crf, single.emissions.detach().double(), single.mask, single.tags)
        crf, emissions, mask, tags = single
        with torch.no_grad():
            best, exact_best = crf.viterbi(emissions, mask)[1], crf.viterbi(double.emissions, mask)[1]
            largest = exact_best.abs().max().item()
            for actual, expected in (
                (crf.log_partition(emissions, mask), crf.log_partition(double.emissions, mask)),
                (crf.log_likelihood(emissions, tags, mask), crf.log_likelihood(double.emissions, tags, mask)),
                (best, exact_best),
            ):
                assert actual.dtype == torch.float32 and expected.dtype == torch.float64
                assert (actual - expected).abs().max().item() <= 1e-6 * largest
            difference = crf.marginals(emissions, mask) - crf.marginals(double.emissions, mask)
        assert difference.abs().max().item() <= (1e-5 if scale == 1.0 else 2e-3)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3])
def test_float32_gradients_stay_close(scale: float) -> None:
    single = make(5, (12, 3, 40), scale, torch.float32)
    double = make(5, (12, 3, 40), scale, torch.float64)
    with torch.no_grad():
        for one, other in zip(double.inputs, single.inputs, strict=True):
            one.copy_(other)
    weight = torch.randn(single.emissions.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for crf, emissions, mask, tags in (single, double):
        value = (crf.log_marginals(emissions, mask) * weight.to(emissions.dtype)).sum()
        value = value + crf.log_likelihood(emissions, tags, mask).sum()
        found.append(gradients(value, (emissions, *(getattr(crf, name) for name in NAMES))))
    for actual, expected in zip(*found, strict=True):
        assert (actual - expected).abs().max() <= (1e-5 if scale == 1.0 else 5e-3) * expected.abs().max()


def test_best_paths_and_n_best_equal_enumeration() -> None:
    for num_tags, seed in product([2, 3, 4, 5], range(3)):
        problem = make(num_tags, seed=seed)
        crf, emissions, mask, _ = problem
        paths, scores = crf.viterbi(emissions, mask)
        lists = crf.n_best(emissions, mask, 7)
        for row, enumeration in rows(problem):
            expected = [enumeration.paths[i].tolist() for i in enumeration.best[:7]]
            expected_scores = enumeration.scores[enumeration.best[:7]]
            assert paths[row, : enumeration.length].tolist() == expected[0]
            assert not paths[row, enumeration.length :].any()
            torch.testing.assert_close(scores[row], expected_scores[0].detach(), atol=1e-12, rtol=0)
            assert [path for path, _ in lists[row]] == expected
            torch.testing.assert_close(
                [score for _, score in lists[row]], expected_scores.tolist(), atol=1e-12, rtol=0
            )
        assert not scores.requires_grad


def test_decoding_under_bioes_equals_enumeration() -> None:
    labels = bioes_labels(["A"])
    allowed = tuple(torch.tensor(part) for part in allowed_transitions(labels))
    start, follows, end = allowed
    changed = 0
    for seed in range(5):
        problem = make(len(labels), seed=seed, scale=2.0)
        crf, emissions, mask, _ = problem
        paths, scores = crf.viterbi(emissions, mask, allowed)
        changed += int((paths != crf.viterbi(emissions, mask)[0]).any(1).sum())
        lists = crf.n_best(emissions, mask, 10, allowed)
        for row, enumeration in rows(problem):
            legal = start[enumeration.paths[:, 0]] & end[enumeration.paths[:, -1]]
            legal &= follows[enumeration.paths[:, :-1], enumeration.paths[:, 1:]].all(1)
            expected = [i for i in enumeration.best if legal[i]][:10]
            assert paths[row, : enumeration.length].tolist() == enumeration.paths[expected[0]].tolist()
            torch.testing.assert_close(scores[row], enumeration.scores[expected[0]].detach(), atol=1e-12, rtol=0)
            # A sentence of one word has two legal paths, O and S-A, and no third is made up.
            assert [path for path, _ in lists[row]] == [enumeration.paths[i].tolist() for i in expected]
            for path, _ in lists[row]:
                tags = [labels[tag] for tag in path]
                assert tags_to_spans(tags) == tags_to_spans(tags, strict=True)
    assert changed  # else the constraint was never put to the test


def test_decoding_without_a_path_is_an_error() -> None:
    problem = make(2)
    nothing = (torch.zeros(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no path"):
        problem.crf.viterbi(problem.emissions, problem.mask, nothing)


@pytest.mark.parametrize(
    ("recursion", "scale"),
    [("matrix products", 1.0), ("elementwise", 1.0), ("elementwise", 100.0)],
    indirect=["recursion"],
)
@pytest.mark.parametrize("num_tags", [2, 3, 4, 5])
def test_span_scores_equal_enumeration(recursion: str, scale: float, num_tags: int) -> None:
    problem = make(num_tags, lengths=(6, 1, 4, 2, 3, 5), scale=scale)
    every = 2 * num_tags ** max(0, num_tags - 3) + 1  # of the tags of a span: all would be thousands
    spans: list[list[tuple[int, int, list[int]]]] = [
        [
            (start, end, list(tag_ids))
            for start in range(length)
            for end in range(start + 1, length + 1)
            for tag_ids in list(product(range(num_tags), repeat=end - start))[::every]
        ]
        for length in problem.lengths
    ]
    spans[2] = []
    actual = problem.crf.span_scores(problem.emissions, problem.mask, spans)
    assert [len(scores) for scores in actual] == [len(row_spans) for row_spans in spans]
    for row, enumeration in rows(problem):
        for score, span in zip(actual[row], spans[row], strict=True):
            torch.testing.assert_close(score, enumeration.span(*span).detach(), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("span", [(0, 3, [0, 0, 0]), (1, 1, []), (-1, 1, [0, 0]), (0, 2, [0]), (0, 1, [3])])
def test_a_span_outside_its_sentence_is_an_error(span: tuple[int, int, list[int]]) -> None:
    problem = make(3, lengths=(2, 4))
    with pytest.raises(ValueError, match="span"):
        problem.crf.span_scores(problem.emissions, problem.mask, [[span], []])


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_agrees_with_pytorch_crf(scale: float) -> None:
    problem = make(7, lengths=(30, 1, 17, 29), scale=scale)
    crf, emissions, mask, tags = problem
    reference = torchcrf.CRF(7, batch_first=True).double()
    reference.load_state_dict(crf.state_dict())
    expected = reference(emissions, tags, mask, reduction="none")
    actual = crf.log_likelihood(emissions, tags, mask)
    torch.testing.assert_close(actual, expected, atol=0, rtol=1e-12)
    others = (emissions, *(getattr(reference, name) for name in NAMES))
    assert_all_close(gradients(actual.sum(), problem.inputs), gradients(expected.sum(), others), 1e-10)
    paths, _ = crf.viterbi(emissions, mask)
    assert [path[:n] for path, n in zip(paths.tolist(), problem.lengths, strict=True)] == reference.decode(
        emissions, mask
    )


def test_padding_is_never_read(recursion: str) -> None:
    problem = make(5, dtype=torch.float32)
    crf, emissions, mask, tags = problem
    count = int(mask.shape[1])
    more = torch.nn.functional.pad(emissions.detach(), (0, 0, 0, 3))
    more_mask, more_tags = torch.nn.functional.pad(mask, (0, 3)), torch.nn.functional.pad(tags, (0, 3))
    more = more.masked_fill(~more_mask.unsqueeze(-1), float("nan")).requires_grad_()
    more_tags = more_tags.masked_fill(~more_mask, -100)
    spans = [[(0, length, [1] * length)] for length in problem.lengths]
    found = []
    for e, m, t in ((emissions, mask, tags), (more, more_mask, more_tags)):
        log_q, likelihood = crf.log_marginals(e, m), crf.log_likelihood(e, t, m)
        grads = gradients(log_q.square()[m].sum() + likelihood.sum(), (e, *crf.parameters()))
        torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(m.shape))
        assert not grads[0][~m].any()
        paths, scores = crf.viterbi(e, m)
        found.append(
            (log_q[:, :count][mask], likelihood, paths[:, :count], scores, *crf.span_scores(e, m, spans))
            + (grads[0][:, :count], *grads[1:])
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert torch.equal(found[0][1], found[1][1])
    # Sentence by sentence it is the same as in the batch.
    for row, length in enumerate(problem.lengths):
        alone = crf.log_marginals(emissions[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(alone[0], crf.log_marginals(emissions, mask)[row, :length], atol=1e-5, rtol=0)
