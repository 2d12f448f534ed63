#!/usr/bin/env bash
# Fetch what the GPU machine lacks, for tests/gpu/run.sh, in folders that fit into an upload each.
#
#   bash tests/gpu/wheels.sh [python version, default 3.11]
#
# Leaves tests/gpu/wheels/1, tests/gpu/wheels/2, ...: each at most 60 MiB (an upload carries 64), a larger wheel cut into
# pieces. Carry one folder a command, each with `bash tests/gpu/run.sh`, which says how many are still to come and starts
# with the last one. Only what the parts import is fetched: no ray, no llmlingua.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:-3.11}
limit=$((60 * 1024 * 1024))
piece=$((20 * 1024 * 1024))
rm -rf wheels
mkdir -p wheels/all
pip download --quiet --no-deps --dest wheels/all --only-binary :all: --python-version "$version" \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
  trl==1.16.0 accelerate==1.15.0 'datasets>=4.7,<6' 'pyarrow>=20,<27' peft dill multiprocess xxhash fsspec pandas \
  python-dateutil pytz tzdata six scikit-learn joblib scipy threadpoolctl psutil rich typer shellingham httpx \
  pygments markdown-it-py mdurl pytest pluggy iniconfig
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
for folder in wheels/*; do echo "$number" > "$folder/folders"; done # how many there are, for run.sh
du -sh wheels/*
