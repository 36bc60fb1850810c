"""Draw the report of a run: one HTML file that needs no network, no script and no library to be read."""

import os
from pathlib import Path

from orchestrator.report.page import page
from orchestrator.report.record import read_record


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the run in `folder`, finished or not, to `out` (default: report.html in it).

    Returns the path of the page. The page is replaced as a whole, so a reader never sees half of one.
    Raises: InputError if `folder` is no folder; OSError if `out` cannot be written.
    """
    out = folder / "report.html" if out is None else out
    text = page(read_record(folder))
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(out)
