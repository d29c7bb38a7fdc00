"""The threads in which an engine plans requests beside its steps."""

from functools import partial

import torch

from overpaint.system.fair_threads import FairThreads

PLANNING_THREADS = 3
PLANNING_THREADS_PER_KEY = 2

PLANNING_CORE_DIVISOR = 4
"""A planning thread uses one in this many CPU cores: two thread teams on the same cores wait for
each other."""


def make_planning_threads() -> FairThreads:
    """Make threads that keys share. Each uses few of the cores that the caller computes with."""
    # Once, here: a new thread starts with the number that another thread has set.
    cores = max(1, torch.get_num_threads() // PLANNING_CORE_DIVISOR)
    limit_cores = partial(torch.set_num_threads, cores)
    return FairThreads(PLANNING_THREADS, PLANNING_THREADS_PER_KEY, "overpaint-begin", limit_cores)
