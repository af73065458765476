"""Text in CSV files that people open in a spreadsheet."""

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def neutral(cell: Any) -> Any:
    """The cell, with an apostrophe before text that a spreadsheet would compute.

    Names of files and records are of unknown origin, and '=HYPERLINK(...)' is one. Numbers stay.
    """
    if not isinstance(cell, str) or cell[:1] not in _FORMULA:
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
