"""The page: what was found, put into markup that carries all it needs and asks nobody for anything."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from mmrl.report.overview import Change


def page(values: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The whole page; ``values`` go into the markup, ``data`` to the script.

    The policy of the page names its own script and style by their hashes, so no other script runs in it,
    whatever text comes to stand there.
    """
    style, script = _file("page.css"), _script()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"figure": figure, "delta": delta, "duration": duration}
    text = environment.get_template("page.html").render(
        **values,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        data=Markup(as_script_data(data)),
    )
    # A name of a run or a value of its config may hold what no file can, such as half a character.
    return text.encode("utf-8", "replace").decode("utf-8")


def as_script_data(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: no text in it can end that or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # everything beyond ASCII is escaped
    for one in "<>&":
        text = text.replace(one, f"\\u{ord(one):04x}")
    return text


def figure(value: float, share: bool) -> str:
    """A number for people; a share in percent."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1%}".replace("%", " %") if share else f"{value:.3g}"


def delta(change: Change) -> str:
    """By how much a figure has changed, with its interval over questions; "" where that is not known."""
    found = change.difference
    if not math.isfinite(found.mean):
        return ""
    if not change.share:
        return f"{found.mean:+.2g} ({found.low:+.2g} to {found.high:+.2g})"
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rounded(values: Float[np.ndarray, "n"]) -> list[float | None]:
    """Numbers as JSON has them, to five digits: what a picture or a reader can tell apart."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _script() -> str:
    parts = [_file("charts.js"), _file("rollouts.js")]
    begin = '"use strict";\nconst report = JSON.parse(document.getElementById("data").textContent);\n'
    return "(() => {\n" + begin + "\n".join(parts) + "\nstartCharts();\nstartRollouts();\n})();\n"


def _hash(text: str) -> Markup:
    return Markup("sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())


def _file(name: str) -> str:
    return resources.files("mmrl.report").joinpath(name).read_text(encoding="utf-8")
