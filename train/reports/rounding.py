"""How many weights one step of training leaves as they are, because their dtype cannot hold the difference.

What enters: a loaded model and the learning rate. What leaves: a share, and a sentence for the preflight.

bfloat16 keeps 8 bits of a number. AdamW's first step moves every weight by the learning rate, later ones by less. A
weight w with 2^e <= |w| < 2^(e+1) has neighbours 2^(e-7) away, and rounding to the nearest takes back what is below
half of that: with a learning rate of 1e-5, every weight from 2^-8 on, which is most of a language model.
"""

import math
from typing import Any

import torch

MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10}


def unchanged_share(model: Any, learning_rate: float) -> float | None:
    """Return the share of the trained weights in half precision that a step of `learning_rate` leaves unchanged.

    None where no such weights are trained. Exact for a step of that size; a weight at a power of two has a nearer
    neighbour below, which is not counted.
    """
    total = stay = 0
    for parameter in model.parameters():
        bits = MANTISSA_BITS.get(parameter.dtype)
        if bits is None or not parameter.requires_grad or parameter.is_meta:
            continue
        total += parameter.numel()
        stay += int((parameter.detach().abs() >= smallest_that_stays(learning_rate, bits)).sum())
    return stay / total if total else None


def smallest_that_stays(learning_rate: float, mantissa_bits: int) -> float:
    """Return the least power of two 2^e of which half the distance to its neighbour, 2^(e - bits - 1), is too large."""
    if learning_rate <= 0:
        return 0.0
    return 2.0 ** (math.floor(math.log2(learning_rate)) + mantissa_bits + 2)


def rounding_lines(model: Any, learning_rate: float) -> list[tuple[str, str]]:
    """Return the preflight's row about weights in half precision; none where none are trained."""
    share = unchanged_share(model, learning_rate)
    if share is None:
        return []
    return [
        (
            "WEIGHTS ROUNDED",
            f"a step of the learning rate {learning_rate:g} leaves {share:.1%} of the weights unchanged: their dtype "
            "cannot hold the difference. Use --dtype float32 (autocast still computes in bfloat16), or --use_peft true",
        )
    ]
