"""A training loop that is too slow and too plain to be wrong: full logits, `F.cross_entropy`, autograd through `max`.

What enters: a model, the padded batches of whole optimizer steps, the objective's settings. What leaves: the parameters
after plain gradient descent. Nothing of `train.objectives`, `train.loop.step` or `train.loop.trainer` is used.
"""

import math

import torch
from torch.nn.functional import cross_entropy


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


def groups_of(batch, rows, settings):
    """Return for each row which of its supervised tokens are important."""
    if "reference_loss" not in batch:
        return [batch["important"][row, positions] for _, positions, row in rows]
    chosen = []
    for losses, positions, row in rows:
        excess = (losses.detach() - batch["reference_loss"][row, positions]).tolist()
        keep = math.ceil((1 - settings["eta"]) * len(excess) - 1e-9)
        top = sorted(range(len(excess)), key=lambda index: (-excess[index], index))[:keep]
        chosen.append(torch.tensor([index in top for index in range(len(excess))]))
    return chosen


def worst(losses, important):
    """Return the larger of the two groups' means; a group without tokens has none."""
    return torch.stack([part.mean() for part in (losses[important], losses[~important]) if len(part)]).max()


def objective(settings):
    """Return `loss_of` for `descend`."""

    def loss_of(model, batch, progress):
        rows = documents_of(model, batch)
        losses = torch.cat([row[0] for row in rows])
        if settings["objective"] == "sft":
            return losses.mean()
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
