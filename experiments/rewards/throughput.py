r"""Gradings a second of mathematical answers, through the pool of workers, with a deadline on each.

    python -m experiments.rewards.throughput --count 10000 --workers 2

Answers and truths are drawn from a seed, in fifteen kinds of equal share: whole numbers, decimals, scientific
notation, percentages, fractions, mixed numbers, roots, multiples of pi, products written out, equations,
tuples, sets, half-lines, matrices, words. Their numbers are drawn too, so that of 10,000 pairs over 99 % are
distinct, and what a worker remembers of earlier pairs is of no use. Half of them are right, in another
spelling. Six of the kinds are decided by a computer algebra system, the others by exact arithmetic or by
spelling; of the answers in the golden table a quarter need the former.

The time is that of everything: from before the workers are started until the last answer is there.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmrl.rewards.math import load_math_verify, math
from mmrl.rewards.pool import RewardPool
from mmrl.sample import Sample

DEADLINE_S = 5.0


def timed(sample: Sample, response: str) -> dict[str, float]:
    """The verifier ``math``, and the seconds it took."""
    start = time.perf_counter()
    return {**math(sample, response), "seconds": time.perf_counter() - start}


VERIFIERS = {"timed": timed}
LOADERS = {"timed": load_math_verify}


@dataclass(frozen=True)
class Figures:
    """Measurements of one run."""

    count: int
    distinct: int  # pairs of answer and truth
    workers: int
    seconds: float  # from before the start of the workers to the last answer
    longest_s: float  # of a single valid grading
    right: int
    invalid: int


def _whole(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(1000, 10**7)
    return f"{n:,}", str(n), str(n + 1)


def _decimal(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(10**6)
    return f"{n / 1000:.4f}", rf"\frac{{{n}}}{{1000}}", f"{n / 1000 + 0.01:.3f}"


def _scientific(draw: random.Random) -> tuple[str, str, str]:
    n, e = draw.randrange(10**4), draw.randrange(2, 9)
    return rf"{n}\times 10^{{{e}}}", f"{n}{'0' * e}", f"{n}{'0' * (e - 1)}"


def _percentage(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(1, 10**5)
    return rf"{n / 100:.2f}\%", f"{n / 10000:.4f}", f"{n / 5000:.4f}"


def _fraction(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = (draw.randrange(2, 400) for _ in range(3))
    return rf"\dfrac{{{a * c}}}{{{b * c}}}", f"{a}/{b}", f"{a}/{b + 1}"


def _mixed(draw: random.Random) -> tuple[str, str, str]:
    n, b = draw.randrange(1, 999), draw.randrange(3, 99)
    return rf"{n}\frac{{1}}{{{b}}}", rf"\frac{{{n * b + 1}}}{{{b}}}", rf"\frac{{{n * b + 2}}}{{{b}}}"


def _root(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 99), draw.randrange(2, 999)
    return rf"\sqrt{{{a * a * b}}}", rf"{a}\sqrt{{{b}}}", rf"{a}\sqrt{{{b + 1}}}"


def _pi(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 999), draw.randrange(2, 99)
    return rf"\frac{{{a}}}{{{b}}}\pi", rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}\pi}}{{{b + 1}}}"


def _product(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(1, 999), draw.randrange(1, 999)
    return f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}", f"x^2+{a + b}x+{a * b + 1}"


def _equation(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randrange(2, 999), draw.randrange(2, 999)
    return f"y={a}x+{b}", f"{a}x+{b}", f"{b}x+{a + 1}"


def _tuple(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = (draw.randrange(2, 999) for _ in range(3))
    return rf"\left({a}, \frac{{{b}}}{{{c}}}\right)", f"({a}, {b}/{c})", f"({a + 1}, {b}/{c})"


def _set(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = draw.sample(range(999), 3)
    return rf"\{{{a}, {b}, {c}\}}", rf"\{{{c}, {a}, {b}\}}", rf"\{{{c}, {a}\}}"


def _half_line(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randrange(10**5)
    return rf"[{n}, \infty)", rf"x \ge {n}", rf"x > {n}"


def _matrix(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = (draw.randrange(2, 999) for _ in range(3))
    written = r"\begin{{pmatrix}} {} & {} \\ {} & {} \end{{pmatrix}}".format
    return written(a, f"{2 * b}/2", c, 1), written(a, b, c, 1), written(a, b, c, 2)


def _words(draw: random.Random) -> tuple[str, str, str]:
    # Letters of which no number is made
    word, other = ("".join(draw.choices("abcdefgh", k=8)) for _ in range(2))
    return rf"\text{{{word} {other}}}", f"{word} {other}", f"{other} {word}"


# Each gives an answer, a truth of which it is another spelling, and another truth.
KINDS: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (
    _whole,
    _decimal,
    _scientific,
    _percentage,
    _fraction,
    _mixed,
    _root,
    _pi,
    _product,
    _equation,
    _tuple,
    _set,
    _half_line,
    _matrix,
    _words,
)


def requests(count: int, seed: int) -> list[tuple[Sample, str]]:
    """Samples and responses: every other one, in a random order, is right."""
    draw, made = random.Random(seed), []
    for row in range(count):
        answer, same, other = KINDS[row % len(KINDS)](draw)
        truth = draw.choice((same, other))
        response = f"<think> So it is. </think> \\boxed{{{answer}}}"
        made.append((Sample(f"generated:{row}", "", truth, verifier="timed"), response))
    return made


def measure(count: int, workers: int, seed: int = 0) -> Figures:
    """Grades ``count`` generated answers with a pool of its own."""
    asked = requests(count, seed)
    start = time.perf_counter()
    with RewardPool(workers, DEADLINE_S, table="experiments.rewards.throughput") as pool:
        graded = pool.grade(asked)
        seconds = time.perf_counter() - start
    valid: list[Mapping[str, float]] = [item.components for item in graded if item.valid]
    return Figures(
        count=count,
        distinct=len({(sample.answer, response) for sample, response in asked}),
        workers=workers,
        seconds=seconds,
        longest_s=max((item["seconds"] for item in valid), default=0.0),
        right=sum(item["accuracy"] == 1.0 for item in valid),
        invalid=count - len(valid),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    figures = measure(**vars(parser.parse_args()))
    print(f"{figures.count} gradings ({figures.distinct} distinct) on {os.cpu_count()} cores")
    print(
        f"{figures.workers} workers: {figures.seconds:.1f} s, {figures.count / figures.seconds:.0f} a second"
    )
    print(f"longest single grading {figures.longest_s * 1000:.0f} ms, deadline {DEADLINE_S:g} s")
    print(f"right {figures.right}, invalid {figures.invalid}")


if __name__ == "__main__":
    main()
