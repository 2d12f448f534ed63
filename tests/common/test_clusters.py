"""What is said where Ray cannot be joined."""

import pytest

from common.clusters import unreachable


@pytest.mark.parametrize(
    ("error", "address", "expected"),
    [
        (ConnectionError("no route\nmore"), "10.0.0.1:6379", "--address 10.0.0.1:6379 could not be reached ("),
        (ConnectionError("no route\nmore"), "10.0.0.1:6379", "(ConnectionError: no route)."),
        (TimeoutError(), None, "a local Ray could not be started (TimeoutError: )."),  # without a message
    ],
)
def test_names_the_place_and_the_first_line(error, address, expected):
    told = str(unreachable(error, address, "Or walk."))
    assert expected in told
    assert told.endswith(" Or walk.")
    assert "more" not in told
    assert ("ray status" in told) is (address is not None)  # advice on clusters is for clusters
