#!/usr/bin/env bash
# Fetch what the GPU machine lacks, for tests/gpu/run.sh, and cut wheels larger than an upload into pieces.
#
#   bash tests/gpu/wheels.sh [python version, default 3.11]
#
# One upload carries 64 MiB at most, so ray (about 70 MiB) and pyarrow (about 45 MiB) do not go together: run.sh takes
# what is there, and goes on where an earlier upload left its directory. The parts here need no ray.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:-3.11}
mkdir -p wheels
pip download --quiet --no-deps --dest wheels --only-binary :all: --python-version "$version" \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
  trl==1.16.0 accelerate==1.15.0 datasets pyarrow peft dill multiprocess xxhash fsspec pandas python-dateutil pytz tzdata \
  six llmlingua==0.2.2 tiktoken nltk joblib scikit-learn scipy threadpoolctl matplotlib contourpy cycler fonttools \
  kiwisolver pillow pyparsing psutil rich typer shellingham httpx
limit=$((40 * 1024 * 1024))
for wheel in wheels/*.whl; do
  if [ "$(stat -c %s "$wheel")" -gt "$limit" ]; then
    split --bytes "$limit" --numeric-suffixes --suffix-length 2 "$wheel" "$wheel."
    rm "$wheel"
  fi
done
du -sh wheels
find wheels -type f -printf '%s %p\n' | sort -n | tail -5
