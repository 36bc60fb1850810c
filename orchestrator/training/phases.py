"""The parts that every second of training is split into; the one list that loop, table and report share."""

PHASES = (
    "data_wait",  # the loop waited for the next batch
    "transfer",  # host to device, and uint8 to normalised floats
    "forward",
    "backward",  # gradients, without the part of communication that nothing hides
    "communication",  # waiting for other workers after the own gradients were done
    "optimizer",  # clipping, update, average of weights
    "checkpoint",
    "other",
)
