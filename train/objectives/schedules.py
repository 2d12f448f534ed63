"""How lambda, the weight of the worst group's loss, falls over the steps of a run.

    linear   max(lambda_max (1 - t / T), lambda_min)                                    paper eq. 5
    cosine   lambda_min + (lambda_max - lambda_min) (1 + cos(pi t / T)) / 2
    step     lambda_max for t < T / 2, then lambda_min

t is the optimizer step, counted from 0, and T the number of steps. With lambda_min = lambda_max all are constant.
"""

import math
from typing import Literal

LambdaSchedule = Literal["linear", "cosine", "step"]


def lambda_at(
    step: int, num_steps: int, lambda_max: float, lambda_min: float, schedule: LambdaSchedule = "linear"
) -> float:
    """Return lambda for the optimizer step `step` of `num_steps`."""
    done = step / max(num_steps, 1)
    if schedule == "cosine":
        return lambda_min + (lambda_max - lambda_min) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    if schedule == "step":
        return lambda_max if done < 0.5 else lambda_min
    return max(lambda_max * (1 - done), lambda_min)
