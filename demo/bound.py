"""Runs a command that ends when its parent does, however that ends.

    python -m demo.bound PARENT_PID COMMAND ARGUMENT...

A demo that is killed cannot stop its servers; the kernel then sends them SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>; it outlives exec."""


def main() -> None:
    parent = int(sys.argv[1])
    command = sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
