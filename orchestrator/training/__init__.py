"""The training loop and its parts: plain torch, no Ray, the same in a test and on a cluster.

loop.py                 the loop; read this first
training.py             what one worker trains with, and where it says what happens
peak.py                 the peak of memory, measured
breakdown.py            what ends a run though no machine failed: NaN, unreadable samples
faults.py               what goes wrong on purpose: workers that wait or are killed
learner.py              the model and all that changes with it, to save and restore as one
optim.py                the optimizer of an experiment
shift_adamax.py         AdaMax by powers of two
offload.py              an optimizer whose state lies on the host
schedule.py             the learning rate of a step; pure
precision.py            in which arithmetic: autocast, loss scaling
formats.py              formats of numbers by layer, and rounding to them
moving_points.py        where the point of each tensor in dynamic fixed point is
float8.py               linear layers in fp8, by torchao
guard.py                wider formats for layers whose gradients do not fit
recompute.py            activation checkpointing: activations computed again in the backward pass
regularize.py           label smoothing, average of weights
losses.py               what is minimised, for each kind of target
tasks.py                how each kind of target is learned and judged: the table of losses and figures
measures.py             the figures by name: titles, which way is better
evaluate.py             loss and figures over all samples by all workers, exactly
progress.py             how far a run has come, as plain numbers
phases.py               the parts that every second is split into
accounting.py           the clock that splits it
checkpoint.py           what a checkpoint holds, and how it becomes files
checkpoint_manifest.py  what must be in a commit, byte for byte
checkpoint_store.py     where commits are, and which of them can be believed
atomic_folder.py        a folder that appears whole or not at all
"""
