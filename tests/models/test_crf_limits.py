"""The CRF at its limits: forbidden transitions, low precision, input that does not fit; its graph and its start."""

import pytest
import torch
from torch import Tensor

from crf_problems import NAMES, assert_all_close, gradients, make, rows
from modeling_more import crf as crf_module
from modeling_more.crf import LinearChainCRF
from modeling_more.tagging import allowed_transitions, bioes_labels


def test_forbidden_transitions_and_large_scores_stay_finite() -> None:
    labels = bioes_labels(["A", "B"])
    start, follows, end = (~torch.tensor(part) for part in allowed_transitions(labels))
    for scale in (1.0, 1e3):
        problem = make(len(labels), lengths=(40, 1, 2, 23), scale=scale, dtype=torch.float32)
        crf, emissions, mask, tags = problem
        with torch.no_grad():
            for parameter, forbidden in zip(crf.parameters(), (start, follows, end), strict=True):
                parameter.masked_fill_(forbidden, -1e4)
        log_q = crf.log_marginals(emissions, mask)
        likelihood = crf.log_likelihood(emissions, tags, mask)
        spans = [[(0, n, row[:n])] for n, row in zip(problem.lengths, tags.tolist(), strict=True)]
        span_scores = torch.cat(crf.span_scores(emissions, mask, spans))
        values = (log_q, likelihood, crf.log_partition(emissions, mask), crf.viterbi(emissions, mask)[1], span_scores)
        target = torch.rand(log_q.shape, generator=torch.Generator().manual_seed(2))
        grads = [*gradients(likelihood.sum(), problem.inputs), *gradients((log_q * target).sum(), problem.inputs)]
        grads += gradients((target * crf.marginals(emissions, mask)).sum(), problem.inputs)
        for value in (*values, *grads):
            assert value.isfinite().all()
        assert log_q.min() < -1e3 and likelihood.min() < -1e4  # the forbidden was in play
        torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(mask.shape), atol=1e-5, rtol=0)
        paths = crf.viterbi(emissions, mask)[0]
        assert not follows[paths[0, :-1], paths[0, 1:]].any()


def test_gradients_at_vanishing_marginals_equal_enumeration() -> None:
    problem = make(3, lengths=(4, 2), scale=1.0)
    crf, emissions, mask, _ = problem
    with torch.no_grad():
        emissions[:, :, 0] += 500.0
        crf.transitions[0, 1] = -1e4
    log_q = crf.log_marginals(emissions, mask)
    assert log_q.exp().min() == 0.0
    expected = sum(enumeration.log_q.sum() for _, enumeration in rows(problem))
    assert isinstance(expected, Tensor)
    assert_all_close(gradients(log_q[mask].sum(), problem.inputs), gradients(expected, problem.inputs), 1e-9)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_half_precision_input_and_autocast_compute_in_float32(scale: float) -> None:
    problem = make(5, scale=scale, dtype=torch.float32)
    crf, mask, tags = problem.crf, problem.mask, problem.tags
    low = problem.emissions.detach().to(torch.bfloat16).requires_grad_()
    full = low.detach().float().requires_grad_()
    spans = [[(0, length, [0] * length)] for length in problem.lengths]

    def run(emissions: Tensor) -> list[Tensor]:
        log_q = crf.log_marginals(emissions, mask)
        likelihood = crf.log_likelihood(emissions, tags, mask)
        parameters = tuple(crf.parameters())
        found = [log_q, likelihood, crf.log_partition(emissions, mask), *crf.viterbi(emissions, mask)]
        found += crf.span_scores(emissions, mask, spans)
        for value in ((log_q * log_q.exp()).sum(), likelihood.sum()):  # apart: their sum would be one in bfloat16
            found += gradients(value, (emissions, *parameters))
        return found

    expected = run(full)
    for emissions in (low, full):
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                actual = run(emissions)
            for one, other in zip(actual, expected, strict=True):
                if one.dtype == torch.bfloat16:  # only the gradient of bfloat16 emissions
                    assert one.shape == low.shape
                    other = other.to(torch.bfloat16)
                assert one.dtype == other.dtype and torch.equal(one, other)


def test_half_precision_parameters_compute_in_float32() -> None:
    problem = make(5, dtype=torch.float32)
    crf = problem.crf.to(torch.bfloat16)
    expected = LinearChainCRF(5)
    expected.load_state_dict(crf.state_dict())
    actual = crf.log_likelihood(problem.emissions, problem.tags, problem.mask)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected.log_likelihood(problem.emissions, problem.tags, problem.mask))


