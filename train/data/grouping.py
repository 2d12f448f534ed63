"""From a shard's scores to its tokens' groups: eta, several quantiles, soft shares, or one cut over the whole data set.

What enters: flat scores with document offsets. What leaves: a group number or a share for every token. All are made at
load time, so none needs a second annotation. Next: `loading.py` writes them beside the token ids.
"""

from itertools import pairwise

import numpy as np

from common.thresholds import important_tokens
from train.data.plan import GroupPlan


def group_numbers(
    scores: np.ndarray, supervised: np.ndarray, offsets: np.ndarray, plan: GroupPlan, cut: float | None = None
) -> np.ndarray:
    """Return each token's group, int8 [num_tokens], 0 where not supervised.

    With one threshold, group 1 is the important one (`common.thresholds`). With quantiles q_1 < … < q_k, group g holds
    a document's tokens with scores above exactly g of the thresholds, so g = k is the most important. With `cut`, the
    threshold is the same for every document: group 1 holds the scores above it.

    Args:
        scores: float [num_tokens].
        supervised: bool [num_tokens].
        offsets: int64 [num_documents + 1].
        plan: eta, ties and quantiles.
        cut: a threshold for all documents.
    """
    if cut is not None:
        return ((scores > cut) & supervised).astype(np.int8)
    groups = np.zeros(len(scores), dtype=np.int8)
    for start, end in pairwise(offsets):
        document = slice(start, end)
        for quantile in (plan.eta,) if plan.quantiles is None else plan.quantiles:
            groups[document] += important_tokens(scores[document], supervised[document], quantile, plan.ties).important
    return groups


def soft_shares(
    scores: np.ndarray, supervised: np.ndarray, offsets: np.ndarray, eta: float, softness: float
) -> np.ndarray:
    """Return the share of each token that belongs to group 1, float32 [num_tokens] in [0, 1]; the rest is group 0's.

        share_j = 1 / (1 + exp(-(score_j - t) / (softness · s)))

    t is the eta-quantile of the document's supervised scores, s their standard deviation, so the scale of the scores
    does not matter. A softness near 0 gives the groups of the threshold rule, but for ties, which get one half; equal
    scores throughout give 0, as there. Not supervised: 0.
    """
    shares = np.zeros(len(scores), dtype=np.float32)
    for start, end in pairwise(offsets):
        chosen = start + np.flatnonzero(supervised[start:end])
        if not chosen.size or (spread := float(scores[chosen].std(dtype=np.float64))) == 0.0:
            continue
        distance = scores[chosen].astype(np.float64) - np.quantile(scores[chosen].astype(np.float64), eta)
        shares[chosen] = 0.5 * (1 + np.tanh(distance / (2 * softness * spread)))
    return shares
