"""A parameter server (Li et al. 2014; DistBelief, Dean et al. 2012): plain classes over NumPy, actors when launched.

Nothing here imports torch: a server starts in a fraction of a second.

server.py         the whole of it behind one lock: what workers call
client.py         what a worker calls it by
sharded_client.py a worker's side, where the weights lie in several shards
follower.py       a further shard: makes what the server has decided
setup.py          what a server is told, and whom it tells
kept.py           what it has, and how that is saved and had again
coordinator.py    who computes what next, which gradients make which update; decides, computes nothing, never waits
ledger.py         what it knows beside: what there is to do, who is here, what was trained
rules.py          when a gradient makes an update, and who may begin what: async, stale, backup
work_queue.py     the shares of an epoch: handed out, come back, done once each
evaluation.py     a round of evaluation, shared out like training
messages.py       what is said between workers and server
shard.py          the arithmetic: a slice of the weights
optimizer.py      SGD, AdaGrad, AdamW on flat arrays
partition.py      how the weights fall into shards
keeper.py         writes its snapshots while it works
snapshots.py      what a killed shard goes on from
transport.py      how numbers travel: by the object store, or in shared memory
wire.py           how gradients are written for the way
shared_memory.py  the direct way, for workers on the server's node
"""
