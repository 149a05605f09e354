"""Whatever the scores, the CRF's values are those of the list of all paths."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crf_problems import NAMES, Enumeration, Problem
from modeling_more.crf import LinearChainCRF

#: ordinary scores, ties, and those by which transitions are forbidden
SCORES = st.floats(-8, 8) | st.sampled_from([0.0, 1.0, -1e4, 300.0])


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    tags = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))

    def values(*shape: int) -> torch.Tensor:
        count = int(torch.tensor(shape).prod())
        return torch.tensor(draw(st.lists(SCORES, min_size=count, max_size=count)), dtype=torch.float64).view(shape)

    crf = LinearChainCRF(tags).double().requires_grad_(False)
    for name in NAMES:
        getattr(crf, name).copy_(values(*getattr(crf, name).shape))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    count = mask.numel()
    gold = torch.tensor(draw(st.lists(st.integers(0, tags - 1), min_size=count, max_size=count))).view(mask.shape)
    return Problem(crf, values(*mask.shape, tags), mask, gold)


@given(problems(), st.data())
@settings(max_examples=120, deadline=None)
def test_everything_equals_enumeration(problem: Problem, data: st.DataObject) -> None:
    crf, emissions, mask, gold = problem
    likelihood = crf.log_likelihood(emissions, gold, mask)
    marginals = crf.marginals(emissions, mask)
    paths, scores = crf.viterbi(emissions, mask)
    torch.testing.assert_close(marginals.sum(-1), torch.ones_like(mask, dtype=torch.float64), atol=1e-9, rtol=0)
    spans = []
    for length in problem.lengths:
        start = data.draw(st.integers(0, length - 1))
        spans.append([(start, data.draw(st.integers(start + 1, length)), [])])
    ids = [[(a, b, gold[row, a:b].tolist()) for a, b, _ in found] for row, found in enumerate(spans)]
    probabilities = crf.span_scores(emissions, mask, ids)
    for row, length in enumerate(problem.lengths):
        every = Enumeration(problem, row)
        torch.testing.assert_close(likelihood[row], every.log_likelihood(gold[row]), atol=1e-7, rtol=1e-9)
        torch.testing.assert_close(marginals[row, :length], every.log_q.exp(), atol=1e-9, rtol=0)
        assert abs(float(scores[row] - every.scores.max())) <= 1e-8 * max(1.0, float(every.scores.max().abs()))
        best = every.scores[(every.paths == paths[row, :length]).all(1)]
        torch.testing.assert_close(best, every.scores.max()[None], atol=1e-8, rtol=1e-12)  # with ties, one of them
        torch.testing.assert_close(probabilities[row][0], every.span(*ids[row][0]), atol=1e-9, rtol=0)
