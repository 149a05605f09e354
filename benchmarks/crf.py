"""Time the CRF against pytorch-crf and against autograd through a plain loop, alternating in one process.

python benchmarks/crf.py
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchcrf
from torch import Tensor

from _common import write_result
from modeling_more.crf import LinearChainCRF

TAGS = 17  # four types in BIOES


def plain_log_marginals(crf: LinearChainCRF, emissions: Tensor, mask: Tensor) -> Tensor:
    """Forward-backward as it is usually written, differentiated by autograd."""
    length = emissions.shape[1]
    forward = [crf.start_transitions + emissions[:, 0]]
    backward = [crf.end_transitions.expand_as(emissions[:, 0])]
    for t in range(1, length):
        scores = torch.logsumexp(forward[-1].unsqueeze(2) + crf.transitions, dim=1) + emissions[:, t]
        forward.append(torch.where(mask[:, t : t + 1], scores, forward[-1]))
    for t in range(length - 1, 0, -1):
        scores = torch.logsumexp(crf.transitions + (emissions[:, t] + backward[0]).unsqueeze(1), dim=2)
        backward.insert(0, torch.where(mask[:, t : t + 1], scores, backward[0]))
    return torch.log_softmax(torch.stack(forward, 1) + torch.stack(backward, 1), dim=-1)


def step(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """A forward pass, just made, and its backward pass."""
    return [value, *torch.autograd.grad(value, inputs)]


def compare(ours: Callable[[], list[Tensor]], theirs: Callable[[], list[Tensor]], rounds: int) -> dict[str, float]:
    """Median milliseconds of both and the median of the ratios of neighbouring runs (below 1: ours is faster)."""
    times: list[tuple[float, float]] = []
    for number in range(rounds + 3):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        pair = {}
        for function in order:
            began = time.perf_counter()
            function()
            pair[function] = time.perf_counter() - began
        if number >= 3:
            times.append((pair[ours], pair[theirs]))
    return {
        "ours (ms)": round(1e3 * statistics.median(time for time, _ in times), 2),
        "other (ms)": round(1e3 * statistics.median(time for _, time in times), 2),
        "ours / other": round(statistics.median(one / other for one, other in times), 3),
    }


def measure(batch: int, words: int, rounds: int) -> list[dict[str, object]]:
    """The rows of the table for one size of batch."""
    torch.manual_seed(0)
    crf, reference = LinearChainCRF(TAGS), torchcrf.CRF(TAGS, batch_first=True)
    reference.load_state_dict(crf.state_dict())
    emissions = torch.randn(batch, words, TAGS, requires_grad=True)
    lengths = torch.randint(words // 3, words + 1, (batch,))
    lengths[0] = words
    mask = torch.arange(words) < lengths.unsqueeze(1)
    tags = torch.randint(TAGS, (batch, words))
    weight = torch.rand(emissions.shape) * mask.unsqueeze(-1)
    inputs = [emissions, *crf.parameters()]
    reference_inputs = [emissions, *(reference.get_parameter(name) for name, _ in crf.named_parameters())]

    def likelihood() -> list[Tensor]:
        return step(-crf.log_likelihood(emissions, tags, mask).mean(), inputs)

    def reference_likelihood() -> list[Tensor]:
        return step(-reference(emissions, tags, mask, reduction="mean"), reference_inputs)

    def marginals() -> list[Tensor]:
        return step((crf.log_marginals(emissions, mask) * weight).sum(), inputs)

    def plain_marginals() -> list[Tensor]:
        return step((plain_log_marginals(crf, emissions, mask) * weight).sum(), inputs)

    def best_paths() -> list[Tensor]:
        paths = crf.viterbi(emissions, mask)[0].tolist()
        return [torch.tensor(path[:length]) for path, length in zip(paths, lengths.tolist(), strict=True)]

    def reference_best_paths() -> list[Tensor]:
        return [torch.tensor(path) for path in reference.decode(emissions, mask)]

    rows = []
    for what, against, ours, theirs in (
        ("negative log-likelihood, forward + backward", "pytorch-crf", likelihood, reference_likelihood),
        ("log-marginals, forward + backward", "plain loop + autograd", marginals, plain_marginals),
        ("best path", "pytorch-crf", best_paths, reference_best_paths),
    ):
        for actual, expected in zip(ours(), theirs(), strict=True):  # the same figures, or the times mean nothing
            torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)
        row: dict[str, object] = {"what": what, "against": against, "sentences": batch, "words": words}
        rows.append(row | compare(ours, theirs, rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="timed runs of each side")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = [row for batch in (16, 64) for words in (20, 40) for row in measure(batch, words, rounds)]
    path = write_result(
        "crf",
        "Speed of the CRF",
        rows,
        note=f"{TAGS} tags, float32, CPU, one thread, sentences of a third to all of the words given. "
        f"Medians of {rounds} runs, alternating in one process; the ratio is the median of the ratios of neighbours.",
    )
    print(path)


if __name__ == "__main__":
    main()
