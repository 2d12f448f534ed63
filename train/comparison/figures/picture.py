"""The differences from the baseline as one picture, for a README or a paper.

What enters: a `Comparison`. What leaves: a PNG, SVG or PDF file, made with matplotlib; the report's own figures are
part of its HTML.
"""

from pathlib import Path
from typing import Any

from common.files import atomic_path
from train.comparison.comparison import Comparison
from train.comparison.pairing import Difference
from train.comparison.reports.numbers import difference_unit

PANEL = 3.4  # inches; a row of points takes ROW of them
ROW = 0.27
ARM, CONTROL = "#1f5fa8", "#8a8a8a"


def draw_differences(path: Path, comparison: Comparison) -> None:
    """Draw a panel for each column of losses (of the headline, where it is none), a row a point, and write the file.

    The marks are differences paired by seed and item, the lines their 95 % intervals. Hollow and grey: permuted
    controls; a star: holds after the correction over the whole main table.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        [d for d in comparison.family("baseline") if d.column is column and d.estimate.difference is not None]
        for column in comparison.figure_columns
    ]
    panels = [panel for panel in panels if panel]
    names = list(dict.fromkeys(d.point for panel in panels for d in panel))
    controls = {point.name for point in comparison.points if point.control_of}
    size = (1.6 + PANEL * max(len(panels), 1), 1.1 + ROW * len(names))
    with pyplot.rc_context({"svg.hashsalt": "sft-go", "font.size": 9}):
        figure, axes = pyplot.subplots(
            1, max(len(panels), 1), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for place, panel in zip(axes[0], panels, strict=False):
            column = panel[0].column
            for d in panel:
                _mark(place, d, names.index(d.point), d.point in controls)
            better = "right" if column.better == "higher" else "left"
            unit = f" ({difference_unit(column)})" if column.unit else ""
            place.axvline(0.0, color="black", linewidth=0.8, zorder=0)
            place.set(title=column.title, xlabel=f"difference from {comparison.baseline.name}{unit}\nbetter: {better}")
            place.grid(axis="x", alpha=0.25, linewidth=0.6)
            place.spines[["top", "right", "left"]].set_visible(False)
            place.tick_params(axis="y", length=0)
        axes[0][0].set_yticks(range(len(names)), names)
        axes[0][0].set_ylim(len(names) - 0.5, -0.5)
        form = path.suffix.lstrip(".").lower()
        with atomic_path(path) as temporary:
            about = {"Date": None} if form == "svg" else {"CreationDate": None} if form == "pdf" else {}
            figure.savefig(temporary, format=form, dpi=160, metadata=about)
        pyplot.close(figure)


def _mark(place: Any, d: Difference, row: int, is_control: bool) -> None:
    scale = d.column.scale
    colour = CONTROL if is_control else ARM
    if d.estimate.low is not None:
        place.plot([d.estimate.low * scale, d.estimate.high * scale], [row, row], color=colour, linewidth=1.4)
    place.plot(
        [d.estimate.difference * scale],
        [row],
        "*" if d.holds else "o",
        color=colour,
        markersize=10 if d.holds else 5.5,
        markerfacecolor="white" if is_control else colour,
        gid=f"{d.column.key}:{d.point}",
    )
