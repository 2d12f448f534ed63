#!/usr/bin/env bash
# Everything that a GPU has to prove, in one command; small on a CPU, where it runs in CI so that it cannot rot.
#
#   bash tests/gpu/run.sh --device cpu                  under two minutes; says what it skips
#   bash tests/gpu/run.sh                               on a bare GPU machine, all parts that fit into --minutes (9)
#   bash tests/gpu/run.sh --parts smoke exactness       some of them; the machine's limit is 10 minutes a command
#
# The machine: torch and transformers are installed (2.11 and 5.17), there is no network, and nothing may be installed
# over them. Which of packages.txt are missing is said before anything runs. Their wheels come with the uploads, in
# tests/gpu/wheels/1, 2, ... (tests/gpu/wheels.sh fetches them); where not all are there yet, they are kept, a line says so,
# and the status is 0. They go into a directory of their own, behind the machine's packages, so that its torch and
# transformers stay the ones that are used.
#
# Leaves results.json and results.md in $OUT, or in tests/gpu/out.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-tests/gpu/out}
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore
python=${PYTHON:-$(command -v python3 || command -v python)} # python3 first: an image may have another one beside it
# Behind the machine's own packages, and named like theirs, since dill, with which datasets makes fingerprints, packs
# modules whole that lie elsewhere.
room=${SITE:-/tmp/sft-go}
site=$room/site-packages
if compgen -G "tests/gpu/wheels/*/set" > /dev/null; then
  here=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
  for folder in tests/gpu/wheels/*/; do
    read -r number folders version made < "$folder/set"
    if [ "$version" != "$here" ]; then
      echo "tests/gpu/wheels: for Python $version, and $python is $here; fetch others: bash tests/gpu/wheels.sh $here" >&2
      exit 1
    fi
    kept=$room/wheels-$made # an upload may replace the folders of the one before
    mkdir -p "$kept"
    rm -rf "${kept:?}/$number"
    cp -r "$folder" "$kept/$number"
  done
  found=$(find "$kept" -mindepth 2 -maxdepth 2 -name set | wc -l)
  if [ "$found" -lt "$folders" ]; then
    echo "tests/gpu/wheels: $found of $folders folders are here; carry the others"
    exit 0
  fi
  if [ ! -e "$kept/unpacked" ]; then
    mkdir -p "$site" "$kept/whole"
    find "$kept" -path "$kept/whole" -prune -o -name '*.whl.00' -print | while read -r first; do # pieces, of any folder
      name=$(basename "${first%.00}")
      find "$kept" -path "$kept/whole" -prune -o -name "$name.[0-9][0-9]" -printf '%f %p\n' | sort | cut -d ' ' -f 2- \
        | xargs cat > "$kept/whole/$name"
    done
    find "$kept" -path "$kept/whole" -prune -o -name '*.whl' -exec cp {} "$kept/whole/" \;
    # No resolver: it would want to bring another torch.
    for wheel in "$kept"/whole/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    touch "$kept/unpacked"
  fi
fi
if [ -d "$site" ]; then export SFT_GO_SITE=$site; fi
exec "$python" -m tests.gpu.main --out "$out" "$@"
