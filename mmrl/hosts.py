"""Several processes as one run: joining them, and small messages that all of them see.

Beside these messages nothing crosses from process to process but the collectives of jitted programs. All
processes must send the same messages in the same order, as they must run the same programs.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils
from jaxtyping import Int

from mmrl.terminal import tell

EARLY_S = 600  # until all processes have come as far as their first message
SILENCE_S = 30  # a process that is not heard of for so long is dead to the others
LOST = 75  # exit status: try again (EX_TEMPFAIL of sysexits.h)


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Become one of the ``processes`` of a run, before anything else is asked of jax.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" on machines that know it (Cloud TPU, Slurm).
      processes: how many there are; None for "auto".
      process: which one this is, from 0; None for "auto".

    Raises:
      ValueError: the arguments do not go together, or the others cannot be reached.
    """
    auto = coordinator == "auto"
    if auto != (processes is None) or auto != (process is None):
        raise ValueError(
            "--coordinator=HOST:PORT needs --processes and --process, --coordinator=auto neither"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process={process} is not one of 0 to {processes - 1} (--processes={processes})")
    try:
        jax.distributed.initialize(
            None if auto else coordinator, processes, process, heartbeat_timeout_seconds=SILENCE_S
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--coordinator={coordinator}: cannot join the other processes: {error}") from error


def is_main_process() -> bool:
    """True in the process that writes files and prints."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print text on the main process, at once."""
    if is_main_process():
        tell(text)


def gather(value: Any) -> list[Any]:
    """The JSON value that each process gives, in the order of the processes; waits for all of them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(text)], np.int32)).reshape(-1)
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def gather_early(value: Any) -> list[Any]:
    """As `gather`, once in a run, by way of the coordinator.

    It runs no program, so that processes with other versions or numbers of devices hear of each other.
    """
    count, client = jax.process_count(), distributed.global_state.client
    if count == 1:
        return [value]
    assert client is not None  # `join` has made it
    client.key_value_set(f"mmrl/early/{jax.process_index()}", json.dumps(value))
    sent = [client.blocking_key_value_get(f"mmrl/early/{k}", EARLY_S * 1000) for k in range(count)]
    client.wait_at_barrier("mmrl/early", EARLY_S * 1000)  # until all have heard all
    return [json.loads(text) for text in sent]


def maximum(*values: int) -> tuple[int, ...]:
    """The largest of each value over all processes, so that their arrays get the same shape."""
    return tuple(max(column) for column in zip(*gather(list(values)), strict=True))


def barrier() -> None:
    """Until every process is here."""
    gather(None)


@contextmanager
def on_main_process() -> Iterator[bool]:
    """A block that only the first process should act in (it is told so); the others wait for its end."""
    yield is_main_process()
    barrier()


@contextmanager
def exit_on_lost_process() -> Iterator[None]:
    """End this process, saying why, when a program of several processes fails: another one is gone.

    At once, since leaving other blocks in order, an open checkpoint for one, may wait for that process too.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Some collectives report a status such as "UNKNOWN: ..." as a ValueError.
        if jax.process_count() == 1 or not re.match("(?!RESOURCE_EXHAUSTED)[A-Z_]+: ", str(error)):
            raise
        tell(
            f"mmrl: process {jax.process_index()} of {jax.process_count()} ends, as another process of the"
            " run has: the output of that one says why. Start all of them again with the same commands, and"
            f" the run goes on from its last checkpoint. (What was seen here: {str(error)[:300]})",
            error=True,
        )
        exit_now(LOST)


def exit_now(status: int) -> NoReturn:
    """End this process at once: an orderly end would wait for processes that are gone, or wait for this."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def gather_rows(rows: Int[np.ndarray, "b"], values: Sequence[Any]) -> list[Any]:
    """Values of all rows of a batch, in their order; each process gives its own ``rows``."""
    pairs = [pair for part in gather(list(zip(rows.tolist(), values, strict=True))) for pair in part]
    return [value for _, value in sorted(pairs, key=lambda pair: pair[0])]


def gather_arrays(rows: Int[np.ndarray, "b"], tree: Any) -> Any:
    """Numpy arrays of all processes' rows, in the order of the batch; each gives those of its own ``rows``.

    Processes must have the same number of rows, and arrays of the same shapes.
    """
    if jax.process_count() == 1:
        return tree
    numbers, parts = multihost_utils.process_allgather((np.asarray(rows, np.int32), tree))
    order = np.argsort(numbers.reshape(-1))
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[order], parts)
