"""The benchmarks of PAPO and of VPPO, at avg@8 and temperature 1 as the papers report them.

``papers.py:papo`` has those of arXiv:2507.06448, ``papers.py:vppo`` those of arXiv:2510.09285, ``papers.py``
both, each benchmark once. ``papers.py:smoke`` takes seconds: the held-out rows of a run in the shapes world,
by kind of question.

Sources: the lists in the READMEs of github.com/MikeWangWZHL/PAPO and github.com/huaixuheqing/VPPO-RL, and
github.com/xhguo7/PAPO-Eval, with which both evaluate: 8 responses, temperature 1, top-p 1, up to 2048 tokens,
images of up to 589,824 pixels, the mean accuracy over questions. PAPO calls these eight: MathVerse_V, the
vision-dependent part of MathVerse, is given apart from the whole. Both leave out questions with free answers
(of MathVista, MathVerse, MathVision and DynaMath), and publish what remains; ``<name>.parquet`` should hold
that, converted to the schema (``mmrl data list`` says how).

Differs from the papers: the format prompt is the one that `mmrl.presets` trains with, worded anew, and the
grader is mmrl's; an image that does not fit the prompt budget is made smaller. The second pass without images
is not in the papers.
"""

from mmrl.presets import FORMAT_PROMPT
from mmrl.suite import Benchmark, Suite

PAPO = (
    "geometry3k",
    "mathvista",
    "wemath",
    "mmk12",
    "mathverse",
    "mathverse_v",
    "logicvista",
    "superclevr_counting",
    "mmmu_pro",
)
VPPO = ("dynamath", "geometry3k", "mathverse", "mathvision", "mmk12", "wemath", "logicvista", "mmmu_pro")
MAX_PIXELS = 768 * 768


def get_suite(arg: str = "") -> Suite:
    """``arg``: "", "papo", "vppo" or "smoke"."""
    if arg == "smoke":
        return Suite("smoke", (_shapes(),))
    named = {"": tuple(dict.fromkeys(PAPO + VPPO)), "papo": PAPO, "vppo": VPPO}
    if arg not in named:
        raise ValueError(f"there is no form {arg!r}; leave it out, or write ':papo', ':vppo' or ':smoke'")
    return Suite(arg or "papers", tuple(map(_benchmark, named[arg])))


def _benchmark(name: str) -> Benchmark:
    return Benchmark(name=name, data=f"{name}.parquet", suffix=FORMAT_PROMPT, max_pixels=MAX_PIXELS)


def _shapes() -> Benchmark:
    """As the quickstart evaluates, with fewer responses."""
    return Benchmark(
        name="shapes",
        data="{workdir}/world/heldout.parquet",
        samples=4,
        top_p=0.9,
        max_tokens=12,
        category="kind",
    )
