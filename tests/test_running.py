import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from cflow.cli import main, run_recipe, running
from cflow.cli.running import in_options

FLAGS = {"steps": False, "batch_size": False, "resume": True, "out": False, "columns": False, "header": False}


@dataclass
class Options:
    steps: int = 3
    """Steps."""
    batch_size: int = 8
    """Rows."""
    resume: bool = False
    """Go on."""
    out: Path | None = None
    """Where."""
    columns: tuple[str, ...] = ()
    """Which."""
    id: str | None = None
    """Names."""


@pytest.mark.parametrize(
    ("python", "options"),
    [
        ("fit(resume=True): steps is 5 now", "--resume: steps is 5 now"),
        ("fit(steps=5, resume=True): pass steps >= 9", "--steps 5 --resume: pass --steps >= 9"),
        ("fit(out='runs/a b'): pass resume=True to go on", "--out runs/a b: pass --resume to go on"),
        ("go on with resume=True", "go on with --resume"),
        ("pass the former value, or another folder (out=...).", "pass the former value, or another folder (--out)."),
        ("choose by columns=...; or header=True, resume=False.", "choose by --columns; or --header yes, --no-resume."),
        ("pass columns=[...]", "pass --columns"),
        ("batch_size=512, or fewer", "--batch-size 512, or fewer"),
        ("read_table('x.csv'): 5 of 7 rows", "x.csv: 5 of 7 rows"),
        ("TableFile('x.csv', key='a'): no", "TableFile('x.csv', key='a'): no"),
        ("MLP(features=2): no", "MLP(features=2): no"),
        ("at label=... or kind=3", "at --id or kind=3"),
        ("restore=True, my_steps=3, --steps=4", "restore=True, my_steps=3, --steps=4"),
        ("steps=3: lay it out by Heun(steps=20)", "--steps 3: lay it out by Heun(steps=20)"),
        ("of shape (3, 4) at t=0.5", "of shape (3, 4) at t=0.5"),
    ],
)
def test_messages_speak_of_options(python, options):
    assert in_options(python, FLAGS | {"id": False}, {"label": "id"}) == options


def test_a_recipe_ends_in_one_line_of_options(monkeypatch, capsys):
    def fail(options):
        assert options.steps == 4
        warnings.warn("look at label=...", stacklevel=1)
        raise ValueError("fit(resume=True): the folder is another's; pass out=...")

    before = warnings.showwarning
    monkeypatch.setattr(sys, "argv", ["r.py", "--steps", "4"])
    with pytest.raises(SystemExit) as stop:
        run_recipe(fail, Options, "r.py", {"label": "id"})
    assert stop.value.code == "r.py: --resume: the folder is another's; pass --out"
    assert capsys.readouterr().err == "r.py: look at --id\n"
    assert warnings.showwarning is before

    def interrupted(options):
        raise KeyboardInterrupt("fit: interrupted after step 3; go on with resume=True")

    with pytest.raises(SystemExit) as stop:
        run_recipe(interrupted, Options, "r.py")
    assert stop.value.code == "r.py: fit: interrupted after step 3; go on with --resume"


def test_an_old_typeguard_is_named(monkeypatch, capsys):
    """With typeguard 2.13, which fails inside tyro, as tyro 1.0 asks for 4.0."""
    monkeypatch.setattr(running, "version", lambda name: "2.13.3")
    with pytest.raises(SystemExit):
        main(["info", "nowhere"])
    assert "cflow: typeguard 2.13.3 is installed" in capsys.readouterr().err
    monkeypatch.setattr(running, "version", lambda name: "4.0.0")
    with pytest.raises(SystemExit):
        main(["info", "nowhere"])
    assert "cflow: nowhere: no saved flow" in capsys.readouterr().err


def test_a_header_of_years_is_asked_for_in_options(tmp_path, capsys):
    import cflow
    from cflow import discrete

    cflow.save(discrete.nsf(2, layers=1, hidden=(8,)), tmp_path / "model")
    (tmp_path / "x.csv").write_text("2001,2002\n0.5,1\n1,3.5\n")
    arguments = ["score", str(tmp_path), str(tmp_path / "x.csv"), "-o", str(tmp_path / "s.csv")]
    with pytest.raises(SystemExit):
        main(arguments)
    captured = capsys.readouterr()
    assert f"cflow: {tmp_path / 'x.csv'}: the first line (2001, 2002) may be a row or a header" in captured.err
    assert "pass --header yes if it has names, --header no if not" in captured.err
    assert not (tmp_path / "s.csv").exists()
    main([*arguments, "--header", "no"])
    assert "3 rows" in capsys.readouterr().out
    main([*arguments, "--header", "yes"])
    captured = capsys.readouterr()
    assert "2 rows" in captured.out
    assert "names" not in captured.err
