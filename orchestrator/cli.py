"""The `convoy` command. Every failure ends in one message and an exit code; the traceback is behind --debug.

Exit codes: 0 the run finished or was stopped and committed; 1 it failed, or data that was looked at has bad samples;
2 the input cannot work; 130 interrupted before there was anything to commit, or while data was looked at or packed.
"""

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from orchestrator.config.experiment import Experiment
from orchestrator.config.load import dump_experiment, load_experiment
from orchestrator.config.mistake import either
from orchestrator.config.schema import experiment_schema
from orchestrator.errors import InputError, RunError
from orchestrator.run_folder import RunFolder
from orchestrator.training.measures import MEASURES

INTERRUPTED = 130
TABLE_WIDTH = 140  # at least, of what tune prints

app = typer.Typer(
    help="Train convolutional networks on Ray: one experiment file on a laptop and on a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Target = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment file, or the folder of a run.")]
Folder = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/digits.")]
Newest = Annotated[bool, typer.Option("--newest", help="The newest checkpoint instead of the best.")]
PackedForm = Annotated[bool, typer.Option("--packed", help="Keep the weights of binary layers as bits.")]
Data = Annotated[str, typer.Argument(metavar="SOURCE", help="A source of samples, such as imagefolder:PATH.")]
Part = Annotated[str, typer.Option("--split", help="Which part of a source that has parts: train or val.")]
Parallel = Annotated[int, typer.Option(min=0, help="How many work at a time; 0 is the number of CPUs.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.epochs=5.")
]


@app.command()
def train(
    experiment: Target,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the folder.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print experiment and plan; start nothing.")] = False,
) -> None:
    """Train an experiment, or go on with a run."""
    if resume and overwrite:
        raise InputError("--resume, --overwrite: got both, must be one of them. Choose whether to keep what is there.")
    chosen = _experiment(experiment, overrides or [])
    # ray takes seconds to import: not before the experiment has been read
    from orchestrator import launch, prepare
    from orchestrator.explain import explain_plan
    from orchestrator.live import watching

    if explain:
        resources = prepare.resources_here()
        prepared = prepare.prepare(chosen, resources)
        print(dump_experiment(chosen))
        print(explain_plan(prepared.experiment, prepared.plan, prepared.model, resources, prepared.forecast))
        return
    result = launch.run(chosen, resume=resume, overwrite=overwrite, watch=watching)
    best_by = MEASURES[result["best_by"]]
    value = result[f"val_{best_by.name}"]
    figure = "none yet" if value is None else best_by.text(value)
    print(
        f"{result['status']}: validation {best_by.title} {figure} after {result['epochs']} epochs, "
        f"{result['steps']} steps, {result['wall_s']:.0f} s"
    )
    if result["status"] == "stopped":
        print(f"go on: convoy train {shlex.quote(chosen.run.path)} --resume")
    print(f"report: {RunFolder(chosen.run.path).local / 'report.html'}")


@app.command()
def evaluate(
    run: Folder,
    newest: Newest = False,
    packed: PackedForm = False,
) -> None:
    """Evaluate a run's best checkpoint on its validation samples."""
    folder = _run_folder(run)
    chosen = _of_run(folder, [])
    from orchestrator.evaluation import evaluate_run, in_words
    from orchestrator.prepare import resources_here

    figures = evaluate_run(folder, chosen, resources_here(), newest=newest, packed=packed)
    for line in (*figures["skipped"], *figures["replaced"]):
        print(line, file=sys.stderr)
    print(in_words(figures))


@app.command()
def export(
    run: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, such as digits.safetensors.")],
    newest: Newest = False,
    packed: PackedForm = False,
) -> None:
    """Write the weights of a run's best checkpoint to one file of safetensors."""
    folder = _run_folder(run)
    chosen = _of_run(folder, [])
    from orchestrator.evaluation import export_run
    from orchestrator.prepare import resources_here

    print(export_run(folder, chosen, resources_here(), file, newest=newest, packed=packed))


