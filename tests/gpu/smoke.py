"""Everything once: each attention, each layout, each objective, two steps; finite losses that agree with each other."""

import math
from typing import Any

from tests.gpu import material

LAYOUTS = ("padded", "padding-free", "packed")
OBJECTIVES = ("sft", "go", "rho1")


def run(options: Any) -> dict[str, Any]:
    """Return the checks."""
    checks, skipped, device = [], [], options.device
    attentions = ["sdpa", "lengths"]
    if device == "cuda" and has_flash():
        attentions.append("flash_attention_2")
    else:
        skipped.append(
            "smoke: flash_attention_2 (needs a GPU and the flash-attn package); torch's own kernel is `lengths`"
        )
    for objective in OBJECTIVES:
        data = material.rows(16, 96, 280, objective)
        first: dict[tuple[str, str], float] = {}
        for attention in attentions:
            for layout in LAYOUTS:
                if (attention, layout) == ("lengths", "padded"):
                    continue
                name = f"{attention} × {layout} × {objective}"
                losses = train(options, objective, attention, layout, data)
                checks.append((name, all(map(math.isfinite, losses)), f"losses {losses[0]:.4f}, {losses[-1]:.4f}"))
                first[attention, layout] = losses[0]
        for attention in attentions:
            if layout := first.get((attention, "padding-free")):
                apart = abs(layout - first["sdpa", "padded"])
                limit = 1e-4 if device == "cpu" else 3e-2
                checks.append(
                    (f"{attention}: padding-free is padded, {objective}", apart < limit, f"{apart:.1e} apart")
                )
    return {"checks": checks, "skipped": skipped}


def has_flash() -> bool:
    """Return whether the package is there."""
    import importlib.util

    return importlib.util.find_spec("flash_attn") is not None


def train(options: Any, objective: str, attention: str, layout: str, data: Any) -> list[float]:
    """Return the losses of two steps."""
    settings: dict[str, Any] = {"objective": objective, "max_steps": 2, "per_device_train_batch_size": 8}
    if layout == "packed":
        data = material.packed(data, 192)
        settings |= {"packing": True, "max_length": 192, "per_device_train_batch_size": 2}
    elif layout == "padding-free":
        settings["padding_free"] = True
    net = material.model("tiny", 280, options.device, "sdpa" if attention == "lengths" else attention)
    made = material.trainer(net, data, options.device, lengths=attention == "lengths", **settings)
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]
