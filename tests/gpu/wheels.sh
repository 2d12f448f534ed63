#!/usr/bin/env bash
# Fetch what a GPU machine lacks, for tests/gpu/run.sh, in folders that fit into an upload each.
#
#   bash tests/gpu/wheels.sh [Python version, default 3.12] [modules, default all of packages.txt]
#   bash tests/gpu/wheels.sh 3.12 trl datasets dill multiprocess     an image that has the usual scientific packages
#
# The version is the machine's; `bash tests/gpu/run.sh` without wheels prints it with the modules that are missing there.
# Leaves tests/gpu/wheels/1, tests/gpu/wheels/2, ...: each at most 56 MiB (an upload carries 64, with the tree), a larger
# wheel cut into pieces. Carry one folder a command, each with `bash tests/gpu/run.sh`, one right after another (what an
# idle machine has kept is lost): it says how many are still to come, and starts with the last one. packages.txt names only
# what the parts import: no torch, no transformers, no ray, no llmlingua.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:-3.12}
shift || true
limit=$((56 * 1024 * 1024))
piece=$((20 * 1024 * 1024))
requirements=$(awk -v modules=" $* " 'modules == "  " || index(modules, " " $1 " ") {print $2}' packages.txt)
for module in "$@"; do
  grep -q "^$module " packages.txt || { echo "packages.txt has no $module" >&2; exit 1; }
done
rm -rf wheels
mkdir -p wheels/all
# shellcheck disable=SC2086  # a requirement a word
pip download --quiet --no-deps --dest wheels/all --only-binary :all: --python-version "$version" \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
  $requirements
for wheel in wheels/all/*.whl; do
  if [ "$(stat -c %s "$wheel")" -gt "$piece" ]; then
    split --bytes "$piece" --numeric-suffixes --suffix-length 2 "$wheel" "$wheel."
    rm "$wheel"
  fi
done
number=1 size=0
mkdir wheels/1
for file in wheels/all/*; do
  bytes=$(stat -c %s "$file")
  if [ $((size + bytes)) -gt "$limit" ]; then
    number=$((number + 1)) size=0
    mkdir "wheels/$number"
  fi
  size=$((size + bytes))
  mv "$file" "wheels/$number/"
done
rmdir wheels/all
made=$(date +%s)
for folder in wheels/*; do # for run.sh: which of how many, for which Python, and which belong together
  echo "$(basename "$folder") $number $version $made" > "$folder/set"
done
du -sh wheels/*
