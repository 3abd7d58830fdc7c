"""Starts `rlalign` processes by forking one that has imported everything: 50 ms instead of seconds.

An order is a line of JSON on standard input. `start`: command-line arguments, where standard output and
error go, and what interferes with the process: functions of `interfere.py`, each [name, {option: value}].
`wait`: a process by its id; answered with its exit status, negative for a signal, as `subprocess` does.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from typing import Any

LONGEST = 120
"""Seconds after which a process is ended by SIGALRM: a test that hangs fails."""


def main() -> None:
    # All that a run imports late; fork copies the modules.
    import interfere
    import torch

    from rlalign.config.registry import Registry

    for name in ("table", "rloo", "reinforce", "toy-numbers", "increasing-numbers", "collect", "kl"):
        Registry().load(name)
    torch.cuda.is_available()
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # its first use imports a second's worth
    gc.freeze()  # or a child's first collection would copy all of it
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            run(order, interfere)
        print(pid, flush=True)


def run(order: dict[str, Any], interfere: Any) -> None:
    """Become one `rlalign` process; never returns."""
    signal.alarm(LONGEST)
    # As in a terminal: a test run in the background may have inherited an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, descriptor in ((os.devnull, 0), (order["output"], 1)):
        file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
    os.dup2(1, 2)
    code = 70
    try:
        from rlalign.cli.commands import program

        for name, options in order["interfere"]:
            getattr(interfere, name)(**options)
        program(order["arguments"], prog_name="rlalign")
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
