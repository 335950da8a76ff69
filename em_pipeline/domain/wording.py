"""Numbers of things in messages."""


def counted(number: int, noun: str, several: str = "") -> str:
    """`1 thread`, `2 threads`, `1,024 threads`; `several` is the plural where that is not `noun` and an s."""
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"
