#!/usr/bin/env bash
# Everything that a GPU has to prove, in one command; small on a CPU, where it runs in CI so that it cannot rot.
#
#   bash tests/gpu/run.sh --device cpu                  under two minutes; says what it skips
#   bash tests/gpu/run.sh                               on a bare GPU machine, all parts that fit into --minutes (9)
#   bash tests/gpu/run.sh --parts smoke exactness       some of them; the machine's limit is 10 minutes a command
#
# The machine: torch and transformers are installed (2.11 and 5.17), there is no network, and nothing may be installed
# over them. The other wheels come with the upload, in tests/gpu/wheels (see tests/gpu/wheels.sh, which fetches them and
# cuts what is larger than an upload into pieces). They go into a directory of their own, behind the machine's packages,
# so that its torch and transformers stay the ones that are used.
#
# Leaves results.json and results.md in $OUT, or in tests/gpu/out.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-tests/gpu/out}
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
python=${PYTHON:-python}
if compgen -G "tests/gpu/wheels/*" > /dev/null; then
  site=${SITE:-/tmp/sft-go-site}
  if [ ! -e "$site/.done" ]; then
    mkdir -p "$site" /tmp/sft-go-wheels
    for first in tests/gpu/wheels/*.whl.00; do # pieces of large wheels
      [ -e "$first" ] && cat "${first%.00}".?? > "/tmp/sft-go-wheels/$(basename "${first%.00}")"
    done
    cp tests/gpu/wheels/*.whl /tmp/sft-go-wheels/ 2> /dev/null || true
    # No resolver: it would want to bring another torch. What is missing shows as an import error, by name.
    for wheel in /tmp/sft-go-wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    touch "$site/.done"
  fi
  # Behind the machine's own packages: PYTHONPATH would go before them.
  export SFT_GO_SITE=$site
fi
exec "$python" -m tests.gpu.main --out "$out" "$@"
