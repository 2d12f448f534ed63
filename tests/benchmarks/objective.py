"""What the `go` objective itself costs of a step: steps with λ = 0.9 and with λ = 0 take turns in one process.

    python -m tests.benchmarks.objective --shards <dir> --grouper tfidf --packing --batch 1 --max_length 384 --steps 60

With λ = 0 the trainer returns TRL's own loss (and still sums the curves: `own ms` of `tests.benchmarks.train`, 0.2 ms).
The two kinds of steps share everything else, the place of their memory too, which makes processes of the very same
trainer differ by more than what is measured here. Takes the flags of `tests.benchmarks.train`.
"""

import os
import statistics
import sys
import warnings

from tests.benchmarks.train import KEEP_FREED, Bench, parse
from train.objectives.go import GroupOptimization


def main() -> None:
    """Measure and print."""
    if any(name not in os.environ for name in KEEP_FREED):  # malloc reads them when a process starts
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.benchmarks.objective", *sys.argv[1:]],
            {**os.environ, **KEEP_FREED},
        )
    warnings.filterwarnings("ignore")
    GroupOptimization.lambda_ = lambda self, moment: 0.9 * (moment.step % 2)
    options = parse()
    options.kinds = ["go"]
    wall_s = Bench(options).run("go")["wall_s"]  # the warm-up has an even number of steps
    plain, go = wall_s[0::2], wall_s[1::2]
    pairs = [with_go / without for without, with_go in zip(plain, go, strict=False)]
    print(f"step  λ = 0 {statistics.median(plain):.4f} s, λ = 0.9 {statistics.median(go):.4f} s (medians)")
    print(f"ratio {sum(go) / sum(plain):.4f} of the means, {statistics.median(pairs):.4f} median of {len(pairs)} pairs")


if __name__ == "__main__":
    main()
