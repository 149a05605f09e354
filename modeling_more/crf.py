"""Implement a linear-chain conditional random field whose marginals can be trained through.

Its gradients are written by hand: one sweep over the words for the values and one for the gradients, batched over the
sentences and over both directions of the chain, without an autograd graph over time.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import initialization as init

# A sum of exp(state) * exp(transition) keeps its precision in float32 while the transitions differ by less than this.
_MATMUL_RANGE = 60.0

Spans = Sequence[tuple[int, int, Sequence[int]]]
Allowed = tuple[Tensor, Tensor, Tensor]


class _Sweep(NamedTuple):
    """The messages of the D directions (0: from the left, 1: from the right) at each position, up to a shift.

    `states` [N, B, D, L]: log-sum over the paths that end here, this position's emission included, its maximum 0.
    `messages` [N, B, D, L]: the same without the emission of this position.
    `shifts` [N, B, D]: what was subtracted at each position.
    """

    states: Tensor
    messages: Tensor
    shifts: Tensor


def _matmul_is_exact(transitions: Tensor) -> bool:
    """Return whether the recursions may run as matrix products of exponentials: faster, but not always exact."""
    if transitions.device.type != "cpu":
        return False
    lowered = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", "none") not in ("none", "ieee")
    if lowered and transitions.dtype == torch.float32:
        return False
    return bool(transitions.max() - transitions.min() < _MATMUL_RANGE)


def _block_diagonal(matrices: Tensor) -> Tensor:
    """Turn [D, L, L] into [D * L, D * L], so that one matrix product serves all directions."""
    return matrices[0] if len(matrices) == 1 else torch.block_diag(*matrices)


def _sweep(emissions: Tensor, first: Tensor, transitions: Tensor, matmul: bool) -> _Sweep:
    """Run the D recursions over emissions [N, B, D, L], from `first` [D, L], through `transitions` [D, L, L]."""
    length, batch, directions, tags = emissions.shape
    peaks = emissions.amax(-1, keepdim=True)
    steps = (emissions - peaks).unbind()
    states, messages, shifts = torch.empty_like(emissions), torch.empty_like(emissions), torch.empty_like(peaks)
    state_at, message_at, shift_at = states.unbind(), messages.unbind(), shifts.unbind()

    messages[0] = first
    largest = transitions.max() if matmul else transitions.new_zeros(())
    weights = _block_diagonal((transitions - largest).exp()) if matmul else transitions
    for t in range(length):
        if t and matmul:
            sums = state_at[t - 1].exp().view(batch, directions * tags) @ weights
            torch.log(sums.view(batch, directions, tags), out=message_at[t])
        elif t:
            torch.logsumexp(state_at[t - 1].unsqueeze(-1) + transitions, dim=-2, out=message_at[t])
        scores = message_at[t] + steps[t]
        torch.amax(scores, dim=-1, keepdim=True, out=shift_at[t])
        torch.sub(scores, shift_at[t], out=state_at[t])
    shifts += peaks
    shifts[1:] += largest
    return _Sweep(states, messages, shifts.squeeze(-1))


def _sweep_back(grad: Tensor, sweep: _Sweep, transitions: Tensor, matmul: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Reverse `_sweep`: from the gradient of the messages to that of emissions, first and transitions.

    What flows are the conditional probabilities of the step before given this one, which lie in [0, 1], never 1 / q.
    """
    length, batch, directions, tags = grad.shape
    states, messages, _ = sweep
    grad_emissions = torch.zeros_like(grad)
    flow = grad[-1]
    if matmul:
        exponentials = (transitions - transitions.max()).exp()
        weights = _block_diagonal(exponentials.transpose(1, 2).contiguous())
        before, inverse_sums = states[:-1].exp(), messages[1:].neg().exp()
        scaled = torch.empty_like(before)
        grad_at, before_at, inverse_at = grad.unbind(), before.unbind(), inverse_sums.unbind()
        scaled_at, out_at = scaled.unbind(), grad_emissions.unbind()
        for t in range(length - 2, -1, -1):
            torch.mul(flow, inverse_at[t], out=scaled_at[t])
            sums = (scaled_at[t].view(batch, directions * tags) @ weights).view(batch, directions, tags)
            torch.mul(before_at[t], sums, out=out_at[t])
            flow = grad_at[t] + out_at[t]
        pairs = before.permute(2, 3, 0, 1).flatten(2) @ scaled.permute(2, 0, 1, 3).flatten(1, 2)
        grad_transitions = pairs * exponentials
    else:
        grad_transitions = torch.zeros_like(transitions)
        for t in range(length - 2, -1, -1):
            conditional = (states[t].unsqueeze(-1) + transitions - messages[t + 1].unsqueeze(-2)).exp()
            part = conditional * flow.unsqueeze(-2)
            grad_transitions += part.sum(0)
            grad_emissions[t] = part.sum(-1)
            flow = grad[t] + grad_emissions[t]
    return grad_emissions, flow.sum(0), grad_transitions


