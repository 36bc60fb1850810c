"""Users' functions of a list of augmentations, tried out before anything starts."""

from collections.abc import Sequence

from pipelines.augment.function import Function
from pipelines.augment.program import Entry
from pipelines.augment.random_mix import RandomMix


def try_functions(augment: Sequence[Entry], channels: int, image_size: int) -> None:
    """Import every `function` and call it on a few images.

    Raises: ValueError that begins with `augment.INDEX` if one cannot be imported or does not do what it must.
    """
    for index, entry in enumerate(augment):
        path = f"augment.{index}.{entry.name}"
        inner = entry.of if isinstance(entry, RandomMix) else ()
        for where, one in ((path, entry), *((f"{path}.of.{i}.{one.name}", one) for i, one in enumerate(inner))):
            if isinstance(one, Function):
                try:
                    one.try_out(channels, image_size)
                except ValueError as error:
                    raise ValueError(f"{where}.{error}") from error
