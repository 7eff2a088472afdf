"""Settings that experiments share: the papers' common set-up, and the form for seconds on a laptop."""

from ml_collections import ConfigDict

from mmrl.config import template

FORMAT_PROMPT = "\nFirst think inside <think> </think>, then give the final answer in \\boxed{}."
_VIRL39K_ROWS = 38_870


def virl39k(algorithm: str, *, group: int, epochs: int = 2) -> ConfigDict:
    """Reinforcement learning of Qwen2.5-VL on ViRL39K as the EasyR1 family runs it: PAPO, VPPO, baselines.

    Sources: the released scripts of PAPO (github.com/MikeWangWZHL/PAPO) and VPPO
    (github.com/huaixuheqing/VPPO-RL). AdamW, learning rate 1e-6 constant, weight decay 0.01, clipping at 1;
    384 prompts a rollout, 128 an optimizer step; responses up to 2048 tokens at temperature 1 and top-p 0.99;
    images of 200,704 to 1,003,520 pixels; two epochs. ``config.model.path`` and ``config.data.train`` are
    left to the command line.

    Differs from the scripts: the optimizer keeps float32 weights; the format prompt is worded anew; an image
    that does not fit the prompt budget is made smaller instead of its row dropped; corruption works on the
    model's own 14-pixel patches, after resizing; where groups are filtered, up to 10 batches of 384 prompts
    are drawn for one (PAPO: 20 of 128; VPPO: without end).
    """
    config = template(algorithm)
    config.model.update({"dtype": "bfloat16", "remat": "full"})
    config.data.update(
        {
            "suffix": FORMAT_PROMPT,
            "min_pixels": 200_704,
            "max_pixels": 1_003_520,
            "prompt_buckets": (512, 1024, 1536, 2048, 3072, 4096),
            "patch_buckets": (1536, 3072, 4608, 6144, 9216, 12288),
            "overlong": "resize",
            "workers": 16,
        }
    )
    config.rollout.update({"prompts": 384, "group": group, "max_tokens": 2048, "top_p": 0.99})
    config.reward.workers = 16
    config.optimizer.update({"learning_rate": 1e-6, "weight_decay": 0.01, "max_gradient_norm": 1.0})
    config.train.update(
        {
            "steps": epochs * (_VIRL39K_ROWS // 384),
            "update_prompts": 128,
            "evaluate_every": 20,
            "checkpoint_every": 20,
        }
    )
    config.evaluation.update({"prompts": 128, "samples": 8})
    return config


def form(config: ConfigDict, arg: str) -> ConfigDict:
    """The experiment as it is (``arg`` ""), or its ``smoke`` form.

    Raises:
      ValueError: there is no such form.
    """
    if arg == "":
        return config
    if arg == "smoke":
        return smoke(config)
    raise ValueError(f"there is no form {arg!r}; leave it out, or write ':smoke'")


def smoke(config: ConfigDict) -> ConfigDict:
    """Any experiment, shrunk to seconds on a laptop: the shapes world and its tiny model, a few small steps.

    Algorithm, corruption and rewards stay those of the experiment; sampling is not truncated.
    """
    config.model.update({"path": "{workdir}/world/model", "dtype": "float32", "remat": "none"})
    config.world.update({"train": 64, "heldout": 16, "cold_start": 64})
    config.data.update(
        {
            "train": "{workdir}/world/train.parquet",
            "heldout": "{workdir}/world/heldout.parquet",
            "suffix": "",
            "min_pixels": 0,
            "max_pixels": 0,
            "prompt_buckets": (40,),
            "patch_buckets": (64,),
            "workers": 2,
        }
    )
    config.cold_start.update(
        {
            "steps": 4,
            "data": "{workdir}/world/cold_start.parquet",
            "batch": 8,
            "max_tokens": 12,
            "warmup": 1,
            "checkpoint_every": 2,
        }
    )
    config.rollout.update({"prompts": 8, "group": 4, "max_tokens": 12, "max_batches": 2, "top_p": 1.0})
    config.reward.workers = 1
    config.train.update(
        {"steps": 4, "update_prompts": 4, "row_tokens": 128, "evaluate_every": 2, "checkpoint_every": 2}
    )
    config.evaluation.update({"prompts": 8, "samples": 4})
    return config