def _flip(values: Tensor, lengths: Tensor) -> Tensor:
    """Turn every sentence of values [N, B, ...] around and leave the padding behind; this is its own inverse."""
    positions = torch.arange(len(values), device=values.device).unsqueeze(1)
    index = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return values[index, torch.arange(values.shape[1], device=values.device)]


def _both_directions(
    emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of `_sweep` for emissions [N, B, L], read from the left and, flipped, from the right."""
    stacked = torch.stack([emissions, _flip(emissions, lengths)], dim=2)
    return stacked, torch.stack([start, end]), torch.stack([transitions, transitions.T])


def _log_marginals(sweep: _Sweep, lengths: Tensor) -> Tensor:
    return torch.log_softmax(sweep.states[:, :, 0] + _flip(sweep.messages[:, :, 1], lengths), dim=-1)


def _expected_transitions(sweep: _Sweep, transitions: Tensor, lengths: Tensor, weight: Tensor, matmul: bool) -> Tensor:
    """Sum weight [B] times the marginal probability of each pair of tags over batch and words: [L, L]."""
    left, right = sweep.states[:-1, :, 0], _flip(sweep.states[:, :, 1], lengths)[1:]
    positions = torch.arange(1, len(left) + 1, device=left.device).unsqueeze(1)
    weights = torch.where(positions < lengths, weight, 0.0)
    if matmul:
        # Both are at most 1 with a 1 among them, so the mass is at least exp(-_MATMUL_RANGE).
        right = right.exp()
        mass = (sweep.messages[1:, :, 0].exp() * right).sum(-1)
        left = left.exp() * (weights / mass).unsqueeze(-1)
        return (left.flatten(0, 1).T @ right.flatten(0, 1)) * (transitions - transitions.max()).exp()
    pairs = left.unsqueeze(-1) + transitions + right.unsqueeze(-2)
    return (pairs.flatten(2).softmax(-1).view_as(pairs) * weights[..., None, None]).sum((0, 1))


def _log_partition_terms(sweep: _Sweep, end: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts of log Z: the shift of each position [N, B] (0 in the padding) and the rest at the end [B]."""
    positions = torch.arange(len(sweep.states), device=end.device).unsqueeze(1)
    last = sweep.states[lengths - 1, torch.arange(len(lengths), device=end.device), 0]
    return torch.where(positions < lengths, sweep.shifts[:, :, 0], 0.0), torch.logsumexp(last + end, dim=-1)


def _no_autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device_type=device.type, enabled=False)


