"""By which figures a network is judged: their names in the files of a run, their names for people, which way is better.

The order is that of tables; how each is computed says `tasks.py`. No torch here: reports need only this.
"""

import math
from dataclasses import dataclass

Figures = dict[str, float | None]  # by name; None where a figure is not defined, as precision without a positive


@dataclass(frozen=True)
class Measure:
    """`name`: in metrics.jsonl, after `train_` or `val_`; `title`, `short`: for people. `share`: from 0 to 1."""

    name: str
    title: str
    short: str
    share: bool
    higher_is_better: bool

    def text(self, value: float | None) -> str:
        """For a terminal: `98.06%`, or `0.1234`; a dash if there is none."""
        if value is None or math.isnan(value):
            return "-"
        return f"{value:.2%}" if self.share else f"{value:.4g}"

    def merit(self, value: float) -> float:
        """Larger is better."""
        return value if self.higher_is_better else -value

    def better(self, one: float | None, other: float | None) -> float | None:
        """The better of two figures, of which either may be missing."""
        return max((value for value in (one, other) if value is not None), key=self.merit, default=None)


def prefixed(prefix: str, figures: Figures) -> Figures:
    """The figures as a record names them: `val_accuracy`."""
    return {prefix + name: value for name, value in figures.items()}


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("accuracy", "accuracy", "acc.", share=True, higher_is_better=True),
        Measure("mean_average_precision", "mAP", "mAP", share=True, higher_is_better=True),
        Measure("f1", "F1", "F1", share=True, higher_is_better=True),
        Measure("exact_match", "exact match", "exact", share=True, higher_is_better=True),
        Measure("rmse", "RMSE", "RMSE", share=False, higher_is_better=False),
        Measure("mae", "MAE", "MAE", share=False, higher_is_better=False),
        Measure("r2", "R²", "R²", share=False, higher_is_better=True),
    )
}
