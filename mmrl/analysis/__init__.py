"""What runs left behind: read, measured again, compared and drawn."""

from mmrl.analysis.compare import Curve, compare_runs
from mmrl.analysis.errors import Share, Transitions, error_breakdown, transitions
from mmrl.analysis.occlusion import Occlusion, where_it_looks
from mmrl.analysis.perception import TokenPerception, perceive, pieces_of, token_perception
from mmrl.analysis.pictures import picture_of, pictures_seen, png
from mmrl.analysis.plots import (
    plot_curves,
    plot_errors,
    plot_param_changes,
    plot_perception_histogram,
    plot_tokens,
    plot_where_it_looks,
)
from mmrl.analysis.profile import PerceptionProfile, perception_profile
from mmrl.analysis.rollouts import (
    Shown,
    choose_evenly,
    error_kind,
    responses_of,
    rollout_sample,
    samples_of,
    tokens_of,
)
from mmrl.analysis.runs import Run, load_params, load_run
from mmrl.analysis.weights import Change, by_module, diff_params

__all__ = [
    "Change",
    "Curve",
    "Occlusion",
    "PerceptionProfile",
    "Run",
    "Share",
    "Shown",
    "TokenPerception",
    "Transitions",
    "by_module",
    "choose_evenly",
    "compare_runs",
    "diff_params",
    "error_breakdown",
    "error_kind",
    "load_params",
    "load_run",
    "perceive",
    "perception_profile",
    "picture_of",
    "pictures_seen",
    "pieces_of",
    "plot_curves",
    "plot_errors",
    "plot_param_changes",
    "plot_perception_histogram",
    "plot_tokens",
    "plot_where_it_looks",
    "png",
    "responses_of",
    "rollout_sample",
    "samples_of",
    "token_perception",
    "tokens_of",
    "transitions",
    "where_it_looks",
]
