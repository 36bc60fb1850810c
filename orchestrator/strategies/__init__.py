"""How workers train one model together: all that happens between `loss.backward()` and the next forward pass.

base.py  what the loop asks of a strategy
lock_step.py  what strategies share whose workers all take the same steps
sync.py  synchronous data parallelism: every step is the step of the whole global batch
parameter_server.py  async, stale and backup: a worker that a server leads
flat.py  a model as one flat vector
local.py  local SGD: workers take steps by themselves, their weights are averaged now and then
"""
