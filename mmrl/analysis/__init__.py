"""Analysis of runs: their folders read, responses measured again, runs compared and plotted."""

from mmrl.analysis.compare import (
    Change,
    Curve,
    Share,
    Transitions,
    by_module,
    compare_runs,
    diff_params,
    error_breakdown,
    transitions,
)
from mmrl.analysis.perception import (
    Occlusion,
    PerceptionProfile,
    RolloutView,
    TokenPerception,
    perceive,
    perception_profile,
    picture_of,
    pictures_seen,
    pieces_of,
    png,
    rollout_sample,
    token_perception,
    where_it_looks,
)
from mmrl.analysis.plots import (
    plot_curves,
    plot_errors,
    plot_param_changes,
    plot_perception_histogram,
    plot_tokens,
    plot_where_it_looks,
)
from mmrl.analysis.runs import (
    Run,
    choose_evenly,
    error_kind,
    load_params,
    load_run,
    responses_of,
    samples_of,
    tokens_of,
)
