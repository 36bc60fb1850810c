"""How workers train one model together: all that happens between `loss.backward()` and the next forward pass.

base.py  what the loop asks of a strategy
sync.py  synchronous data parallelism: every step is the step of the whole global batch
"""
