"""Run the parts, keep what each finds, and write one JSON file and a table.

What enters: a device and the parts. What leaves: `results.json` with every check and figure, after each part, so that a
limit that ends the command loses one part at most; `results.md`, the same as tables. The exit status is 1 where a check
failed; a figure never fails.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PARTS = ("smoke", "exactness", "training", "scoring", "profile")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--size", default=None, help="a size of tests.benchmarks.train; default: 3B on a GPU, tiny else"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="no part is begun after this")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if site := os.environ.get("SFT_GO_SITE"):
        sys.path.append(site)  # behind the machine's own packages
    if absent := missing():
        version = "{}.{}".format(*sys.version_info)
        raise SystemExit(
            f"tests/gpu: Python {version} here has no {', '.join(absent)}. `bash tests/gpu/wheels.sh {version} "
            f"{' '.join(absent)}` fetches them where there is a network; carry them with this command."
        )
    import torch

    if options.device == "cpu":
        torch.set_num_threads(2)
    elif not torch.cuda.is_available():
        raise SystemExit("no CUDA device: --device cpu runs the same parts at a small size")
    began = time.perf_counter()
    results: dict[str, Any] = {"machine": machine(options.device), "parts": {}, "skipped": [], "failed": []}
    for name in options.parts:
        if time.perf_counter() - began > 60 * options.minutes:
            results["skipped"].append(f"{name}: {options.minutes:g} minutes were over; --parts {name} runs it")
            continue
        part_began = time.perf_counter()
        try:
            found = importlib.import_module(f"tests.gpu.{name}").run(options)
        except Exception as error:  # the others still run
            traceback.print_exc()
            found = {"checks": [(f"{name} runs", False, f"{type(error).__name__}: {error}")]}
        found["seconds"] = round(time.perf_counter() - part_began, 1)
        results["parts"][name] = found
        results["skipped"] += found.pop("skipped", [])
        results["failed"] += [check[0] for check in found.get("checks", []) if not check[1]]
        write(options.out, results)
        print(f"{name}: {found['seconds']} s", flush=True)
    write(options.out, results)
    print((options.out / "results.md").read_text(encoding="utf-8"))
    sys.exit(1 if results["failed"] else 0)


def missing() -> list[str]:
    """Return the modules of `packages.txt` that are not installed."""
    lines = Path(__file__).with_name("packages.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if importlib.util.find_spec(line.split()[0]) is None]


def machine(device: str) -> dict[str, Any]:
    """Return what it runs on."""
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def write(out: Path, results: dict[str, Any]) -> None:
    """Write both files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1, default=str), encoding="utf-8")
    lines = ["# " + ", ".join(f"{name} {value}" for name, value in results["machine"].items()), ""]
    for name, found in results["parts"].items():
        lines += [f"## {name} ({found.get('seconds', 0)} s)", "", "| | | |", "| --- | --- | --- |"]
        lines += [f"| {what} | {'ok' if ok else 'FAILED'} | {said} |" for what, ok, said in found.get("checks", [])]
        lines += [f"| {what} | {value} | {unit} |" for what, value, unit in found.get("figures", [])]
        lines.append("")
    lines += [f"- skipped: {what}" for what in results["skipped"]]
    lines += [f"- FAILED: {what}" for what in results["failed"]]
    (out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
