"""The house rules that a machine can check: sizes, maps of folders, and what must not be in a file.

Import directions are contracts in pyproject.toml, which `make lint` checks; ruff refuses bare excepts, star imports
and unused names.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(
    init.parent for top in ("orchestrator", "pipelines", "kernels") for init in (ROOT / top).rglob("__init__.py")
)
CODE = sorted(
    path
    for top in ("orchestrator", "pipelines", "kernels", "tests", "benchmarks")
    for path in (ROOT / top).rglob("*.py")
)

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 6

# What exceeds the limits, since when and why. What no longer does must leave the list.
EXCEPTIONS = {
    "tests/unit/test_report.py more than 350 lines": "2026-11: one subject; to be split",
    "kernels/conv.py conv2d: 7 parameters by position": "2026-11: those of torch.nn.functional.conv2d",
}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def excesses(source: str) -> Iterator[str]:
    """What exceeds the limits in a file, without counts that change with every edit."""
    if source.count("\n") > MAX_FILE_LINES:
        yield f"more than {MAX_FILE_LINES} lines"
    for function in functions(ast.parse(source)):
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES:
            yield f"{function.name}: more than {MAX_FUNCTION_LINES} lines"
        if (count := num_positional(function)) > MAX_POSITIONAL:
            yield f"{function.name}: {count} parameters by position"


def test_files_and_functions_keep_to_the_limits_but_for_the_listed_exceptions() -> None:
    found = {f"{path.relative_to(ROOT)} {excess}" for path in CODE for excess in excesses(path.read_text())}
    assert sorted(found - EXCEPTIONS.keys()) == [], "too large; split it, or list it with a date and a reason"
    assert sorted(EXCEPTIONS.keys() - found) == [], "no longer too large; take it off the list"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n" * 350, []),
        ("x = 1\n" * 351, ["more than 350 lines"]),
        ("def f(a, b, c, d, e, g, *, h): ...\n", []),
        ("def f(a, /, b, c, d, e, g, h): ...\n", ["f: 7 parameters by position"]),
        ("class A:\n    def f(self, a, b, c, d, e, g): ...\n", []),
        ("def f():\n" + "    x = 1\n" * 59, []),
        ("async def f():\n" + "    x = 1\n" * 60, ["f: more than 60 lines"]),
    ],
)
def test_the_limits_are_measured(source: str, expected: list[str]) -> None:
    assert list(excesses(source)) == expected


def test_every_exception_has_a_date_and_a_reason() -> None:
    assert [name for name, reason in EXCEPTIONS.items() if not re.match(r"20\d\d-\d\d: .{10}", reason)] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_the_init_of_a_package_is_its_map_and_nothing_else(package: Path) -> None:
    tree = ast.parse((package / "__init__.py").read_text())
    assert len(tree.body) == 1, "an __init__.py holds a docstring only; import from the module that defines a name"
    docstring = ast.get_docstring(tree) or ""
    mapped = re.findall(r"^([\w/]+(?:\.py|/)) ", docstring, flags=re.MULTILINE)
    files = [path.name for path in package.glob("*.py") if path.name != "__init__.py"]
    folders = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    assert sorted(mapped) == sorted(files + folders), "one line for each module and folder: `name.py  what it does`"


def test_every_file_but_tests_opens_with_what_it_is() -> None:
    silent = [path for path in CODE if "tests" not in path.parts and not ast.get_docstring(ast.parse(path.read_text()))]
    assert [str(path.relative_to(ROOT)) for path in silent] == [], "open the file with a docstring that says what it is"


def test_the_pages_name_only_files_that_exist() -> None:
    """NAME stands for a file to be made."""
    tops = "orchestrator|pipelines|kernels|clusters|experiments|docs|tests|benchmarks"
    named = {
        (page.name, path)
        for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
        for path in re.findall(rf"(?<![\w./])(?:{tops})/[\w./-]+\.(?:py|md)\b", page.read_text())
    }
    assert [item for item in sorted(named) if "NAME" not in item[1] and not (ROOT / item[1]).exists()] == []


# What belongs to one machine or one network. A container's /home/ray is part of an image that everybody can have.
LOCAL = re.compile(
    r"""
      (?<![\w.~}/-])/(?:work|root|farm|Users|home/(?!ray\b)|opt/(?:wheels|pypi))(?:/|(?<=/)\w)  # a path of a machine
    | --(?:extra-)?index-url | --find-links | PIP_\w*INDEX                                      # a package registry
    | https?://(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.                                      # a private address
    | https?://[\w.-]+\.(?:local|internal|lan|corp)\b
    """,
    re.VERBOSE,
)


def committed_texts() -> Iterator[tuple[Path, str]]:
    folders = ("experiments", "clusters", "orchestrator", "pipelines", "kernels", "tests", "benchmarks", "docs", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    for path in sorted(paths):
        if (
            path.is_file()
            and path.name != ".git"
            and path.suffix in {".py", ".md", ".yaml", ".toml", ".json", ".csv", ".txt", ".c", ""}
        ):
            yield path, path.read_text(errors="replace")


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path, text in committed_texts()
        if path != Path(__file__)
        for match in LOCAL.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("open('/work/main/x')", True),
        ("see /root/.cache", True),
        ("/home/ann/data", True),
        ("pip install --index-url https://x", True),
        ("http://10.0.0.3/simple", True),
        ("http://registry.internal:8080", True),
        ("/home/ray/convoy", False),
        ("https://arxiv.org/abs/1509.09308", False),
        ("http://127.0.0.1:8265", False),
        ("~/work/x and network/work/y", False),
        ("a/root/b", False),
    ],
)
def test_what_counts_as_local_is_recognised(text: str, refused: bool) -> None:
    assert bool(LOCAL.search(text)) == refused
