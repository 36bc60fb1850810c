"""How a flat vector of weights is cut into the shards of a parameter server.

Each is responsible for an equal part of the weights, as in DistBelief (Dean et al. 2012, section 4.1), and for a range
of keys, here positions, as in Li et al. 2014; whatever tensors the borders cut.
"""

ALIGNMENT = 16  # elements: 64 bytes, a cache line and an AVX-512 register
SHARD_BYTES = 100 * 2**20
MAX_SHARDS = 16


def shards_for(num_bytes: int) -> int:
    """The number of shards for weights of `num_bytes`: one for each started 100 MiB, at least 1, at most 16."""
    return min(max(-(-num_bytes // SHARD_BYTES), 1), MAX_SHARDS)


def partition(num_elements: int, num_shards: int) -> list[range]:
    """Cut [0, num_elements) into contiguous slices whose sizes differ by 16 at most.

    All sizes are multiples of 16 but the last shard's, which is what is left.
    Raises: ValueError if a shard would be empty.
    """
    num_units = -(-num_elements // ALIGNMENT)
    if not 1 <= num_shards <= num_units:
        raise ValueError(
            f"num_shards: got {num_shards} for {num_elements} weights, must be 1 to {num_units}: {ALIGNMENT} weights "
            "a shard. Use fewer shards."
        )
    bounds = [ALIGNMENT * (num_units * shard // num_shards) for shard in range(num_shards)]
    return [range(start, stop) for start, stop in zip(bounds, [*bounds[1:], num_elements], strict=True)]


def decayed_in(part: range, num_decayed: int) -> int:
    """How many of the vector's first `num_decayed` elements are in `part`."""
    return min(max(num_decayed - part.start, 0), len(part))
