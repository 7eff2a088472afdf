"""Configuration of a run: frozen dataclasses, filled from an experiment's `ml_collections.ConfigDict`.

An experiment file defines ``get_config(arg)``; it starts from `template`, fills in and returns it. At the
border `resolve` turns it into a `Config`; an unknown key, a wrong type or an impossible combination is an
error that names the key and the fix, before anything is compiled.
"""

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict, config_dict

from mmrl.algorithms.algorithm import Algorithm
from mmrl.algorithms.recipes import RECIPES
from mmrl.data.curriculum import Curriculum, check
from mmrl.rewards.judge_client import Judge
from mmrl.rewards.reward import PAPO_WEIGHTS, Reward, reward_of, user_verifiers
from mmrl.rollout.tools import TOOLS
from mmrl.suggest import suggest
from mmrl.typed import dataclass_from_dict, of_type
from mmrl.user_code import load_function, run_user_code


@dataclass(frozen=True)
class BaseModelConfig:
    """The checkpoint that training begins from, and the form in which it is computed."""

    path: str = ""  # Hugging Face directory; "{workdir}" stands for the run's folder
    dtype: str = "float32"  # of matrix products: "float32" or "bfloat16"; weights are float32
    remat: str = "none"  # what layers recompute in the backward pass: "none", "dots" or "full"
    unroll: int = 1  # layers in one turn of the scan over them; a small model on CPU is faster with all


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; they multiply to the number of devices, and one may be -1: what is left.

    Prompts are spread over all but ``tensor``; weights are cut over ``fsdp``, ``expert`` and ``tensor``.
    """

    replica: int = 1  # copies of everything, on slices that only the data-centre network connects
    data: int = 1  # copies of everything, within a slice
    fsdp: int = -1  # each weight is cut, and gathered when it is used
    expert: int = 1  # of a mixture, the experts are cut and tokens exchanged; other weights are as by fsdp
    tensor: int = 1  # heads, hidden units and vocabulary are cut; should divide the key/value heads


@dataclass(frozen=True)
class DataConfig:
    """Data sets, and the form of their prompts."""

    # Parquet or JSONL in the public schema, and other data sets (docs/data.md); "{workdir}" stands for the
    # run's folder. "FILE@3,FILE@1" mixes several, with weights; without, they count by their rows.
    train: str = ""
    stages: tuple[tuple[float, str], ...] = ()  # what replaces ``train``, from a share of the run on
    temperature: float = 1.0  # without weights, a data set counts by (its rows)^(1 / temperature)
    curriculum: Curriculum = field(default_factory=Curriculum)
    heldout: str = ""  # for evaluation, "FILE,FILE" of several; "" switches it off
    image_root: str = ""  # relative image paths start here; "" means the data file's folder
    system: str = ""  # system message; "" leaves the chat template's own
    suffix: str = ""  # appended to every problem: the format prompt
    # Prompts are padded to the smallest that fits, in tokens and in window slots of image patches. With 0
    # among the latter, batches without an image leave the vision tower out. () leaves it to the data.
    prompt_buckets: tuple[int, ...] = ()
    patch_buckets: tuple[int, ...] = ()
    min_pixels: int = 0  # of an image after resizing; 0 leaves preprocessor_config.json's value
    max_pixels: int = 0
    overlong: str = "drop"  # what a prompt over the largest bucket does: "drop", "resize" its images, "error"
    workers: int = 2  # threads that read and preprocess ahead
    processes: int = 0  # processes that do so instead, each with as many threads
    max_broken: float = 0.01  # share of rows that may be unusable; they are left out, and the run goes on


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling of responses."""

    prompts: int = 128  # a rollout batch
    group: int = 8  # responses a prompt
    max_tokens: int = 2048
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    prompt_slots: int = 0  # prompts decoded at once; 0 means as many as the memory has room for
    slots_per_prompt: int = (
        0  # responses of a prompt decoded at once; 0 means the group, if there is room for it
    )
    chunk: int = 16  # tokens decoded between two looks at what has ended
    max_batches: int = 10  # dynamic sampling draws at most this many batches to fill one


@dataclass(frozen=True)
class EpisodeConfig:
    """Turns and tools of a response; ``rollout.max_tokens`` bounds writing and reading.

    See `mmrl.rollout.tools` for what the policy writes to call a tool.
    """

    tools: tuple[str, ...] = ()  # "zoom", "calculate"; none: a response is one turn
    turns: int = 4  # most that the policy writes
    images: int = 2  # most that it is shown by tools
    observation_tokens: int = 320  # most of one answer, its image included
    observation_patches: int = 1024  # window slots of the image in one answer
    workers: int = 2  # processes that run tools
    deadline_seconds: float = 5.0  # a call that takes longer is answered by an error


