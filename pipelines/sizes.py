"""Numbers of bytes as people write them."""

import re

UNITS = {
    "B": 1,
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("kMGT")},
    **{f"{prefix}iB": 1024 ** (power + 1) for power, prefix in enumerate("KMGT")},
}


def size_in_bytes(text: str) -> int:
    """`256MiB` -> 268435456, `8GB` -> 8000000000.

    Raises: ValueError if it is no size, or none at all.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", text)
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"got {text!r}, must be a number and one of {', '.join(UNITS)}. Write a size such as 256MiB.")
    return size
