"""From an experiment file to frozen models, or to everything that is wrong with it.

experiment.py  the models; composes the configs of the other packages
section.py     what all sections are made from
precision.py   the section `precision`
memory.py      the section `memory`
strategy.py    the sections `strategy` and `faults`
load.py        load_experiment, dump_experiment, ConfigError; the entry
document.py    YAML text -> plain values with the line of each
overrides.py   dotted.path=value from the command line, written over the file's
explain.py     what pydantic reports -> mistakes in the words of the file
allowed.py     what the JSON schema allows at a place, and what is near to a misspelt name
mistake.py     one mistake: where, which setting, what to do
schema.py      the JSON schema, for editors and for `allowed`
"""
