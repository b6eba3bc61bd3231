"""How a report writes numbers: rounded for people, with units, never flattering."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

from rich.filesize import decimal

Write = Callable[[float], str]
"""How a number is written."""

SPACE = "\u00a0"  # between a number and its unit, so that no line breaks there
ABSENT = "–"

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None) -> str:
    """A number to three decimals, or to three significant digits if it is small or large."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 else short(value)


def short(value: float | None) -> str:
    """A number to three significant digits, powers of ten as such: ``10⁻⁵``, ``1.2 × 10⁹``."""
    if value is None:
        return ABSENT
    mantissa, separator, exponent = f"{value:.3g}".partition("e")
    if not separator:
        return mantissa
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa}{SPACE}×{SPACE}{power}"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of records, to be written in per cent."""
    return metric == "accuracy" or metric.endswith(("_accuracy", "_fraction"))


def metric_title(name: str) -> str:
    """A metric's name as a heading."""
    return "AUC" if name == "auc" else name.replace("_", " ").capitalize()


def metric(name: str, value: float | None) -> str:
    """A metric's value: shares in per cent, all else as a number."""
    if value is not None and math.isfinite(value) and is_share(name):
        return f"{value * 100:.1f}{SPACE}%"
    return number(value)


def epsilon_spent(value: float | None) -> str:
    """Privacy that is spent, rounded up: what is written down must still hold."""
    return ABSENT if value is None else _directed(value, math.ceil)


def epsilon_left(value: float | None) -> str:
    """Privacy that is left, rounded down."""
    return ABSENT if value is None else _directed(value, math.floor)


def _directed(value: float, direction: Callable[[float], int]) -> str:
    if not math.isfinite(value):
        return "unbounded" if value > 0 else ABSENT
    digits = 2 if value == 0 or abs(value) >= 0.01 else 4
    # A budget of 3 that was met to the last bit is 3.00, not 3.01.
    scaled = round(value * 10**digits, 6)
    return f"{direction(scaled) / 10**digits:.{digits}f}"


def size(count: float) -> str:
    """A number of bytes."""
    return decimal(round(count)).replace(" ", SPACE)


def duration(seconds: float | None) -> str:
    """A time span."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 1:
        return f"{seconds * 1000:.0f}{SPACE}ms"
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes:02}{SPACE}min"


def moment(unix_seconds: float) -> str:
    """A point in time, in UTC."""
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%d %H:%M} UTC"


def plural(count: int, noun: str) -> str:
    """``1 site``, ``4 sites``."""
    return f"{count}{SPACE}{noun}" if count == 1 else f"{count}{SPACE}{noun}s"