@dataclass(frozen=True)
class CorruptionConfig:
    """Corruption of the image for token perception and perception losses."""

    method: str = "patch_black"
    probability: float = 0.6


@dataclass(frozen=True)
class SelfJudgeConfig:
    """A second pass in which the policy says of each response whether it is right: component "self_judge"."""

    question: str = ""  # such as "Is this right? Answer \\boxed{yes} or \\boxed{no}."; "" leaves it out
    max_tokens: int = 256  # of a verdict


@dataclass(frozen=True)
class RewardConfig:
    """Grading and reward of responses (docs/rewards.md): the reward is a weighted sum of components.

    Experiments write ``config.reward = Reward(...)`` and ``config.reward.sources[NAME] = Reward(...)``.
    """

    # Component -> a number, or ((share of the run, weight), ...) between which it is interpolated.
    weights: dict[str, Any] = field(default_factory=lambda: dict(PAPO_WEIGHTS))
    # Component -> condition(s) without which it does not count: "format", "iou>=0.5", ("format", "accuracy").
    gates: dict[str, Any] = field(default_factory=dict)
    bonuses: tuple[str, ...] = ()  # components that compare a response with its group, e.g. "brevity"
    verifier: str = ""  # instead of the samples' own; "" leaves those. "FILE.py:function" is one of yours
    also: tuple[str, ...] = ()  # verifiers that grade every response besides, e.g. "repetition"
    options: dict[str, Any] = field(default_factory=dict)  # facts for rows that do not have them
    # Name of a data set -> what holds for its rows instead: weights, gates, bonuses, verifier, also, options.
    sources: dict[str, Any] = field(default_factory=dict)
    workers: int = 2  # grading processes
    deadline_seconds: float = 5.0  # a grading that takes longer is killed and its row left out
    judge: Judge = field(default_factory=Judge)  # a text model for the verifiers "judge" and "checklist"
    self_judge: SelfJudgeConfig = field(default_factory=SelfJudgeConfig)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float = 1e-6
    schedule: str = "constant"  # after the warm-up: "constant", or "cosine" (to 0 at the last update)
    warmup_updates: int = 0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    max_gradient_norm: float = 1.0
    freeze: tuple[str, ...] = ()  # path prefixes left untrained, e.g. ("vision",)


@dataclass(frozen=True)
class TrainConfig:
    """The reinforcement-learning stage."""

    steps: int = 100  # rollout batches
    update_prompts: int = 128  # prompts of one optimizer step; divides rollout.prompts
    # Tokens of a packed row, which a device computes at once: memory and speed, never the result. A row is
    # longer where a prompt with a response is. 0 means what there is room for.
    row_tokens: int = 0
    evaluate_every: int = 10  # steps
    checkpoint_every: int = 10  # steps
    checkpoint_minutes: float = 0.0  # also when so many have passed since the last; 0 means never
    keep_checkpoints: int = 2  # the newest
    keep_best: int = 1  # those of the highest held-out accuracy, beside the newest
    max_skipped: int = 5  # updates in a row without a finite loss and gradient, after which the run stops


@dataclass(frozen=True)
class EvaluationConfig:
    """Measurement of held-out accuracy: the mean over ``samples`` responses to each prompt."""

    prompts: int = 128  # a batch
    limit: int = 0  # rows of each held-out data set that are used; 0 means all
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class LogConfig:
    """Destinations of metrics besides the run's folder, which has them as JSON lines and for TensorBoard."""

    wandb: str = ""  # a project on Weights & Biases, "" switches it off; needs pip install "mmrl[wandb]"


@dataclass(frozen=True)
class ColdStartConfig:
    """The supervised stage before reinforcement learning; 0 steps switch it off."""

    steps: int = 0
    data: str = ""  # rows with a ``solution``, or with ``turns``
    batch: int = 64
    max_tokens: int = 1024
    temperature: float = 1.0  # that it imitates at; below 1, it is less sure than its data when sampled
    learning_rate: float = 1e-5
    warmup: int = 10
    checkpoint_every: int = 1000


@dataclass(frozen=True)
class WorldConfig:
    """A world, written to ``{workdir}/world`` before the run; 0 rows switch it off."""

    # Or "zoom"; or "mixed": train and heldout are then rows of each of its four tasks; or one of yours:
    # "FILE.py:function", as the function ``write`` of a module of `mmrl.tasks`.
    name: str = "shapes"
    train: int = 0
    heldout: int = 0
    cold_start: int = 0
    prior: float = 0.3  # how strongly the question alone suggests its answer in the training data
    kinds: tuple[str, ...] = ("count", "compare", "locate", "read", "missing")  # of questions
    levels: tuple[int, ...] = (1, 2, 3)  # of difficulty
    # Prior, kinds and levels are of the shapes world, and this is of the zoom world: the share of the cold
    # start that demonstrates zooming.
    zooming: float = 0.5
    family: str = ""  # of the tiny model, by its "model_type" ("qwen3_vl", ...); empty: Qwen2.5-VL


