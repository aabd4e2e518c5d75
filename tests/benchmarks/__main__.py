"""``python -m tests.benchmarks [TABLE…]``: prints each table as Markdown, with the machine and the date."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import full_size, receive, tasks

TABLES = {"receive": receive.table, "tasks": tasks.table, "full-size": full_size.table}


def machine() -> str:
    """Processor, cores that may be used, Python, and how busy it is with other things."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0))
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    known = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    units = ", ".join(unit for unit in known if unit in flags)
    load = f"load {os.getloadavg()[0]:.1f} before it began"
    return (
        f"{model or platform.machine()}, {cores} cores ({units}), Python {platform.python_version()}, {load}"
    )


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        sys.exit(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    print(f"{machine()}, {datetime.now(UTC).date().isoformat()}\n", flush=True)
    for name in names or TABLES:
        print(TABLES[name](), flush=True)
        print()


main(sys.argv[1:])
