"""Ctrl-C while the command is still importing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cflow

SLOW = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"


def interrupted(arguments, folder):
    """Starts Python with a torch that takes a minute to import, interrupts it there, and returns status and errors."""
    (folder / "torch.py").write_text(SLOW)
    path = os.pathsep.join((str(folder), str(Path(cflow.__file__).parents[1])))
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path}, cwd=folder,
        # As in a shell: pytest itself may run where the signal is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_import_of_the_command_shows_no_traceback(tmp_path):
    """The shell reports a process that ended by this signal with status 130."""
    assert interrupted(["-m", "cflow", "info", "nowhere"], tmp_path) == (-signal.SIGINT, "")
    script = tmp_path / "cflow"  # what pip installs, in essence
    script.write_text("import sys\nfrom cflow.cli import main\nsys.exit(main())\n")
    assert interrupted([str(script), "info", "nowhere"], tmp_path) == (-signal.SIGINT, "")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_import_of_a_program_raises(tmp_path):
    status, errors = interrupted(["-c", "import cflow"], tmp_path)
    assert "KeyboardInterrupt" in errors
    assert status == -signal.SIGINT


def test_the_command_restores_what_an_interrupt_does():
    code = (
        "import signal, sys; sys.argv[0] = 'cflow'; import cflow; "
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL; "
        "from cflow.cli import main; main(['--version']); "
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"cflow {cflow.__version__}\n"), done.stderr