@app.command()
def report(run: Folder) -> None:
    """Write report.html of a run: one file that needs no network."""
    from orchestrator.report.build import write_report

    folder = _run_folder(run)
    print(f"report: {write_report(folder.local)}")
    folder.upload()


@app.command()
def pack(
    source: Data,
    dest: Annotated[str, typer.Argument(metavar="DEST", help="The folder for the shards.")],
    *,
    short_side: Annotated[int, typer.Option(min=0, max=65535, help="Scale larger images down to this.")] = 0,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality of images that are scaled.")] = 90,
    raw: Annotated[int, typer.Option(min=0, max=4096, help="Store the centre as raw pixels of this size.")] = 0,
    shard_size: Annotated[str, typer.Option(help="About how large a shard becomes.")] = "256MiB",
    workers: Parallel = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Read all back and compare checksums.")] = False,
    split: Part = "train",
) -> None:
    """Pack a source into shards; go on where an earlier packing stopped."""
    from orchestrator.data_commands import pack_source

    form = {"short_side": short_side, "quality": quality, "raw": raw}
    raise typer.Exit(pack_source((source, split), dest, form, shard_size, workers=workers, verify=verify))


@app.command("check-data")
def check_data(
    source: Data,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    threads: Parallel = 0,
    split: Part = "train",
) -> None:
    """Read and decode every sample of a source, and list those that fail."""
    from orchestrator.data_commands import check_source

    raise typer.Exit(check_source((source, split), threads=threads, as_json=as_json))


@app.command()
def stats(
    source: Data,
    out: Annotated[str, typer.Option(help="Write a page too, such as stats.html.")] = "",
    image_size: Annotated[int, typer.Option(min=0, max=4096, help="Take colours at this size; 0 chooses.")] = 0,
    colour_samples: Annotated[int, typer.Option(min=1, help="Take colours of at most so many samples.")] = 10_000,
    threads: Parallel = 0,
    split: Part = "train",
) -> None:
    """Count classes, sizes, colours and duplicates of a source."""
    from orchestrator.data_commands import show_stats

    show_stats((source, split), out, image_size, colour_samples, threads=threads)


@app.command()
def preview(
    experiment: Target,
    overrides: Overrides = None,
    *,
    out: Annotated[str, typer.Option(help="The image file to write.")] = "preview.png",
    samples: Annotated[int, typer.Option(min=1, max=100, help="How many samples to show.")] = 8,
    epochs: Annotated[int, typer.Option(min=1, max=20, help="How many epochs of each.")] = 5,
) -> None:
    """Draw samples as they are and as training will see them, pixel for pixel."""
    chosen = _experiment(experiment, overrides or [])
    from orchestrator.data_commands import write_preview

    print(f"preview: {write_preview(chosen, out, samples=samples, epochs=epochs)}")


@app.command()
def tune(
    experiment: Target,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each pass of a shape, after a first try of all.")] = 0.5,
) -> None:
    """Measure which convolution algorithm is fastest for each layer, here or on each kind of node."""
    chosen = _experiment(experiment, overrides or [])
    from orchestrator import cluster_tuning, prepare, tuning

    console = Console(width=max(Console().width, TABLE_WIDTH))
    with cluster_tuning.connected(chosen) as on_cluster:
        plan = prepare.prepare(chosen, prepare.resources_here()).plan
        shapes = tuning.layer_shapes(chosen, plan)
        measure = cluster_tuning.tune_nodes if on_cluster else tuning.tune_here
        for device, measured in measure(chosen, plan, shapes, seconds=seconds):
            with Progress(console=Console(stderr=True), transient=True) as progress:
                rows = list(progress.track(measured, total=3 * len(set(shapes.values())), description="passes"))
            console.print(f"{device}", highlight=False)
            console.print(tuning.printed(rows, shapes))


@app.command()
def kernels() -> None:
    """List the convolution algorithms, what they need here, and what has been measured."""
    from orchestrator.tuning import algorithms_here

    for line in algorithms_here():
        print(line)


