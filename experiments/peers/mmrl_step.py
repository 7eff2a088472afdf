"""Whole steps of mmrl's training loop: GRPO without reference, float32, no recomputation, AdamW.

It is the loop of ``mmrl train`` on data from disk, with the verifier of the format in its processes, and its
times are those it writes. So reading, preprocessing, grading and metrics are in it.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.peers.measure import Clock, ForcedLengths, emit, limit_threads, step_arguments


def main() -> None:
    """Print the seconds of each step and of its parts, and what is computed in one."""
    parser = step_arguments(__doc__)
    parser.add_argument("--micro-prompts", type=int, default=1, help="whose gradient is taken at once")
    parser.add_argument("--text", action="store_true", help="prompts without a picture")
    options = parser.parse_args()
    limit_threads(options.threads)
    from mmrl.run_folder import read_metrics

    counts, spent = watch(), processor_seconds()
    lengths = force_lengths(options.new) if options.long_tailed else None
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        others = run(options, workdir)
        rows = read_metrics(workdir)
    steps = []
    per_step = {name: round(total / len(rows)) for name, total in counts.items()}
    # Not the first two steps, which compile, nor the last, which writes a checkpoint.
    for row, cpu in list(zip(rows, spent, strict=True))[2:-1]:
        parts = {name.removeprefix("time/"): value for name, value in row.items() if name.startswith("time/")}
        wall = parts.pop("step")
        compiles = row["compiles"]
        steps.append({"wall": wall, "cpu": cpu, "others": others, **parts, **per_step, "compiles": compiles})
    tokens = options.prompts_per_step * options.group * options.new
    tokens = tokens if lengths is None else round(lengths.total / len(rows))
    emit(("jax", "jaxlib", "flax", "optax"), steps=steps, tokens=tokens)


def run(options: Any, workdir: Path) -> float | None:
    """Three steps more than are timed; returns the processors that others kept busy meanwhile."""
    from mmrl.models.family import read_config
    from mmrl.open import open_model, open_training_data
    from mmrl.train.rl import train
    from mmrl.train.stop_signal import StopSignal

    sizes = read_config(options.model)
    data = options.prompts / ("text.jsonl" if options.text else "images.jsonl")
    config = configured(options, data, sizes)
    model = open_model(config, options.model)
    # A response ends when its tokens are spent: no token has this id.
    model = dataclasses.replace(model, processor=dataclasses.replace(model.processor, stop=(-1,)))
    source = open_training_data(config, workdir, model)
    clock = Clock()
    open_keys = ("rollout.prompt_slots", "rollout.slots_per_prompt")
    train(config, model, source, (), workdir, StopSignal(), open_keys)
    return clock.read()["others"]


def configured(options: Any, data: Path, sizes: Any) -> Any:
    """The config of a run. All prompts have one length, which is the one bucket."""
    from experiments.peers.measure import prompt_rows
    from mmrl.config import resolve, template
    from mmrl.models.processor import load_processor
    from mmrl.models.prompts import chat_messages, encode
    from mmrl.rewards.reward import Reward

    processor = load_processor(options.model)
    row = prompt_rows(options.prompts, with_images=not options.text)[0]
    encoded = encode(processor, chat_messages(row["problem"]), row["images"])
    responses = 1 if options.long_tailed else options.group  # in a row; short ones leave room for others
    config = template("grpo")
    config.algorithm.reference_kl = 0.0
    config.model.update({"path": str(options.model), "unroll": max(sizes.layers, sizes.vision.layers)})
    config.data.train = str(data)
    config.data.prompt_buckets = (len(encoded.tokens),)
    config.data.patch_buckets = (len(encoded.patches),)
    config.rollout.update(
        {"prompts": options.prompts_per_step, "group": options.group, "max_tokens": options.new}
    )
    config.reward = Reward(weights={"format": 1.0})
    config.optimizer.learning_rate = 1e-6
    config.train.update(
        {
            "steps": options.runs + 3,
            "update_prompts": options.prompts_per_step,
            "row_tokens": options.micro_prompts * (len(encoded.tokens) + responses * options.new),
            "checkpoint_every": options.runs + 3,
        }
    )
    return resolve(config)


def watch() -> dict[str, int]:
    """Counts, kept up to date from outside, of preprocessed pictures and of patches in the vision tower."""
    import jax

    from mmrl.models import prompts, vision_tower

    counts = {"images_preprocessed": 0, "vision_patches": 0}
    patchify, through_tower = prompts.patchify, vision_tower._through_tower

    def counted_patchify(*args: Any, **kwargs: Any) -> Any:
        counts["images_preprocessed"] += 1
        return patchify(*args, **kwargs)

    def counted_vision(params: Any, config: Any, x: Any, *rest: Any) -> Any:
        rows = x.shape[0] * x.shape[1]

        def count() -> None:
            counts["vision_patches"] += rows

        jax.debug.callback(count)  # each time that the program comes by, and not once when it is traced
        return through_tower(params, config, x, *rest)

    prompts.patchify, vision_tower._through_tower = counted_patchify, counted_vision
    return counts


def force_lengths(new: int) -> ForcedLengths:
    """Give each episode that begins a length of its own; returns where they come from."""
    from mmrl.train import rollouts

    lengths, single_turn = ForcedLengths(new), rollouts.single_turn

    def forced(sampling: Any) -> Any:
        return single_turn(dataclasses.replace(sampling, max_tokens=lengths.next()))

    rollouts.single_turn = forced
    return lengths


def processor_seconds() -> list[float]:
    """Processor seconds of each step, added when its metrics are written."""
    from mmrl.train.metrics import Metrics

    spent: list[float] = []
    last = [time.process_time()]
    write = Metrics.write

    def timed_write(self: Any, *args: Any) -> None:
        write(self, *args)
        now = time.process_time()
        spent.append(now - last[0])
        last[0] = now

    Metrics.write = timed_write  # type: ignore[method-assign, assignment]
    return spent


if __name__ == "__main__":
    main()