def _needs_grad(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _best_paths(
    emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, mask: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """Return the n best paths [B, n, N] (0 in the padding) and their scores [B, n], -inf where there are fewer."""
    batch, length, tags = emissions.shape
    lengths, rows = mask.sum(1), torch.arange(batch, device=mask.device)
    into = transitions.T.repeat(1, n)  # [to, n * from]
    state = emissions.new_full((batch, n * tags), float("-inf"))
    state[:, :tags] = start + emissions[:, 0]
    states, pointers = [state], []
    for t in range(1, length):
        candidates = state.unsqueeze(1) + into
        best, pointer = candidates.max(-1, keepdim=True) if n == 1 else candidates.topk(n, dim=-1)
        state = (best.transpose(1, 2) + emissions[:, t].unsqueeze(1)).flatten(1)
        states.append(state)
        pointers.append(pointer.transpose(1, 2).flatten(1))
    last = torch.stack(states)[lengths - 1, rows]
    scores, index = (last + end.repeat(n)).topk(n, dim=1)
    paths = torch.empty(batch, n, length, dtype=torch.long, device=mask.device)
    paths[:, :, -1] = index
    for t in range(length - 1, 0, -1):
        # In the padding the index waits for the sentence to end.
        index = torch.where(mask[:, t : t + 1], pointers[t - 1].gather(1, index), index)
        paths[:, :, t - 1] = index
    return (paths % tags).masked_fill(~mask.unsqueeze(1), 0), scores


class _LogLikelihood(torch.autograd.Function):
    """The function log p(tags), or -log Z where tags is None, whose gradient is gold minus expected counts."""

    @staticmethod
    def forward(
        ctx: Any,
        emissions: Tensor,
        start: Tensor,
        transitions: Tensor,
        end: Tensor,
        tags: Tensor | None,
        mask: Tensor,
        needs_grad: bool,
    ) -> Tensor:
        lengths = mask.sum(1)
        matmul = _matmul_is_exact(transitions)
        by_time = emissions.transpose(0, 1)
        if needs_grad:
            sweep = _sweep(*_both_directions(by_time, start, transitions, end, lengths), matmul)
        else:
            sweep = _sweep(by_time.unsqueeze(2).contiguous(), start[None], transitions[None], matmul)
        shifts, rest = _log_partition_terms(sweep, end, lengths)
        gold_steps, gold_end = torch.zeros_like(shifts), torch.zeros_like(rest)
        if tags is not None:
            steps = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
            steps[:, 0] += start[tags[:, 0]]
            steps[:, 1:] += transitions[tags[:, :-1], tags[:, 1:]]
            gold_steps = (steps * mask).T
            gold_end = end[tags.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)]
        ctx.save_for_backward(sweep.states, sweep.messages, transitions, tags, mask)
        ctx.matmul = matmul
        # Word by word: the difference of two large sums would lose what the sums have in common.
        return (gold_steps - shifts).sum(0) + (gold_end - rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        states, messages, transitions, tags, mask = ctx.saved_tensors
        with _no_autocast(grad.device):
            lengths = mask.sum(1)
            sweep = _Sweep(states, messages, states)
            counts = -_log_marginals(sweep, lengths).transpose(0, 1).exp()
            grad_transitions = -_expected_transitions(sweep, transitions, lengths, grad, ctx.matmul)
            if tags is not None:
                counts += tags.unsqueeze(2) == torch.arange(counts.shape[2], device=counts.device)
                pairs = (tags[:, :-1], tags[:, 1:])
                grad_transitions.index_put_(pairs, mask[:, 1:] * grad.unsqueeze(1), accumulate=True)
            counts *= (mask * grad.unsqueeze(1)).unsqueeze(-1)
            grad_end = counts[torch.arange(len(counts), device=counts.device), lengths - 1].sum(0)
        return counts, counts[:, 0].sum(0), grad_transitions, grad_end, None, None, None


class _LogMarginals(torch.autograd.Function):
    """The function log q(y_i) [B, N, L], which is -log L in the padding."""

    @staticmethod
    def forward(ctx: Any, emissions: Tensor, start: Tensor, transitions: Tensor, end: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1)
        matmul = _matmul_is_exact(transitions)
        sweep = _sweep(*_both_directions(emissions.transpose(0, 1), start, transitions, end, lengths), matmul)
        log_q = _log_marginals(sweep, lengths).transpose(0, 1)
        ctx.save_for_backward(sweep.states, sweep.messages, log_q, transitions, mask)
        ctx.matmul = matmul
        uniform = -torch.log(torch.tensor(float(emissions.shape[-1]), dtype=log_q.dtype, device=log_q.device))
        return torch.where(mask.unsqueeze(-1), log_q, uniform)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        states, messages, log_q, transitions, mask = ctx.saved_tensors
        with _no_autocast(transitions.device):
            lengths = mask.sum(1)
            grad = torch.where(mask.unsqueeze(-1), grad_outputs[0], 0.0)
            # log q = log_softmax(message from the left + emission + message from the right)
            grad = (grad - log_q.exp() * grad.sum(-1, keepdim=True)).transpose(0, 1)
            both = torch.stack([grad, _flip(grad, lengths)], dim=2)
            stacked = torch.stack([transitions, transitions.T])
            sweep = _Sweep(states, messages, states)
            grad_emissions, grad_first, grad_stacked = _sweep_back(both, sweep, stacked, ctx.matmul)
            grad_emissions = grad + grad_emissions[:, :, 0] + _flip(grad_emissions[:, :, 1], lengths)
            grad_transitions = grad_stacked[0] + grad_stacked[1].T
        return grad_emissions.transpose(0, 1), grad_first[0], grad_transitions, grad_first[1], None


class LinearChainCRF(nn.Module):
    """A linear-chain conditional random field over the tags of a sentence's words.

    p(y) = exp(start[y_1] + sum_i emissions[i, y_i] + sum_i transitions[y_{i-1}, y_i] + end[y_n]) / Z.

    Every method takes emissions [B, N, L] and a boolean mask [B, N] whose rows are a run of at least one True, then
    False; the padding is never read. Scores must be finite (forbid a transition by -1e4, or at decoding by `allowed`).
    All is computed in float32 under any autocast, in float64 where emissions or parameters are. Shapes that do not
    fit, and rows of the mask that are empty or no prefix, raise ValueError.
    """

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        if num_tags < 1:
            raise ValueError(f"num_tags must be at least 1, not {num_tags}")
        self.num_tags = num_tags
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))  # [from, to]
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.reset_parameters()

    @classmethod
    def neutral(cls, num_tags: int, device: torch.device) -> Self:
        """Return a CRF whose transitions are all 0, drawing no random numbers: decoding must change no training."""
        with torch.random.fork_rng(devices=[]):
            chain = cls(num_tags).requires_grad_(False)
        for parameter in chain.parameters():
            parameter.zero_()
        return chain.to(device)

    def reset_parameters(self) -> None:
        """Draw the parameters uniformly within ±0.1, except for those that a checkpoint gave."""
        for parameter in (self.start_transitions, self.transitions, self.end_transitions):
            init.uniform_(parameter, -0.1, 0.1)

    def extra_repr(self) -> str:
        return f"num_tags={self.num_tags}"

    def _prepare(self, emissions: Tensor, mask: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Check the input and return (emissions, start, transitions, end) in the dtype to compute in, and the mask."""
        if emissions.dim() != 3 or emissions.shape[2] != self.num_tags or emissions.shape[:2] != mask.shape:
            raise ValueError(
                f"emissions must be [batch, words, {self.num_tags}] and mask [batch, words], "
                f"not {tuple(emissions.shape)} and {tuple(mask.shape)}"
            )
        mask = mask.bool()
        if mask.shape[1] == 0 or not bool((mask[:, 0] & (mask[:, 1:] <= mask[:, :-1]).all(1)).all()):
            raise ValueError("every row of mask must hold at least one True, all of them at its beginning")
        dtype = torch.promote_types(torch.promote_types(emissions.dtype, self.transitions.dtype), torch.float32)
        scores = emissions.to(dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        return (
            scores,
            self.start_transitions.to(dtype),
            self.transitions.to(dtype),
            self.end_transitions.to(dtype),
        ), mask

    def log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Return log p(tags | emissions) [B]; tags [B, N] may hold anything in the padding."""
        with _no_autocast(emissions.device):
            arguments, mask = self._prepare(emissions, mask)
            if tags.shape != mask.shape:
                raise ValueError(f"tags must be {tuple(mask.shape)} as mask is, not {tuple(tags.shape)}")
            tags = tags.masked_fill(~mask, 0)
            if bool(((tags < 0) | (tags >= self.num_tags)).any()):
                raise ValueError(f"tags must lie between 0 and {self.num_tags - 1} wherever mask is True")
            return _LogLikelihood.apply(*arguments, tags, mask, _needs_grad(arguments))

    def log_partition(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return log Z [B] of each sentence."""
        with _no_autocast(emissions.device):
            arguments, mask = self._prepare(emissions, mask)
            return -_LogLikelihood.apply(*arguments, None, mask, _needs_grad(arguments))

    def log_marginals(self, emissions: Tensor, mask: Tensor, transitions_grad: bool = True) -> Tensor:
        """Return log q(y_i) [B, N, L], differentiable in emissions and, with `transitions_grad`, in the parameters.

        The padding holds the uniform distribution, without gradient.
        """
        with _no_autocast(emissions.device):
            (scores, *parameters), mask = self._prepare(emissions, mask)
            if not transitions_grad:
                parameters = [parameter.detach() for parameter in parameters]
            return _LogMarginals.apply(scores, *parameters, mask)

    def marginals(self, emissions: Tensor, mask: Tensor, transitions_grad: bool = True) -> Tensor:
        """Return q(y_i) [B, N, L], the exponential of `log_marginals`."""
        return self.log_marginals(emissions, mask, transitions_grad).exp()

    @torch.no_grad()
    def span_scores(self, emissions: Tensor, mask: Tensor, spans: Sequence[Spans]) -> list[Tensor]:
        """Return the probability that the words of each (start, end exclusive, tag_ids) span have these tags.

        Each sentence has a list of spans and gets a tensor of as many probabilities, without gradient. A span outside
        its sentence, or with a tag id too many or too few, raises ValueError.
        """
        with _no_autocast(emissions.device):
            arguments, mask = self._prepare(emissions, mask)
            scores, _, transitions, _ = arguments
            if len(spans) != len(mask):
                raise ValueError(f"spans must hold a list for each of the {len(mask)} sentences, not {len(spans)}")
            lengths = mask.sum(1)
            words: list[tuple[int, int, int]] = []  # (row, position, tag) of every word of every span
            owners: list[int] = []
            firsts: list[bool] = []
            count = 0
            for row, (row_spans, length) in enumerate(zip(spans, lengths.tolist(), strict=True)):
                for start, end, tag_ids in row_spans:
                    if not 0 <= start < end <= length or len(tag_ids) != end - start:
                        raise ValueError(
                            f"span ({start}, {end}) with {len(tag_ids)} tags does not fit row {row} of {length} words"
                        )
                    if not all(0 <= tag < self.num_tags for tag in tag_ids):
                        raise ValueError(f"span ({start}, {end}) has a tag id outside 0 to {self.num_tags - 1}")
                    words += [(row, start + offset, int(tag)) for offset, tag in enumerate(tag_ids)]
                    owners += [count] * len(tag_ids)
                    firsts += [True] + [False] * (len(tag_ids) - 1)
                    count += 1
            total = scores.new_zeros(count)
            if count:
                by_time = scores.transpose(0, 1)
                sweep = _sweep(*_both_directions(by_time, *arguments[1:], lengths), _matmul_is_exact(transitions))
                from_right = _flip(sweep.states[:, :, 1], lengths)
                rows, positions, tags = torch.tensor(words, device=scores.device).unbind(1)
                first = torch.tensor(firsts, device=scores.device)
                # p(span) = q(first tag) * product of p(tag | tag before), every factor at most 1: alpha, beta and
                # log Z of the formula cancel without ever being summed up.
                conditionals = torch.log_softmax(transitions[tags.roll(1)] + from_right[positions, rows], dim=-1)
                conditional = conditionals.gather(1, tags.unsqueeze(1)).squeeze(1)
                marginal = _log_marginals(sweep, lengths)[positions, rows, tags]
                terms = torch.where(first, marginal, conditional)
                total.index_add_(0, torch.tensor(owners, device=scores.device), terms)
            return list(total.exp().split([len(row_spans) for row_spans in spans]))

    def _decode(self, emissions: Tensor, mask: Tensor, n: int, allowed: Allowed | None) -> tuple[Tensor, Tensor]:
        with _no_autocast(emissions.device):
            (scores, *parameters), mask = self._prepare(emissions, mask)
            if allowed is not None:
                parameters = [
                    parameter.masked_fill(~permitted.to(parameter.device, torch.bool), float("-inf"))
                    for parameter, permitted in zip(parameters, (allowed[0], allowed[1], allowed[2]), strict=True)
                ]
            start, transitions, end = parameters
            paths, totals = _best_paths(scores, start, transitions, end, mask, n)
            if not bool(totals[:, 0].isfinite().all()):
                raise ValueError("a sentence has no path of finite score: look at allowed and at the emissions")
        return paths, totals

    @torch.no_grad()
    def viterbi(self, emissions: Tensor, mask: Tensor, allowed: Allowed | None = None) -> tuple[Tensor, Tensor]:
        """Return the best path of each sentence [B, N] (0 in the padding) and its score [B].

        `allowed` = (start [L], transitions [L, L] as [from, to], end [L]) holds False for what is excluded, see
        `tagging.allowed_transitions`. A sentence that has no path left raises ValueError.
        """
        paths, scores = self._decode(emissions, mask, 1, allowed)
        return paths[:, 0], scores[:, 0]

    @torch.no_grad()
    def n_best(
        self, emissions: Tensor, mask: Tensor, n: int, allowed: Allowed | None = None
    ) -> list[list[tuple[list[int], float]]]:
        """Return the n best (path, score) of each sentence, best first; fewer where it has fewer paths."""
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        paths, scores = self._decode(emissions, mask, n, allowed)
        return [
            [
                (path[:length], score)
                for path, score in zip(row_paths, row_scores, strict=True)
                if score > float("-inf")
            ]
            for row_paths, row_scores, length in zip(
                paths.tolist(), scores.tolist(), mask.sum(1).tolist(), strict=True
            )
        ]
