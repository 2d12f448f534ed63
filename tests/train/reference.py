"""A training loop that is too slow and too plain to be wrong: full logits, `F.cross_entropy`, autograd through `max`.

What enters: a model, the padded batches of whole optimizer steps, the objective's settings. What leaves: the parameters
after plain gradient descent. Nothing of `train.objectives`, `train.loop.step` or `train.loop.trainer` is used.
"""

import copy
import math

import torch
from torch.nn.functional import cross_entropy, kl_div


def descend(model, steps, learning_rate, loss_of, num_steps=None):
    """Take one step of gradient descent a batch, and return the losses."""
    losses = []
    for index, batch in enumerate(steps):
        model.zero_grad()
        loss = loss_of(model, batch, index / (num_steps or len(steps)))
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= learning_rate * parameter.grad
    return losses


def documents_of(model, batch):
    """Return for each row the losses [n] of its supervised tokens, their positions [n], and the row itself."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    rows = []
    for row in range(len(logits)):
        losses = cross_entropy(logits[row, :-1], batch["input_ids"][row, 1:], reduction="none")
        positions = (batch["labels"][row, 1:] != -100).nonzero().flatten()
        rows.append((losses[positions], positions + 1, row))
    return rows


def distributions_of(model, batch):
    """Return the log-probabilities [n, vocabulary] of all supervised tokens' predictions, in the order of the rows."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1][batch["labels"][:, 1:] != -100].log_softmax(dim=-1)


def groups_of(batch, rows, settings):
    """Return for each row which of its supervised tokens are important."""
    if "reference_loss" not in batch:
        return [batch["group"][row, positions] == 1 for _, positions, row in rows]
    chosen = []
    for losses, positions, row in rows:
        excess = (losses.detach() - batch["reference_loss"][row, positions]).tolist()
        keep = math.ceil((1 - settings["eta"]) * len(excess) - 1e-9)
        top = sorted(range(len(excess)), key=lambda index: (-excess[index], index))[:keep]
        chosen.append(torch.tensor([index in top for index in range(len(excess))]))
    return chosen


def group_means(batch, rows, losses):
    """Return the mean loss of each group that has tokens, in order, from numbers or from shares."""
    if "share" in batch:
        share = torch.cat([batch["share"][row, positions] for _, positions, row in rows])
        return [(losses * part).sum() / part.sum() for part in (1 - share, share)]
    numbers = torch.cat([batch["group"][row, positions] for _, positions, row in rows])
    return [losses[numbers == group].mean() for group in sorted(set(numbers.tolist()))]


def worst(losses, important):
    """Return the larger of the two groups' means; a group without tokens has none."""
    return torch.stack([part.mean() for part in (losses[important], losses[~important]) if len(part)]).max()


def objective(settings):
    """Return `loss_of` for `descend`."""

    log_q, base = [0.0] * settings.get("groups", 2), []

    def loss_of(model, batch, progress):
        if not base:
            base.append(copy.deepcopy(model))
            base[0].__dict__.pop("forward", None)  # TRL's, which would call the original's
        rows = documents_of(model, batch)
        losses = torch.cat([row[0] for row in rows])
        name = settings["objective"]
        if name == "sft":
            return losses.mean()
        if name in ("dft", "asft"):
            loss = (losses.detach().neg().exp() * losses).mean()
            if name == "dft":
                return loss
            own, before = distributions_of(model, batch), distributions_of(base[0], batch).detach()
            return (
                loss + settings["anchor_weight"] * kl_div(own, before, log_target=True, reduction="none").sum(1).mean()
            )
        if name == "eaft":
            own = distributions_of(model, batch).detach()
            gate = (-(own.exp() * own).sum(dim=1) / math.log(20)).clamp(max=1)
            return (gate * losses).mean()
        if name == "weighted":
            weights = torch.cat([batch["score"][row, positions] for _, positions, row in rows])
            weights = weights ** (1 / settings["weight_temperature"]) + settings["weight_floor"]
            return (weights * losses).sum() / weights.sum()
        if name == "cleaned":
            kept = torch.cat([batch["group"][row, positions] for _, positions, row in rows]) == 1
            return losses[kept].mean()
        if name == "dro":
            numbers = torch.cat([batch["group"][row, positions] for _, positions, row in rows]).tolist()
            present = sorted(set(numbers))
            means = group_means(batch, rows, losses)
            before = [math.exp(log_q[group]) for group in present]
            raised = [q * math.exp(settings["dro_step"] * mean.item()) for q, mean in zip(before, means, strict=True)]
            after = [q * sum(before) / sum(raised) for q in raised]
            q = before if settings.get("dro_q") == "previous" else after
            for group, part in zip(present, after, strict=True):
                log_q[group] = math.log(part)
            return sum(part * mean for part, mean in zip(q, means, strict=True)) / sum(q)
        if "group_quantiles" in settings or "soft_groups" in settings:
            return 0.1 * losses.mean() + 0.9 * torch.stack(group_means(batch, rows, losses)).max()
        groups = groups_of(batch, rows, settings)
        important = torch.cat(groups)
        if settings["objective"] == "rho1":
            return losses[important].mean()
        largest = settings.get("lambda_max", 0.9)
        weight = max(largest * (1 - progress), settings.get("lambda_min", largest))
        if settings.get("worst_over") == "sample":
            over = [worst(row[0], group) for row, group in zip(rows, groups, strict=True) if len(group)]
            return (1 - weight) * losses.mean() + weight * torch.stack(over).mean()
        return (1 - weight) * losses.mean() + weight * worst(losses, important)

    return loss_of
