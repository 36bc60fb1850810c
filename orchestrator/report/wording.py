"""Numbers, durations, sizes and times as text; what is missing (NaN) is a dash."""

import math
from datetime import UTC, datetime

MISSING = "–"  # noqa: RUF001


def number(value: float) -> str:
    """Four significant digits, thousands grouped: 1,800 or 0.5213."""
    if not math.isfinite(value):
        return MISSING
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3g}"
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(digits, 0), 7)}f}"


def count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else MISSING


def duration(seconds: float) -> str:
    """From 0.31 ms to 3 d 4 h, in at most two units."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{1000 * seconds:.{1 if seconds >= 0.01 else 2 if seconds >= 1e-4 else 4}f} ms"
    if seconds < 119.95:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    whole = round(seconds)
    for unit, smaller, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size * (2 if unit == "h" else 1):
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    raise AssertionError(seconds)


def size(num_bytes: float) -> str:
    """Bytes in decimal units: 44.7 MB."""
    if not math.isfinite(num_bytes):
        return MISSING
    power = min(int(math.log10(num_bytes)) // 3, 4) if num_bytes >= 1 else 0
    return f"{num_bytes / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def moment(time: float) -> str:
    """Unix seconds as date and time, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if math.isfinite(time) else MISSING


def since(seconds: float) -> str:
    """Seconds after the start as h:mm:ss."""
    if not math.isfinite(seconds):
        return MISSING
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def tick(value: float, step: float) -> str:
    """A value on an axis whose ticks are `step` apart: 0.25, 40, 20k."""
    if value == 0:
        return "0"
    if step >= 1000:
        power = 9 if step >= 1e9 else 6 if step >= 1e6 else 3
        scaled, unit = value / 10**power, {3: "k", 6: "M", 9: "G"}[power]
        return f"{scaled:,.10g}{unit}" if abs(scaled) < 1e6 else f"{value:.2g}"
    return f"{value:,.{_decimals(step)}f}" if step >= 1e-4 else f"{value:.3g}"


def percent_tick(share: float, step: float) -> str:
    return f"{100 * share:.{_decimals(100 * step)}f}%"


def _decimals(step: float) -> int:
    """How many decimals tell multiples of `step` apart."""
    for decimals in range(8):
        if math.isclose(round(step, decimals), step, rel_tol=1e-6):
            return decimals
    return 8
