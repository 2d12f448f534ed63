"""One colour a series, everywhere in a report; told apart without colour vision by shape and dash as well.

What enters: points. What leaves: class names that the page's style sheet gives colours (`s0` to `s5`, `base`,
`control`).
"""

from collections.abc import Sequence

from train.comparison.reading.points import Point

NUM_COLOURS = 6


def colour_classes(points: Sequence[Point], baseline: Point) -> dict[str, str]:
    """Return {point: class names}; controls have their series' colour and the class `control`."""
    series = list(dict.fromkeys(p.series for p in points if p is not baseline and not p.is_reference))
    classes = {}
    for point in points:
        if point is baseline:
            classes[point.name] = "base"
        elif point.is_reference:
            classes[point.name] = "base control"
        else:
            own = f"s{series.index(point.series) % NUM_COLOURS}"
            classes[point.name] = f"{own} control" if point.control_of else own
    return classes
