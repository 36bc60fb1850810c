"""What every section of an experiment is made from."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of an experiment: unknown keys are mistakes, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
