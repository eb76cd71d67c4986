"""Run the benchmarks, or those that are named, and print the table of their figures."""

from __future__ import annotations

import sys

from tests.benchmarks import bulk, files, parts, status, worker
from tests.benchmarks.measure import heading
from tests.benchmarks.upstream import upstream

BENCHMARKS = {
    "status": status.bench_status,
    "create": bulk.bench_create,
    "jsonl": bulk.bench_jsonl,
    "results": bulk.bench_results,
    "files": files.bench_files,
    "parts": parts.bench_parts,
    "load": status.bench_load,
    "archive": worker.bench_archive,
    "delivery": worker.bench_delivery,
    "running": worker.bench_running,
}


def main(names: list[str]) -> None:
    if unknown := set(names) - BENCHMARKS.keys():
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    print(heading())
    with upstream() as simulator:
        for name in names or BENCHMARKS:
            for figure in BENCHMARKS[name](simulator):
                print(figure.line(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
