"""The measured claims: one command each, which writes a dated JSON and a chart to benchmarks/results/.

A speed is a ratio of two things that ran in turns on one machine: `measure` takes the turns, the medians and the notes
on hardware and versions. Nothing here is a test; no test has a time limit that decides.

measure      turns, ratios, the machine, files and charts
plain_ddp    what a user would write instead of Convoy: torch, DistributedDataParallel, in-memory batches
decode       CPU time of a random crop from an encoded photo, and of five other decoders
overhead     images/s of the strategy sync over plain_ddp
"""
