"""What the numbers of a report mean, in the words of the report.

What enters: a `Comparison`. What leaves: paragraphs. Next: HTML and Markdown show them.
"""

from train.comparison.comparison import Comparison

HASH = 16  # characters of a hash that are shown


def method_paragraphs(comparison: Comparison) -> list[str]:
    """Return how means, intervals and tests were made."""
    return [
        "A point is a set of settings, its runs are repetitions with other seeds. Mean and standard deviation "
        "are over seeds; the interval "
        "of a mean is Student's t over them.",
        "A difference is paired: the same seed, and the same documents or questions, in both points. Its "
        "interval is for another seed and "
        "for other items at once: a hierarchical bootstrap that draws items with replacement (those that belong "
        "together at once, the same "
        "for both points and all seeds), with Student's t, n − 1 degrees of freedom, in place of drawing seeds: "
        "so few values, drawn again, give too narrow "
        "intervals. What the mean over seeds already holds of the items' scatter is counted once. In simulations "
        "of five seeds and "
        "200 items it covers the true difference in 93 to 97 of 100 cases with a seed effect, and in up to 98 "
        "without one.",
        "The test exchanges the two labels: item by item (the sign of an item's difference is drawn), and over "
        "seeds by Student's t, "
        "since sign flips of five seeds alone could never give a two-sided p below 1/16; that exact p is in the "
        "JSON as p_seeds. "
        "Corrected p-values are Holm's, over all comparisons of a table: the chance of calling anything in it "
        "better or worse by mistake is at most 5 %.",
        "A loss is the sum over held-out documents divided by their tokens. Values that are NaN are shown, never "
        "averaged over.",
    ]


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what was compared: shards, documents, tasks, versions, devices."""
    common = comparison.common
    rows = [("shards, manifest sha256", ", ".join(common.manifest_hashes) or "unknown")]
    if common.num_documents:
        rows.append(("held-out documents", f"{common.num_documents:,}, eval hash {common.eval_hash}"))
    rows += [(f"held-out documents, {name}", f"{number:,}") for name, number in common.other_sets.items()]
    for name, asked in list(common.tasks.items())[:80]:
        limit = "" if asked["limit"] is None else f", limit {asked['limit']}"
        words = f"version {asked['version']}, {asked['num_fewshot']} shots{limit}, {asked['items']:,} items"
        rows.append((f"task {name}", words))
    contents = [run.content for point in comparison.points for run in point.runs if run.content]
    for key in dict.fromkeys(name for content in contents for name in content.get("versions", {})):
        rows.append((key, ", ".join(dict.fromkeys(str(c.get("versions", {}).get(key)) for c in contents))))
    rows.append(("devices", ", ".join(dict.fromkeys(str(content.get("device")) for content in contents)) or "unknown"))
    return rows


def commands(comparison: Comparison) -> list[str]:
    """Return the command of every run, as it was typed."""
    runs = [run for point in comparison.points for run in point.runs if run.content.get("command")]
    return [_line(run.content["command"]) for run in runs]


def _line(words: list[str]) -> str:
    import shlex

    return shlex.join([str(words[0]).rsplit("/", 1)[-1], *map(str, words[1:])])
