"""torchrun, but its processes are forked from it instead of started: without the seconds that importing torch takes.

python forked_torchrun.py TORCHRUN'S WORDS… does all else as torchrun does.
"""

import os
import runpy
import signal
import subprocess
import sys

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from torch.distributed.run import main

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # which torchrun handles


class Forked(subprocess.Popen):
    """A process that runs `python -u SCRIPT WORDS…` or `python -u -m MODULE WORDS…` in a session of its own."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return
        os.setsid()
        os.closerange(3, 1000)
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(env)
        code = 1
        try:
            code = run(*args[2:])
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def run(place: str, *words: str) -> int:
    """What the script or the module ends with."""
    module, sys.argv = place == "-m", list(words if place == "-m" else (place, *words))
    try:
        (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


if __name__ == "__main__":
    subprocess_handler.Popen = Forked
    main()
