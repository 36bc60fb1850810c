"""The section `memory` of an experiment, checked against its model and a plan; what `auto` stands for."""

from orchestrator.config.experiment import Experiment
from orchestrator.errors import InputError
from orchestrator.memory.fit import choose
from orchestrator.memory.forecast import predict
from orchestrator.memory.remedies import remedies, told
from orchestrator.models.zoo import outline_of
from orchestrator.plan import Plan
from orchestrator.report.wording import size
from orchestrator.training.recompute import modules_of


def check_modules(experiment: Experiment, width: int) -> None:
    """Raises: InputError for a glob of memory.checkpoint that matches no module of the model."""
    globs = experiment.memory.checkpoint
    if not globs or globs == "auto":
        return
    try:
        modules_of(outline_of(experiment, width), globs)
    except ValueError as error:
        raise InputError(f"memory.checkpoint: {error}") from error


def within_budget(experiment: Experiment, plan: Plan) -> Experiment:
    """The experiment with the modules that `memory.checkpoint: auto` stands for.

    Raises: InputError if its predicted peak is above memory.budget, whatever is computed again.
    """
    budget = experiment.memory.budget
    if not budget:
        return experiment
    if experiment.memory.checkpoint == "auto":
        found, least = choose(experiment, plan, budget)
        if found is not None:
            return found[0]
        how = "whatever is computed again"
    else:
        least, how = predict(experiment, plan).peak, "with these settings"
        if least <= budget:
            return experiment
    raise InputError(
        f"memory.budget: got {size(budget)}, must be at least {size(least)}, which a worker is predicted to need "
        f"{how}. {told(remedies(experiment, plan, budget))}"
    )
