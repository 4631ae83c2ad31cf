"""Test notebooks side by side: WORKERS NOTEBOOK.... Each has a process of its own, forked after the imports that
take long."""

import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

CPU_LIMIT = 1200  # seconds of processor time that a notebook may use, however busy the machine is
WALL_LIMIT = (
    7200  # seconds on the clock, for one that waits for ever; at a limit its stacks are printed and it is ended
)


def start(path):
    "Test one notebook in a new process; returns its number and where it writes"
    out = tempfile.TemporaryFile()
    if pid := os.fork():
        return pid, out
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    faulthandler.enable(file=out)
    faulthandler.register(signal.SIGXCPU, file=out, chain=True)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    faulthandler.dump_traceback_later(WALL_LIMIT, exit=True, file=out)
    passed, _ = test_nb(path.absolute(), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path)
    sys.exit(not passed)


def test(n_workers, waiting):
    "The notebooks that failed; a line for each as it ends"
    running, failed, here = {}, [], os.getpid()
    try:
        while waiting or running:
            while waiting and len(running) < n_workers:
                path, began = waiting.pop(0), time.time()
                pid, out = start(path)
                running[pid] = path, began, out
            pid, status = os.wait()
            path, began, out = running.pop(pid)
            if status:
                out.seek(0)
                print(out.read().decode(errors='replace'))
                print(f'FAILED {path} (exit code {os.waitstatus_to_exitcode(status)})', flush=True)
                failed.append(path)
            else:
                print(f'passed {path} ({time.time() - began:.0f} s)', flush=True)
    finally:
        if os.getpid() == here:  # a notebook's process ends here, too
            for pid in running:
                os.kill(pid, signal.SIGKILL)
    return failed


if __name__ == '__main__':
    sys.stdout.reconfigure(errors='backslashreplace')
    if failed := test(int(sys.argv[1]), [Path(p) for p in sys.argv[2:]]):
        sys.exit('notebooks that failed: ' + ' '.join(map(str, failed)))
