#!/usr/bin/env bash
# Everything that a GPU has to prove, in one command; small on a CPU, where it runs in CI so that it cannot rot.
#
#   bash tests/gpu/run.sh --device cpu                  under two minutes; says what it skips
#   bash tests/gpu/run.sh                               on a bare GPU machine, all parts that fit into --minutes (9)
#   bash tests/gpu/run.sh --parts smoke exactness       some of them; the machine's limit is 10 minutes a command
#
# The machine: torch and transformers are installed (2.11 and 5.17), there is no network, and nothing may be installed
# over them. The other wheels come with the uploads, in tests/gpu/wheels/1, 2, ... (tests/gpu/wheels.sh fetches them); where
# not all are there yet, they are kept, a line says so, and the status is 0. They go into a directory of their own, behind
# the machine's packages, so that its torch and transformers stay the ones that are used.
#
# Leaves results.json and results.md in $OUT, or in tests/gpu/out.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-tests/gpu/out}
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
python=${PYTHON:-$(command -v python || command -v python3)}
if compgen -G "tests/gpu/wheels/*/folders" > /dev/null; then
  site=${SITE:-/tmp/sft-go-site}
  kept=$site.wheels # an upload may replace the folders of the one before
  mkdir -p "$site" "$kept"
  for folder in tests/gpu/wheels/*/; do
    cp -r "$folder" "$kept/"
    expected=$(cat "$folder/folders")
  done
  here=$(find "$kept" -mindepth 2 -maxdepth 2 -name folders | wc -l)
  if [ "$here" -lt "$expected" ]; then
    echo "tests/gpu/wheels: $here of $expected folders are here; carry the others"
    exit 0
  fi
  if [ ! -e "$site/.done" ]; then
    mkdir -p "$kept/whole"
    find "$kept" -path "$kept/whole" -prune -o -name '*.whl.00' -print | while read -r first; do # pieces, of any folder
      name=$(basename "${first%.00}")
      find "$kept" -path "$kept/whole" -prune -o -name "$name.[0-9][0-9]" -printf '%f %p\n' | sort | cut -d ' ' -f 2- \
        | xargs cat > "$kept/whole/$name"
    done
    find "$kept" -path "$kept/whole" -prune -o -name '*.whl' -exec cp {} "$kept/whole/" \;
    # No resolver: it would want to bring another torch. What is missing shows as an import error, by name.
    for wheel in "$kept"/whole/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    touch "$site/.done"
  fi
  # Behind the machine's own packages: PYTHONPATH would go before them.
  export SFT_GO_SITE=$site
fi
exec "$python" -m tests.gpu.main --out "$out" "$@"
