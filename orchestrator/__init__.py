"""Who does what: from an experiment to a plan, and from a plan to a run on Ray.

cli.py         every command; errors become one message and an exit code
__main__.py    `python -m orchestrator`, the same command for a job on a cluster
config/        experiment files -> frozen models, or all that is wrong with them
plan.py        (experiment, resources) -> Plan; pure
prepare.py     what is decided before a run starts: data opened, model sized, plan made
tuning.py      the algorithms of an experiment's convolutions: checked, measured
memory/        what a step needs of its device's memory, and how to make it fit
layer_formats.py  the formats of an experiment's layers: checked
explain.py     a plan as text
cluster_tuning.py  the measuring of them on each kind of node of a cluster
launch.py      Plan -> run; the only file that starts one
stopping.py    Ctrl-C and SIGTERM: commit at the next step boundary, then end
process.py     threads and memory of a process that computes as the plan says
ray_here.py    the Ray that a command uses, or starts for itself
results.py     what is said of a run that has ended
replica_groups.py  Ray Train's workers, each replaced without the others
served.py      runs that a parameter server leads: the server, its feeds, its workers
server_actors.py  what of a server runs in actors: without torch
worker.py      what runs in every worker: tables of names -> the parts of the loop
training/      the loop and its parts: plain torch, no Ray
parameter_server/  the server: plain classes over NumPy
strategies/    what happens between the backward pass and the next forward pass
models/        the networks that an experiment can name
failure.py     what to do when a run fails; pure
channel.py     how a worker reaches the run log, in this process or another
worker_log.py  a worker's end of it
run_log.py     the one writer of a run's records
run_folder.py  the files of a run, and the lock on them
live.py        the table that a person watches
data_commands.py  the commands that look at data: pack, check-data, stats, preview
arch.py        what a network costs, layer by layer
evaluation.py  a checkpoint of a run, evaluated
report/        a run folder -> one HTML page
errors.py      the failures that a user sees as one message
"""