@app.command()
def arch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network such as resnet50, an experiment, a run.")],
    overrides: Overrides = None,
    *,
    images: Annotated[str, typer.Option("--input", help="The images, such as 3x224x224.")] = "auto",
    classes: Annotated[int, typer.Option(min=0, help="How many classes; 0 asks the data, 1000 without.")] = 0,
    rewrite: Annotated[str, typer.Option(help="Show the layers rewritten, such as by factorize.")] = "",
    where: Annotated[str, typer.Option(help="Which convolutions to rewrite: a glob over their names.")] = "",
) -> None:
    """Print what a network costs by layer, and what rewrites save."""
    from orchestrator.arch import CLASSES_OF_NAME, architecture, experiment_of_name, is_name, num_classes_of
    from orchestrator.arch import size_overrides as of_size

    chosen_by_name = is_name(model)
    asked = {"name": rewrite, "where": where}
    written = [f"model.rewrite.{key}={json.dumps(value)}" for key, value in asked.items() if value]
    everything = [*(overrides or []), *of_size(images), *written]
    chosen = experiment_of_name(model, everything) if chosen_by_name else _experiment(model, everything)
    print(architecture(chosen, classes or (CLASSES_OF_NAME if chosen_by_name else num_classes_of(chosen))))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as overhead or pipeline; then its options.")] = "",
) -> None:
    """List the repository's benchmarks, or run one: benchmarks/NAME.py. Its options: convoy bench NAME -- --help."""
    folder = Path(__file__).parent.parent / "benchmarks"
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.py"))}
    about = {stem: ast.get_docstring(ast.parse(text)) or "" for stem, text in texts.items() if "__main__" in text}
    if not name and about:
        for stem, docstring in about.items():
            print(f"{stem:12}{docstring.splitlines()[0]}")
        return
    if name not in about:
        there = f"must be {either(list(about))}" if about else "but there are none beside this installation"
        raise InputError(f"NAME: got {name or 'none'}, {there}. Run it in a clone of the repository.")
    raise typer.Exit(subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *context.args], cwd=folder.parent))


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    print(json.dumps(experiment_schema(), indent=2))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"convoy {version('convoy-train')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train convolutional networks on Ray: one experiment file on a laptop and on a cluster."""
    del debug, show_version


def _experiment(target: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of a file, or of a run whose folder is given."""
    if "://" in target or Path(target).is_dir():
        return _of_run(_run_folder(target), overrides)
    return load_experiment(target, overrides)


def _run_folder(path: str) -> RunFolder:
    folder = RunFolder(path)
    if not folder.has_run:
        raise InputError(
            f"RUN: got {path}, which holds no run (no experiment.yaml). Give a folder such as runs/digits."
        )
    return folder


def _of_run(folder: RunFolder, overrides: Sequence[str]) -> Experiment:
    """A run's own experiment; the folder is where it lies now, whatever it was called then."""
    return load_experiment(str(folder.local / "experiment.yaml"), [*overrides, f"run.folder={json.dumps(folder.path)}"])


def main() -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        code = app(args=arguments, standalone_mode=False)  # what typer.Exit carries
    except (InputError, RunError) as error:
        if debug:
            raise
        print(f"convoy: {error}", file=sys.stderr)
        _leave(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("convoy: interrupted; nothing was committed", file=sys.stderr)
        _leave(INTERRUPTED)
    except Exception as error:
        _leave(_foreign(error, debug=debug))
    _leave(code if isinstance(code, int) else 0)


def _foreign(error: Exception, *, debug: bool) -> int:
    """The exit code of an error that is not ours: a usage error of the command line, or a defect."""
    if hasattr(error, "exit_code") and hasattr(error, "show"):
        error.show()
        return int(error.exit_code)
    if debug:
        raise error
    print(f"convoy: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
    return 1


def _leave(code: int) -> Any:
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(code) if code else SystemExit(os.EX_OK)
