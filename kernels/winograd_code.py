"""The transforms of a Winograd convolution as C, written from the exact matrices of `winograd_points.py`.

Points come as a and -a, whose rows (of B^T and G) or columns (of A^T) differ in every second sign only: sums of even
and of odd places are made once for both, which halves the multiplications. native/winograd.c includes the text.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction

from kernels.shapes import Pair
from kernels.winograd_points import Rows, matrices

Term = tuple[Fraction, str]

_ONE_D = "INLINE void {name}(const vec in[{size}], vec out[{made}]) {{\n{lines}\n}}\n"


def transforms(results: Pair, taps: Pair) -> str:
    """C for tiles of `results` by filters of `taps`, heights first: sizes, and for each axis the five transforms.

    input (B^T), filter (G), output (A^T); spread (G) and gradient (A^T) of the weight's gradient, which is F(r, m) with
    the same points. An axis of one result and one tap stays as it is.
    """
    text = []
    for axis, m, r in zip(("H", "W"), results, taps, strict=True):
        text += [f"#define OUT_{axis} {m}\n", f"#define TAPS_{axis} {r}\n"]
        one, other = matrices(m, r), matrices(r, m)
        named = {
            "input": one.of_input,
            "filter": one.of_filter,
            "output": one.of_output,
            "spread": other.of_filter,
            "gradient": other.of_output,
        }
        for name, rows in named.items():
            text.append(function(f"{name}_{axis.lower()}", rows))
    return "\n".join(text)


def function(name: str, rows: Rows) -> str:
    """One C function: out = rows times in."""
    lines = list(_by_columns(rows) if _paired(_transposed(rows)) and not _paired(rows) else _by_rows(rows))
    return _ONE_D.format(name=name, size=len(rows[0]), made=len(rows), lines="\n".join(f"  {line}" for line in lines))


def _by_rows(rows: Rows) -> Iterator[str]:
    pairs = _pairs(rows)
    for first, second in pairs:
        for name, start in (("even", 0), ("odd", 1)):
            terms = [(rows[first][j], f"in[{j}]") for j in range(start, len(rows[0]), 2)]
            yield f"const vec {name}_{first} = {_sum(terms)};"
        yield f"out[{first}] = even_{first} + odd_{first};"
        yield f"out[{second}] = even_{first} - odd_{first};"
    for i in sorted(set(range(len(rows))) - {i for pair in pairs for i in pair}):
        yield f"out[{i}] = {_sum((value, f'in[{j}]') for j, value in enumerate(rows[i]))};"


def _by_columns(rows: Rows) -> Iterator[str]:
    columns = _transposed(rows)
    pairs = _pairs(columns)
    alone = sorted(set(range(len(columns))) - {j for pair in pairs for j in pair})
    for first, second in pairs:
        yield f"const vec plus_{first} = in[{first}] + in[{second}], minus_{first} = in[{first}] - in[{second}];"
    for i, row in enumerate(rows):
        of_pairs = [(row[first], f"{'minus' if i % 2 else 'plus'}_{first}") for first, _ in pairs]
        yield f"out[{i}] = {_sum([*((row[j], f'in[{j}]') for j in alone), *of_pairs])};"


def _pairs(rows: Rows) -> list[Pair]:
    """Neighbours that differ in every second sign only."""
    return [
        (i, i + 1)
        for i in range(1, len(rows) - 1, 2)
        if all(a == (-b if j % 2 else b) for j, (a, b) in enumerate(zip(rows[i], rows[i + 1], strict=True)))
        and rows[i] != rows[i + 1]
    ]


def _paired(rows: Rows) -> bool:
    return len(rows) > 2 and len(_pairs(rows)) == (len(rows) - 1) // 2


def _sum(terms: Iterable[Term]) -> str:
    """The sum of products, those by 1 first, so that all others can be fused with an addition."""
    present = sorted(((value, of) for value, of in terms if value), key=lambda term: term[0] != 1)
    text = " + ".join(of if value == 1 else f"{float(value)!r}f * {of}" for value, of in present)
    return text or "(vec){0}"


def _transposed(rows: Rows) -> Rows:
    return tuple(zip(*rows, strict=True))
