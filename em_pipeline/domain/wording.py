"""Numbers of things in messages."""

from decimal import Decimal


def counted(number: int, noun: str, several: str = "") -> str:
    """`1 thread`, `2 threads`, `1,024 threads`; `several` is the plural where that is not `noun` and an s."""
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"


def figure(value: float, digits: int = 6) -> str:
    """`value` to so many significant digits, and to all before the point, never with an exponent."""
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    return f"{Decimal(f'{value:.{digits}g}'):f}"


def binary_size(number: float) -> str:
    """Bytes with a binary unit: `12 B`, `1.5 KiB`."""
    if number < 1024:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"
