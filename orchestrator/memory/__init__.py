"""What a step needs of its device's memory: predicted, fitted into a budget, and what to do when it was not enough.

forecast.py  the peak of an experiment, by a step without memory
live.py      bytes of all tensors that are there
blocks.py    what each module keeps for the backward pass, and what it costs to compute it again
fit.py       the modules to compute again under a budget
remedies.py  settings that would fit, for who has run out of memory
budget.py    the section `memory` checked: `auto` becomes modules, or the budget is too small
"""
