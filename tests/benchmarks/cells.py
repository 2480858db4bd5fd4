"""Comparisons cell by cell: each in a process of its own, kept as one JSON file, so that a run may stop and go on."""

import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed


def place(out, job):
    return out / ("_".join(map(str, job)) + ".json")


def read(out, *job):
    """Gives the result of a cell, or None where it has not been computed."""
    file = place(out, job)
    return json.loads(file.read_text()) if file.exists() else None


def write(out, job, result, settings):
    """Writes a cell whole, with the settings it was computed with."""
    file = place(out, job)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({**result, "settings": settings}) + "\n")
    os.replace(part, file)


def missing(jobs, out, settings):
    """Gives the jobs whose cells are not there; those that are were computed with the same settings."""
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        before = (read(out, *job) or {}).get("settings", settings)
        if before != settings:
            raise SystemExit(f"{place(out, job)} was computed with {before}, not {settings}; pass another --out.")
    return [job for job in jobs if not place(out, job).exists()]


def work(compute, job, out, settings):
    """Computes one cell on one thread and writes it."""
    import torch

    torch.set_num_threads(1)
    write(out, job, compute(*job, **settings), settings)
    return job


def run(compute, jobs, out, settings, processes):
    """Computes the cells that are not there: ``compute(*job, **settings)`` gives a dict of plain values."""
    jobs = missing(jobs, out, settings)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(work, compute, job, out, settings) for job in jobs]
        for number, future in enumerate(as_completed(waiting), 1):
            print(f"[{number}/{len(jobs)}] {' '.join(map(str, future.result()))}", flush=True)


def over_seeds(values):
    """Gives mean and deviation of the values that are there, or None."""
    values = [value for value in values if value is not None]
    return (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0) if values else None


def shown(pair, digits=3):
    return "-" if pair is None else f"{pair[0]:.{digits}f}±{pair[1]:.{digits}f}"
