"""multiprocessing in each way to start a process, and what goes between: pipes, queues, locks, shared memory, a manager."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 0.9
STARTS = ("fork", "spawn", "forkserver")


def train(rows: Any, targets: Any, model: Path) -> None:
    """Bagged linear fits: some bags for each way to start a worker; all workers read one copy of the rows."""
    table = np.column_stack([(rows - rows.mean(axis=0)) / rows.std(axis=0), np.ones(len(rows)), targets])
    shared = shared_memory.SharedMemory(create=True, size=table.nbytes)
    try:
        np.ndarray(table.shape, buffer=shared.buf)[:] = table
        weights = [
            fitted
            for number, start in enumerate(STARTS)
            for fitted in bags(start, number, shared.name, table.shape)
        ]
    finally:
        shared.close()
        shared.unlink()
    np.save(model / "weights.npy", np.array([*weights, [*rows.mean(axis=0), 0.0], [*rows.std(axis=0), 1.0]]))


def bags(start: str, number: int, name: str, shape: tuple[int, ...]) -> list[Any]:
    """Four fits by a pool, an executor, and processes that answer through a queue, in an order that is always the same."""
    context: Any = multiprocessing.get_context(start)
    seeds = [number * 10 + at for at in range(4)]
    with context.Pool(1) as pool:
        fitted = list(pool.starmap(fit, [(name, shape, seed) for seed in seeds[:2]]))
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        fitted.append(executor.submit(fit, name, shape, seeds[2]).result())
    queue, lock = context.Queue(), context.Lock()
    process = context.Process(target=answer, args=(queue, lock, name, shape, seeds[3]))
    process.start()
    fitted.append(queue.get(timeout=120))
    process.join()
    with context.Manager() as manager:
        kept = manager.dict(start=start)
        assert kept["start"] == start
    return fitted


def answer(queue: Any, lock: Any, name: str, shape: tuple[int, ...], seed: int) -> None:
    """One fit through a queue."""
    with lock:
        queue.put(fit(name, shape, seed))


def fit(name: str, shape: tuple[int, ...], seed: int) -> Any:
    """A ridge regression on a bag of the shared rows."""
    shared = shared_memory.SharedMemory(name=name)
    try:
        table = np.array(np.ndarray(shape, buffer=shared.buf))
    finally:
        shared.close()
    bag = table[np.random.default_rng(seed).integers(0, len(table), len(table))]
    inputs, wanted = bag[:, :-1], bag[:, -1]
    return np.linalg.solve(inputs.T @ inputs + np.eye(inputs.shape[1]), inputs.T @ wanted)


def predict(rows: Any, model: Path) -> Any:
    """The mean of all bags."""
    *weights, mean, spread = np.load(model / "weights.npy")
    white = (rows - mean[:-1]) / spread[:-1]
    return np.mean([white @ fitted[:-1] + fitted[-1] for fitted in weights], axis=0)


def score(targets: Any, predicted: Any) -> float:
    """The share of right ones."""
    return float(np.mean((predicted > 0.5) == targets))
