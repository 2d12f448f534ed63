"""Every objective again, in plain Python over lists and float64, straight from its paper; gradients by autograd.

What enters: tokens as lists, an objective's name and settings. What leaves: the value and its gradient. Nothing of
`train.objectives` is used but the fields of `Tokens`. Weights that an objective detaches are taken as given numbers, so
the gradient is that of the weighted sum (Danskin's theorem, for a maximum).
"""

import math

import torch

FORMS = [
    ("sft", {}),
    ("go", {}),
    ("go", {"lambda_max": 0.8, "lambda_min": 0.2}),
    ("go", {"lambda_max": 0.8, "lambda_min": 0.2, "lambda_schedule": "cosine"}),
    ("go", {"lambda_max": 0.8, "lambda_min": 0.0, "lambda_schedule": "step"}),
    ("go", {"worst_over": "sample"}),
    ("go", {"group_quantiles": "0.5,0.9"}),
    ("go", {"group_quantiles": "0.5,0.9", "worst_over": "sample"}),
    ("go", {"soft_groups": 0.2}),
    ("rho1", {}),
    ("dft", {}),
    ("asft", {"anchor_weight": 0.3}),
    ("eaft", {}),
    ("eaft", {"entropy_tokens": 4, "entropy_power": 2.0}),
    ("weighted", {}),
    ("weighted", {"weight_temperature": 2.0, "weight_floor": 0.1}),
    ("cleaned", {}),
    ("dro", {"dro_step": 0.5}),
    ("dro", {"dro_step": 0.5, "dro_q": "previous"}),
    ("dro", {"dro_step": 0.5, "group_quantiles": "0.5,0.9"}),
]


def value_and_gradient(name, own, tokens, leaf, moment):
    """Return the objective's value over the tokens as one step, and its gradient [T], float64, by the leaf."""
    at = [j for j, counted in enumerate(tokens.supervised.tolist()) if counted]
    point = leaf.detach().double().requires_grad_()
    # What the token losses and divergences are, as functions of the leaf, in float64.
    losses = {j: point[j] for j in at}
    divergences = {j: point[j] * 0.3 + 0.1 for j in at}
    value = SLOW[name](own, tokens, at, losses, divergences, moment)
    if not isinstance(value, torch.Tensor):
        return value, torch.zeros_like(point)
    value.backward()
    return value.item(), point.grad


def mean(values):
    """The mean of a list of tensors; 0 of none."""
    return sum(values) / len(values) if values else 0.0


def _groups(tokens, at):
    """Return for each group its tokens with their shares in it."""
    if tokens.share is not None:
        shares = tokens.share.double().tolist()
        return [{j: 1 - shares[j] for j in at}, {j: shares[j] for j in at}]
    numbers = tokens.group.tolist()
    return [{j: 1.0 for j in at if numbers[j] == group} for group in range(tokens.num_groups)]


def _group_means(groups, losses):
    return [sum(share * losses[j] for j, share in group.items()) / sum(group.values()) for group in groups if group]


def _lambda(own, moment):
    largest = own.get("lambda_max", 0.9)
    smallest = own.get("lambda_min", largest)
    done = moment.step / moment.num_steps
    if own.get("lambda_schedule") == "cosine":
        return smallest + (largest - smallest) * 0.5 * (1 + math.cos(math.pi * done))
    if own.get("lambda_schedule") == "step":
        return largest if done < 0.5 else smallest
    return max(largest * (1 - done), smallest)


def _sft(own, tokens, at, losses, divergences, moment):
    return mean([losses[j] for j in at])


def _go(own, tokens, at, losses, divergences, moment):
    weight = _lambda(own, moment)
    plain = mean([losses[j] for j in at])
    if own.get("worst_over") != "sample":
        return (1 - weight) * plain + weight * max(_group_means(_groups(tokens, at), losses))
    documents = tokens.document.tolist()
    worst = []
    for document in sorted({documents[j] for j in at}):
        inside = [j for j in at if documents[j] == document]
        worst.append(max(_group_means(_groups(tokens, inside), losses)))
    return (1 - weight) * plain + weight * mean(worst)


def _rho1(own, tokens, at, losses, divergences, moment):
    return mean([losses[j] for j in _groups(tokens, at)[1]])


def _dft(own, tokens, at, losses, divergences, moment):
    return mean([math.exp(-losses[j].item()) * losses[j] for j in at])


def _asft(own, tokens, at, losses, divergences, moment):
    return mean([math.exp(-losses[j].item()) * losses[j] + own["anchor_weight"] * divergences[j] for j in at])


def _eaft(own, tokens, at, losses, divergences, moment):
    entropy, width = tokens.entropy.tolist(), math.log(own.get("entropy_tokens", 20))
    return mean([min(1.0, entropy[j] / width) ** own.get("entropy_power", 1.0) * losses[j] for j in at])


def _weighted(own, tokens, at, losses, divergences, moment):
    score = tokens.score.tolist()
    power = 1 / own.get("weight_temperature", 1.0)
    weights = {j: score[j] ** power + own.get("weight_floor", 0.0) for j in at}
    return sum(weights[j] * losses[j] for j in at) / sum(weights.values())


def _dro(own, tokens, at, losses, divergences, moment):
    means = _group_means(_groups(tokens, at), losses)  # of the groups that there are, all with one q so far
    raised = [math.exp(own["dro_step"] * part.item()) for part in means]
    q = [1 / len(means)] * len(means) if own.get("dro_q") == "previous" else [part / sum(raised) for part in raised]
    return sum(weight * part for weight, part in zip(q, means, strict=True))


SLOW = {"sft": _sft, "go": _go, "rho1": _rho1, "cleaned": _rho1}
SLOW |= {"dft": _dft, "asft": _asft, "eaft": _eaft, "weighted": _weighted, "dro": _dro}
