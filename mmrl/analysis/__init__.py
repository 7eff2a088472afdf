"""What runs left behind: read, measured again, compared and drawn."""

from mmrl.analysis.perception import TokenPerception, perceive, pieces_of, token_perception
from mmrl.analysis.pictures import picture_of, pictures_seen, png
from mmrl.analysis.rollouts import (
    Shown,
    error_kind,
    responses_of,
    rollout_sample,
    samples_of,
    tokens_of,
)
from mmrl.analysis.runs import Run, load_params, load_run

__all__ = [
    "Run",
    "Shown",
    "TokenPerception",
    "error_kind",
    "load_params",
    "load_run",
    "perceive",
    "picture_of",
    "pictures_seen",
    "pieces_of",
    "png",
    "responses_of",
    "rollout_sample",
    "samples_of",
    "token_perception",
    "tokens_of",
]
