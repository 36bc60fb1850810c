"""Convolution algorithms of an experiment: its `kernels` checked, its tables found, and `convoy tune`."""

import importlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from rich.table import Table as Printed

from kernels import dispatch, table, triton_kernels, tune
from kernels.algorithms import ALGORITHMS
from kernels.defaults import rules_here
from kernels.native.build import NotBuilt
from kernels.passes import AUTO, VENDOR
from kernels.shapes import ConvShape
from kernels.swap import replace_convs
from kernels.table import Device, Row, Table
from orchestrator.config.experiment import Experiment
from orchestrator.errors import InputError
from orchestrator.models.zoo import outline_of
from orchestrator.plan import Plan
from orchestrator.process import settle
from orchestrator.run_folder import RunFolder

FILE = "kernels.json"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def check_kernels(experiment: Experiment, width: int) -> dict[str, str]:
    """The algorithm of every convolution of the model, which puts out `width` numbers.

    Raises: InputError for an algorithm or a layer that does not exist, or that do not go together.
    """
    if experiment.kernels == {"default": VENDOR}:
        return {}
    try:
        return replace_convs(outline_of(experiment, width), experiment.kernels)
    except ValueError as error:
        raise InputError(f"kernels: {error}") from error


def kernel_tables(experiment: Experiment, plan: Plan, folder: RunFolder) -> tuple[dict[str, Any], ...]:
    """What a run's workers choose by, whatever their device: of the run's start, so that it goes on as it began."""
    if AUTO not in experiment.kernels.values():
        return ()
    path = folder.local / FILE
    if not path.exists():
        shapes = layer_shapes(experiment, plan)
        tables = [each.only(shapes.values()) for each in table.all_stored()]
        layers = {str(each.device): list(_chosen(experiment, each, shapes)) for each in tables}
        folder.write(FILE, json.dumps({"tables": [each.to_json() for each in tables], "layers": layers}))
    return tuple(json.loads(path.read_text())["tables"])


