"""Values of options: how sizes are parsed."""

import pytest

from mqtool.cli.values import size
from mqtool.where import bare


@pytest.mark.parametrize("text", ["1B", "7kB", "7KiB", "20MB", "20MiB", "3GB", "3GiB", "1TB", "1TiB"])
def test_an_option_for_a_size_accepts_the_units_of_a_where_condition(text: str) -> None:
    """`bench --size` and `rpc-server --max-output` accept the units of sizes in `--where`, such as kB and KiB."""
    assert size(text) == bare(text).number


def test_an_option_for_a_size_accepts_short_units_and_numbers_without_a_unit() -> None:
    """In an option such as `bench --size`, a number without a unit is in bytes, and K, M, G and T mean KiB, MiB, GiB
    and TiB, in upper or lower case.
    """
    assert [size(each) for each in ("100", "64K", "64 kib", "2m")] == [100, 65536, 65536, 2 << 20]


@pytest.mark.parametrize("text", ["", "0", "0kB", "kB", "1XB", "1iB", "-1"])
def test_a_size_option_rejects_a_value_that_is_not_a_size(text: str) -> None:
    """If the value of an option such as `bench --size` is not a size greater than 0, the error shows the value and
    gives two examples of valid sizes.
    """
    with pytest.raises(ValueError, match=f"^'{text}' is not a size such as 64KiB or 1kB$"):
        size(text)