@dataclass(frozen=True)
class Config:
    """A run."""

    seed: int = 0
    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "grpo"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    world: WorldConfig = field(default_factory=WorldConfig)


class ExperimentConfig(ConfigDict):
    """A `ConfigDict` that may be given a `Reward`, for the run or for one data set; what it says is kept."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, Reward) and key in self and "workers" in self[key]:  # of the run
            defaults = {f.name: getattr(RewardConfig(), f.name) for f in dataclasses.fields(Reward)}
            for name, part in {**defaults, **value.to_json()}.items():
                self[key][name] = _free(part) if isinstance(part, dict) else part
        else:
            super().__setitem__(key, value.to_json() if isinstance(value, Reward) else value)


def _free(values: dict[str, Any]) -> ExperimentConfig:
    """A part of a config that may have any keys, names of files among them."""
    return ExperimentConfig(values, type_safe=False, allow_dotted_keys=True)


def template(algorithm: str = "grpo") -> ConfigDict:
    """A `ConfigDict` with every key at its default, for experiments to fill in.

    ``config.algorithm`` has the hyper-parameters of all recipes; those left unset take the recipe's default.
    """
    return unresolved(Config(algorithm={"name": algorithm}))


def unresolved(config: Config) -> ConfigDict:
    """A config as a `ConfigDict`, in which keys may be overruled."""
    tree = dataclasses.asdict(config)
    free = {name: tree["reward"].pop(name) for name in ("weights", "gates", "options", "sources")}
    tree["algorithm"] = ConfigDict(tree["algorithm"])
    made = ExperimentConfig(tree)
    with made.unlocked():
        for name, values in free.items():
            made.reward[name] = _free(values)
        for name, kind in sorted(_hyper_parameters().items()):
            if made.algorithm.get(name) is None:
                made.algorithm[name] = config_dict.placeholder(kind)
    made.lock()
    for name in free:  # have whatever keys are given
        made.reward[name].unlock()
    return made


def resolve(config: ConfigDict) -> Config:
    """Check a `ConfigDict` and freeze it. Files with code of one's own, "FILE.py:function", are run.

    Raises:
      ValueError: an unknown key (with the nearest valid one), a value of the wrong type, or values that
        contradict each other.
    """
    resolved = from_dict(config.to_dict())
    algorithm(resolved)
    user_verifiers(dataclasses.asdict(resolved.reward))
    return resolved


def from_dict(values: dict[str, Any]) -> Config:
    """`resolve` for a plain nested dict, such as ``dataclasses.asdict`` of a `Config` read back from JSON.

    It runs no file: looking at a run that somebody else made does not run what its config names.
    """
    resolved = dataclass_from_dict(Config, values, "config")
    _check(resolved)
    return resolved


def algorithm(config: Config) -> Algorithm:
    """The algorithm that ``config.algorithm`` names, with the hyper-parameters that are set.

    Raises:
      ValueError: no such recipe, or a hyper-parameter that this recipe does not take.
    """
    chosen = {key: value for key, value in config.algorithm.items() if value is not None}
    name = _recipe_name(config)
    chosen.pop("name")
    path = f"config.algorithm.name={name!r}"
    if name not in RECIPES and ":" not in name:
        raise ValueError(f"{path} is unknown{suggest(name, RECIPES)}")
    recipe = load_function(path, name) if ":" in name else RECIPES[name]
    accepted = inspect.signature(recipe).parameters
    wrong = [key for key in chosen if key not in accepted]
    if wrong:
        unknown = next((key for key in wrong if key not in _hyper_parameters()), None)
        if unknown:
            said, fix = unknown, suggest(unknown, accepted)
        else:  # set by an experiment of another method
            said = ", config.algorithm.".join(wrong)
            fix = "; to go without: " + " ".join(f"--config.algorithm.{key}=None" for key in wrong)
        raise ValueError(f"config.algorithm.{said} is not a hyper-parameter of {name!r}{fix}")
    if ":" in name:
        with run_user_code(path, name.rpartition(":")[0]):
            made = recipe(**chosen)
    else:
        kinds = typing.get_type_hints(recipe)
        typed = {key: of_type(value, kinds[key], f"config.algorithm.{key}") for key, value in chosen.items()}
        try:
            made = recipe(**typed)
        except ValueError as error:
            raise ValueError(f"config.algorithm: {error}") from error
    if not isinstance(made, Algorithm):
        raise ValueError(f"{path} should return an Algorithm, and returns {type(made).__name__}")
    return made


def _recipe_name(config: Config) -> str:
    name = config.algorithm.get("name")
    if not isinstance(name, str):
        raise ValueError(f"config.algorithm.name={name!r} should be a name, such as 'grpo'")
    return name


def _hyper_parameters() -> dict[str, type]:
    kinds: dict[str, type] = {}
    for name, recipe in RECIPES.items():
        for parameter in inspect.signature(recipe).parameters.values():
            kind = parameter.annotation
            if kinds.setdefault(parameter.name, kind) is not kind:
                raise TypeError(f"recipe {name}: {parameter.name} has another type in another recipe")
    return kinds


def _check(config: Config) -> None:
    """Combinations that cannot work."""
    if ":" not in _recipe_name(config):
        algorithm(config)
    _choice("model.dtype", config.model.dtype, ("float32", "bfloat16"))
    _choice("model.remat", config.model.remat, ("none", "dots", "full"))
    _choice("data.overlong", config.data.overlong, ("drop", "resize", "error"))
    _choice("optimizer.schedule", config.optimizer.schedule, ("constant", "cosine"))
    if ":" not in config.world.name:
        _choice("world.name", config.world.name, ("shapes", "zoom", "mixed"))
    if config.rollout.group < 2:
        raise ValueError(
            f"config.rollout.group={config.rollout.group}: a group of one has no advantage; use 2 or more"
        )
    _divides("train.update_prompts", config.train.update_prompts, "rollout.prompts", config.rollout.prompts)
    if config.train.row_tokens < 0:
        raise ValueError(f"config.train.row_tokens={config.train.row_tokens} should be 0 (what fits) or more")
    if config.rollout.prompt_slots < 0:
        raise ValueError(
            f"config.rollout.prompt_slots={config.rollout.prompt_slots} should be 0 (what fits) or more"
        )
    if config.rollout.slots_per_prompt < 0:
        raise ValueError(
            f"config.rollout.slots_per_prompt={config.rollout.slots_per_prompt} should be 0 (all) or more"
        )
    for tool in config.episode.tools:
        _choice("episode.tools", tool, TOOLS)
    check(config.data.curriculum, config.data.stages, config.data.temperature)
    reward = dataclasses.asdict(config.reward)
    for source in ("", *config.reward.sources):
        reward_of(reward, source)
    for path, share in (
        ("corruption.probability", config.corruption.probability),
        ("data.max_broken", config.data.max_broken),
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"config.{path}={share} is not in [0, 1]")
    if not 0 <= config.seed < 2**32:  # random keys are made of 32 bits
        raise ValueError(f"config.seed={config.seed} should be from 0 to {2**32 - 1}")
    for path, size in (
        ("data.processes", config.data.processes),
        ("train.keep_best", config.train.keep_best),
        ("train.checkpoint_minutes", config.train.checkpoint_minutes),
    ):
        if size < 0:
            raise ValueError(f"config.{path}={size} should be 0 or more")
    for name, least in (("prompt", 1), ("patch", 0)):
        buckets = getattr(config.data, f"{name}_buckets")
        if any(type(size) is not int or size < least for size in buckets):
            raise ValueError(f"config.data.{name}_buckets={buckets} should be whole numbers from {least}")
    for path, size in (
        ("rollout.prompts", config.rollout.prompts),
        ("rollout.max_tokens", config.rollout.max_tokens),
        ("rollout.max_batches", config.rollout.max_batches),
        ("evaluation.prompts", config.evaluation.prompts),
        ("evaluation.samples", config.evaluation.samples),
        ("cold_start.batch", config.cold_start.batch),
        ("cold_start.max_tokens", config.cold_start.max_tokens),
        ("rollout.chunk", config.rollout.chunk),
        ("episode.turns", config.episode.turns),
        ("episode.observation_tokens", config.episode.observation_tokens),
        ("episode.observation_patches", config.episode.observation_patches),
        ("train.steps", config.train.steps),
        ("train.checkpoint_every", config.train.checkpoint_every),
        ("train.evaluate_every", config.train.evaluate_every),
        ("train.keep_checkpoints", config.train.keep_checkpoints),
        ("train.max_skipped", config.train.max_skipped),
        ("data.workers", config.data.workers),
    ):
        if size < 1:
            raise ValueError(f"config.{path}={size} should be 1 or more")


def _choice(path: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"config.{path}={value!r} should be one of {', '.join(map(repr, choices))}")


def _divides(small_path: str, small: int, large_path: str, large: int) -> None:
    if small < 1 or large % small:
        raise ValueError(f"config.{small_path}={small} does not divide config.{large_path}={large}")