def layer_shapes(experiment: Experiment, plan: Plan) -> dict[str, ConvShape]:
    """Layer -> shape, as a worker meets it in a step."""
    data, batch = experiment.data, max(1, plan.share // experiment.train.accumulate)
    images = torch.empty(batch, data.channels, data.image_size, data.image_size, device="meta")
    with torch.device("meta"):
        return tune.shapes_of(outline_of(experiment, plan.target.width), images)


def tune_here(
    experiment: Experiment, plan: Plan, shapes: dict[str, ConvShape], *, seconds: float
) -> Iterator[tuple[Device, Iterator[Row]]]:
    """Measure every pass of every distinct shape on this machine. `seconds`: for each pass of a shape."""
    rows = measure_layers(experiment, plan, shapes, seconds=seconds)
    yield device_here(plan), kept(device_here(plan), rows)


def measure_layers(
    experiment: Experiment, plan: Plan, shapes: dict[str, ConvShape], *, seconds: float
) -> Iterator[Row]:
    """The rows of this machine, as a worker computes."""
    settle(plan)
    images, device = _images(experiment, plan.device), torch.device(plan.device)
    dtype: torch.dtype = getattr(torch, images.dtype)
    yield from tune.tune_all(shapes.values(), dtype=dtype, device=device, layout=images.layout, seconds=seconds)


def device_here(plan: Plan) -> Device:
    """What a worker computes on if it runs here."""
    settle(plan)
    return Device.of(torch.device(plan.device))


def kept(device: Device, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each kept on this machine as soon as it is known, in the table of that device."""
    for row in rows:
        table.store(table.stored(device).merged((row,)))
        yield row


def printed(rows: list[Row], shapes: dict[str, ConvShape]) -> Printed:
    """The rows as people read them, and what a step's convolutions take in all, layers of one shape counted each."""
    layers = Counter(shapes.values())
    first = {shape: name for name, shape in reversed(shapes.items())}
    columns = ("layer", "shape", "pass", "vendor, ms", "chosen", "ms", "ratio", "error", "extra MB")
    result = Printed(*columns, box=None, header_style="bold")
    for column in result.columns:
        column.no_wrap = True
    for column in result.columns[3:]:
        column.justify = "right"
    for row in rows:
        more = f" +{layers[row.shape] - 1}" if layers[row.shape] > 1 else ""
        result.add_row(
            first[row.shape] + more,
            _words(row.shape),
            row.which.replace("_gradient", "'s gradient"),
            f"{row.vendor_s * 1e3:.2f}",
            row.algorithm,
            f"{row.seconds[row.algorithm] * 1e3:.2f}",
            f"{row.ratio:.2f}",
            f"{row.errors[row.algorithm]:.0e}",
            f"{row.extra_bytes[row.algorithm] / 1e6:.1f}" if row.extra_bytes else "",
        )
    vendor, chosen = (
        sum(layers[row.shape] * seconds for row, seconds in zip(rows, times, strict=True))
        for times in ([row.vendor_s for row in rows], [row.seconds[row.algorithm] for row in rows])
    )
    result.add_section()
    ratio = f"{vendor / chosen:.2f}" if chosen else ""
    result.add_row("in all", "", "", f"{vendor * 1e3:.2f}", "", f"{chosen * 1e3:.2f}", ratio, "", "")
    return result


def algorithms_here() -> Iterator[str]:
    """A line for each algorithm, where native code is not had why, what it is on GPUs, and a line for each table."""
    width = max(map(len, ALGORITHMS))
    for name in ALGORITHMS:
        module = importlib.import_module(f"kernels.{name.partition('_')[0]}")
        title = (module.__doc__ or "").splitlines()[0]
        yield f"{name:<{width}}  {title}"
        try:
            if load := getattr(module, "load_library", None):
                load()
        except NotBuilt as reason:
            yield f"{'':<{width}}  without native code, many times slower: {reason}"
        if name in triton_kernels.TWINS:
            yield f"{'':<{width}}  on GPUs: {_on_gpus(name)}"
    yield from (f"tuned: {line}" for line in measured())
    yield from (f"auto without measurement: {rule}" for rule in rules_here())
    yield "auto else: what PyTorch chooses"


def chosen_by(experiment: Experiment, plan: Plan) -> str:
    """By what `auto` would choose the passes of all layers that it computes, on this machine."""
    algorithms = check_kernels(experiment, plan.target.width)
    entries = dispatch.entries_of(table.stored(device_here(plan)).rows)
    images = _images(experiment, plan.device)
    counts = Counter(
        dispatch.chosen(entries, which, shape, images)[1]
        for name, shape in layer_shapes(experiment, plan).items()
        if algorithms.get(name) == AUTO
        for which in tune.PASSES
    )
    kinds = {"table": "measured", "defaults": "by defaults", "vendor": "the vendor's"}
    return ", ".join(f"{counts[kind]} {words}" for kind, words in kinds.items())


def _on_gpus(name: str) -> str:
    """What computes an algorithm that has a twin in Triton, and where that was measured."""
    devices = [
        each.device.name
        for each in table.all_stored()
        if each.device.threads == 0 and any(name in row.seconds for row in each.rows)
    ]
    measured_on = f"measured on {', '.join(devices)}" if devices else "not yet measured"
    if not torch.cuda.is_available():
        here = "no GPU here"
    elif lacks := triton_kernels.missing(torch.device("cuda")):
        here = f"here torch, many times slower: {lacks}"
    else:
        here = "used here"
    return f"Triton, {measured_on}; {here}"


def measured() -> Iterator[str]:
    """A line for each device that was measured."""
    yield from (f"{each.device}: {len(each.rows)} passes" for each in table.all_stored())


def _chosen(experiment: Experiment, measured: Table, shapes: dict[str, ConvShape]) -> Iterator[dict[str, Any]]:
    """For the report: of each pass of each distinct shape, what was chosen on a device, and the times."""
    entries = dispatch.entries_of(measured.rows)
    for shape in dict.fromkeys(shapes.values()):
        for which in tune.PASSES:
            if row := dispatch.found(entries, which, shape, _images(experiment)):
                yield {
                    "layers": [name for name, each in shapes.items() if each == shape],
                    "shape": _words(shape),
                    "pass": which,
                    "algorithm": row.algorithm,
                    "seconds": row.seconds[row.algorithm],
                    "vendor_s": row.vendor_s,
                }


def _images(experiment: Experiment, device: str = "cpu") -> dispatch.Images:
    """As what images come to the convolutions."""
    layout = "nhwc" if experiment.train.channels_last else "nchw"
    return dispatch.Images(DTYPES.get(experiment.precision.default.name, "float32"), layout, device)


def _words(shape: ConvShape) -> str:
    extras = ["linear"] if shape.linear else []
    extras += [f"stride {shape.stride[0]}"] if shape.stride != (1, 1) else []
    extras += [f"groups {shape.groups}"] if shape.groups > 1 else []
    extras += [f"dilation {shape.dilation[0]}"] if shape.dilation != (1, 1) else []
    sizes = f"{shape.n}x{shape.c}x{shape.h}x{shape.w} to {shape.k}, {shape.r}x{shape.s}"
    return ", ".join([sizes, *extras])
