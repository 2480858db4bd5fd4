"""Every argument of every public object is described: what the pages of the reference are made of."""

import enum
import inspect
import operator
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import cflow

SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)*)", re.MULTILINE)
ENTRY = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?:")
# In a formula: a tag, a line break that was swallowed, a brace or sign that lost its backslash.
BROKEN = re.compile(r"<[a-z/]|\\q?quad[A-Za-z]|(?<!\\)#|\\(?:in|mathcal U|to|sim) *\{[^}]*[,:]")
REFERENCE = re.compile(r"are\s+those\s+of\s+:(?:class|func|meth):`~?([\w.]+)`")


def modules():
    """Returns the public modules: the package, and every module that a list of public names names."""
    found, left = [], [cflow]
    while left:
        module = left.pop()
        if module not in found:
            found.append(module)
            left += filter(inspect.ismodule, (getattr(module, name) for name in getattr(module, "__all__", ())))
    return found


def objects():
    """Yields every public class and function, each once."""
    seen = set()
    for module in modules():
        for value in (getattr(module, name) for name in getattr(module, "__all__", ())):
            if id(value) in seen or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            seen.add(id(value))
            if not (inspect.isclass(value) and issubclass(value, enum.Enum | Warning)):
                yield value


def entries(text):
    """Returns the names that the sections of arguments and attributes of a docstring describe."""
    found = set()
    for section in SECTION.finditer(inspect.cleandoc(text or "")):
        for match in filter(None, map(ENTRY.match, section.group(1).splitlines())):
            found |= {name.strip().lstrip("*") for name in match.group(1).split(",")}
    return found


def own(value):
    """Returns the docstrings of a class (its own and its constructor's) or of a function."""
    constructor = vars(value).get("__init__") if inspect.isclass(value) else None
    return [value.__doc__ or "", getattr(constructor, "__doc__", None) or ""]


def find(path, near):
    """Returns what a reference in the docstring of ``near`` means: seen from its module, its room or the package."""
    name = path.removeprefix("cflow.")
    for place in (near.__module__, ".".join(near.__module__.split(".")[:2]), "cflow"):
        try:
            return operator.attrgetter(name)(sys.modules[place])
        except AttributeError:
            pass
    raise AssertionError(f"{near.__module__}.{near.__qualname__} refers to {path}, which is not there")


def described(value):
    """Returns the described arguments: own ones, those of base classes, and those of an object that is referred to."""
    texts = [text for each in (value.__mro__ if inspect.isclass(value) else [value]) for text in own(each)]
    found = set().union(*map(entries, texts))
    for path in (path for text in own(value) for path in REFERENCE.findall(text)):
        found |= described(find(path, value))
    return found


def arguments(value):
    """Returns the names of the arguments; a class that takes what its subclass says (``*args``) has none of its own."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    skip = variadic if inspect.isclass(value) else ()
    return [each.name for each in parameters if each.name not in ("self", "cls") and each.kind not in skip]


def methods(value):
    """Yields the public methods that a class defines, with the docstrings they have or inherit."""
    for name, member in vars(value).items():
        function = getattr(member, "__func__", member)
        if (name == "__call__" or not name.startswith("_")) and inspect.isfunction(function):
            docs = [getattr(vars(each).get(name), "__doc__", None) or "" for each in value.__mro__]
            yield f"{value.__qualname__}.{name}", function, docs


def undescribed(room=""):
    """Returns the arguments without a description, as ``module.object: names``.

    Arguments of classes and functions need an entry under ``Args:`` (``Attributes:`` for results), of their own, of a
    base class, or of an object that the text refers to ("the others are those of :class:`X`"). Arguments of methods
    need to be named at least, ``like this``, in the docstring or in that of the contract.
    """
    wrong = []
    for value in objects():
        if not f"{value.__module__}.".startswith(f"cflow.{room}"):
            continue
        missing = [name for name in arguments(value) if name not in described(value)]
        if missing:
            wrong.append(f"{value.__module__}.{value.__qualname__}: {', '.join(missing)}")
        for name, function, docs in methods(value) if inspect.isclass(value) else ():
            known = set().union(*map(entries, docs))
            missing = [each for each in arguments(function) if each not in known and not named(each, docs)]
            if missing:
                wrong.append(f"{value.__module__}.{name}: {', '.join(missing)}")
    return wrong


def named(argument, docs):
    return any(re.search(rf"``[^`]*\b{re.escape(argument)}\b[^`]*``", text) for text in docs)


def not_shown(folder):
    """Returns the public objects that pages built into ``folder`` do not show."""
    wrong = []
    for module in modules():
        page = (Path(folder) / module.__name__.replace(".", "/")).with_suffix(".html")
        text = page.read_text() if page.is_file() else ""
        missing = [each for each in getattr(module, "__all__", ()) if not shown(module, each, text)]
        wrong += [f"{module.__name__}.{each}" for each in missing]
    return wrong


def not_rendered(folder):
    """Returns the formulas, references and tables of the pages that a reader would see as code."""
    wrong = []
    for page in sorted(Path(folder).rglob("*.html")):
        text = re.sub(r'<div class="pdoc-code codehilite">.*?</pre>\s*</div>', "", page.read_text(), flags=re.DOTALL)
        formulas = re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL) + re.findall(r"\\\((.*?)\\\)", text, re.DOTALL)
        wrong += [f"{page.name}: {each[:90]!r}" for each in formulas if BROKEN.search(each)]
        prose = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        wrong += [
            f"{page.name}: {each[:90]!r}" for each in re.findall(r":(?:math|class|func|meth):.{,80}|={6,}", prose)
        ]
    return wrong


def shown(module, name, text):
    if inspect.ismodule(getattr(module, name)):
        return re.search(rf'href="[^"]*\b{name}\.html"', text)
    return f'id="{name}"' in text


def test_every_public_argument_is_described():
    """In a process of its own, since importing sbi changes the global state of torch."""
    for package in ("sbi", "pyro", "arviz", "huggingface_hub"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    done = subprocess.run([sys.executable, "-W", "ignore", __file__], capture_output=True, text=True, check=True)
    *wrong, count = done.stdout.splitlines()
    assert wrong == []
    assert int(count) > 300


def test_a_missing_description_is_found():
    def undescribed_function(steps, width):
        """Returns nothing.

        Args:
            steps: how many.
        """

    assert [each for each in arguments(undescribed_function) if each not in described(undescribed_function)] == [
        "width"
    ]


if __name__ == "__main__":  # python tests/test_reference.py solvers; --pages FOLDER, after the pages are built
    if sys.argv[1:2] == ["--pages"]:
        wrong = [f"not on its page: {each}" for each in not_shown(sys.argv[2])]
        wrong += [f"not rendered: {each}" for each in not_rendered(sys.argv[2])]
        sys.exit("\n".join(wrong) or 0)
    print(*undescribed(*sys.argv[1:]), len(list(objects())), sep="\n")