def test_reduced_matmul_precision_is_not_used() -> None:
    before = torch.get_float32_matmul_precision()
    parameter = torch.zeros(3, 3)
    try:
        torch.set_float32_matmul_precision("highest")
        assert crf_module._matmul_is_exact(parameter)
        assert not crf_module._matmul_is_exact(parameter.index_fill(0, torch.tensor([1]), -1e4))
        torch.set_float32_matmul_precision("medium")
        assert not crf_module._matmul_is_exact(parameter)
        assert crf_module._matmul_is_exact(parameter.double())
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "mask",
    [
        [[True, True, True], [False, False, False]],
        [[True, True, True], [False, True, True]],
        [[True, False, True], [True, True, True]],
        [[], []],
    ],
)
def test_empty_rows_and_holes_are_errors(mask: list[list[bool]]) -> None:
    crf, rows_ = LinearChainCRF(3), torch.tensor(mask, dtype=torch.bool)
    emissions, tags = torch.zeros(*rows_.shape, 3), torch.zeros(rows_.shape, dtype=torch.long)
    for call in (
        lambda: crf.log_likelihood(emissions, tags, rows_),
        lambda: crf.log_partition(emissions, rows_),
        lambda: crf.log_marginals(emissions, rows_),
        lambda: crf.viterbi(emissions, rows_),
        lambda: crf.n_best(emissions, rows_, 2),
        lambda: crf.span_scores(emissions, rows_, [[], []]),
    ):
        with pytest.raises(ValueError, match="every row of mask"):
            call()


def test_shapes_and_tags_that_do_not_fit_are_errors() -> None:
    crf, emissions, mask, tags = make(3)
    with pytest.raises(ValueError, match="emissions must be"):
        crf.log_partition(emissions[:, :-1], mask)
    with pytest.raises(ValueError, match="emissions must be"):
        crf.log_partition(emissions[..., :-1], mask)
    with pytest.raises(ValueError, match="tags must be"):
        crf.log_likelihood(emissions, tags[:, :-1], mask)
    with pytest.raises(ValueError, match="between 0 and 2"):
        crf.log_likelihood(emissions, tags.index_fill(1, torch.tensor([0]), -100), mask)
    with pytest.raises(ValueError, match="n must be"):
        crf.n_best(emissions, mask, 0)
    with pytest.raises(ValueError, match="num_tags"):
        LinearChainCRF(0)


def test_marginals_alone_train_emissions_and_parameters() -> None:
    problem = make(4, dtype=torch.float32)
    crf, emissions, mask, _ = problem
    target = torch.softmax(torch.randn(emissions.shape, generator=torch.Generator().manual_seed(3)), -1)
    loss = -(target * crf.log_marginals(emissions, mask))[mask].sum()
    for gradient in gradients(loss, problem.inputs):
        assert gradient.abs().max() > 1e-3
    loss = -(target * crf.log_marginals(emissions, mask, transitions_grad=False))[mask].sum()
    only, *none = gradients(loss, problem.inputs)
    torch.testing.assert_close(
        only, gradients(-(target * crf.log_marginals(emissions, mask))[mask].sum(), (emissions,))[0]
    )
    assert not any(gradient.any() for gradient in none)


def test_the_graph_does_not_grow_with_the_sentence() -> None:
    def nodes(value: Tensor) -> int:
        seen, waiting = set(), [value.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [following for following, _ in node.next_functions]
        return len(seen)

    for method in ("log_partition", "log_marginals"):
        sizes = []
        for length in (2, 30):
            problem = make(3, lengths=(length, 1))
            sizes.append(nodes(getattr(problem.crf, method)(problem.emissions, problem.mask)))
        assert sizes[0] == sizes[1]


def test_evaluation_needs_no_gradient_and_gives_the_same_value() -> None:
    problem = make(4, dtype=torch.float32)
    crf, emissions, mask, tags = problem
    expected = crf.log_likelihood(emissions, tags, mask)
    with torch.no_grad():
        without = crf.log_likelihood(emissions, tags, mask)
    with torch.inference_mode():
        inference = crf.log_likelihood(emissions, tags, mask)
    for actual in (without, inference):
        assert not actual.requires_grad
        torch.testing.assert_close(actual, expected.detach(), atol=1e-5, rtol=0)


def test_initialisation() -> None:
    crf = LinearChainCRF(17)
    assert not list(crf.buffers())
    assert [name for name, _ in crf.named_parameters()] == list(NAMES)
    for parameter in crf.parameters():
        assert 0.0 < parameter.detach().abs().max() <= 0.1
    before = crf.transitions.detach().clone()
    crf.transitions._is_hf_initialized = True  # as transformers marks what it has loaded
    crf.reset_parameters()
    assert torch.equal(crf.transitions, before)
    crf.transitions._is_hf_initialized = False
    crf.reset_parameters()
    assert not torch.equal(crf.transitions, before)
