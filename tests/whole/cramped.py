"""Runs a deployed flow with little memory: `python -m tests.whole.cramped ENTRYPOINT MEGABYTES`.

Everything heavy is imported first; then the address space may grow by so many megabytes, and a bigger allocation really fails.
"""

import ctypes
import resource
import sys
from pathlib import Path

import peft  # noqa: F401
import torch
from prefect import flow_engine
from transformers import LlamaForCausalLM  # noqa: F401

entrypoint, megabytes = sys.argv[1:]
torch.set_num_threads(1)
# Else every thread that starts later reserves addresses for memory of its own, which count.
M_ARENA_MAX = -8
ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
n_pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = n_pages * resource.getpagesize() + int(megabytes) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
raise SystemExit(flow_engine._main([entrypoint]))
