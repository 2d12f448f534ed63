"""One step of 8 documents, or eight of one: the same gradients, in float32 and in bfloat16."""

from typing import Any

from tests.gpu import material

LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}  # of the largest change of a weight


def run(options: Any) -> dict[str, Any]:
    """Return the checks."""
    import torch

    checks = []
    torch.backends.cuda.matmul.allow_tf32 = False
    for precision, limit in LIMITS.items():
        for objective in ("go", "rho1"):
            for flat in (False, True):
                changes = [step(options, objective, precision, flat, *split) for split in ((8, 1), (1, 8))]
                largest = float(changes[0].abs().max())
                apart = float((changes[0] - changes[1]).abs().max()) / largest
                name = f"{objective}, {precision}, {'padding-free' if flat else 'padded'}: 8 × 1 is 1 × 8"
                checks.append((name, apart < limit, f"{apart:.1e} of the largest change"))
    return {"checks": checks}


def step(options: Any, objective: str, precision: str, flat: bool, batch: int, accumulate: int) -> Any:
    """Return how one step of plain gradient descent changes the weights, in one vector."""
    import torch

    net = material.model("tiny", 280, options.device)
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    made = material.trainer(
        net,
        material.rows(8, 96, 280, objective, seed=3),
        options.device,
        lengths=flat and (precision == "bfloat16" or options.device == "cpu"),  # the kernel knows half precision alone
        objective=objective,
        bf16=precision == "bfloat16",
        padding_free=flat,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        weight_decay=0.0,
        lr_scheduler_type="constant",
    )
    made.train()
    return torch.cat([p.detach().flatten() for p in made.model.parameters()]).cpu() - before.cpu()
