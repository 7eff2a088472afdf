"""Whole steps of TRL's GRPOTrainer: random rewards, no reference, float32, no recomputation, AdamW."""

import functools
import random
import tempfile
import time
from typing import Any

from experiments.peers.measure import (
    Clock,
    ForcedLengths,
    emit,
    limit_threads,
    prompt_rows,
    require,
    step_arguments,
)


def main() -> None:
    """Print the seconds of each step and of its parts, and what is computed in one."""
    parser = step_arguments(__doc__)
    parser.add_argument("--micro-rows", type=int, default=8, help="responses whose gradient is taken at once")
    parser.add_argument("--text", action="store_true", help="prompts without a picture")
    options = parser.parse_args()
    require("torch", "transformers", "trl", "datasets", "accelerate", "PIL")
    limit_threads(options.threads)
    import datasets
    import torch
    import trl

    from experiments.peers.torch_side import conversation, load, pictures

    torch.set_num_threads(options.threads)
    model, processor = load(options.model)
    rows: list[dict[str, Any]] = []
    for row in prompt_rows(options.prompts, with_images=not options.text):
        prompt = conversation(row)
        if options.text:
            rows.append({"prompt": [{"role": "user", "content": row["problem"]}]})
        else:
            rows.append({"prompt": prompt, "image": pictures(row)[0]})
    draw = random.Random(0)
    responses = options.prompts_per_step * options.group
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=options.micro_rows,
            gradient_accumulation_steps=responses // options.micro_rows,
            num_generations=options.group,
            max_completion_length=options.new,
            generation_kwargs={} if options.long_tailed else {"min_new_tokens": options.new},
            max_steps=options.runs + 1,
            learning_rate=1e-6,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_vllm=False,
            use_cpu=True,
            temperature=1.0,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        lengths = ForcedLengths(options.new) if options.long_tailed else None
        totals = watch(model, processor, lengths)
        steps: list[dict[str, Any]] = []
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [draw.random() for _ in completions],
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=processor,
            callbacks=[stopwatch(steps, totals)],
        )
        trainer.train()
    tokens = responses * options.new if lengths is None else round(lengths.total / len(steps))
    emit(("torch", "transformers", "trl"), steps=steps[1:], tokens=tokens)


def watch(model: Any, processor: Any, lengths: ForcedLengths | None) -> dict[str, float]:
    """Totals, kept up to date from outside: seconds of generation and of the processor, and what ran.

    With ``lengths``, each response that is generated ends at its own.
    """
    totals = {"rollout": 0.0, "processor": 0.0, "images_preprocessed": 0, "vision_patches": 0}
    generate, vision, kind = model.generate, model.model.visual.forward, type(processor)
    process = kind.__call__

    def end_at(ends: list[int]) -> Any:
        """A logits processor that draws the end of each row at its last token, and not before."""
        import torch

        eos = model.generation_config.eos_token_id
        eos = eos if isinstance(eos, list) else [eos]
        last, start = torch.tensor(ends), None

        def only_then(ids: Any, scores: Any) -> Any:
            nonlocal start
            start = ids.shape[1] if start is None else start
            ended = last <= ids.shape[1] - start + 1
            scores[:, eos] = -torch.inf
            scores[ended] = -torch.inf
            scores[ended, eos[0]] = 0.0
            return scores

        return only_then

    @functools.wraps(generate)
    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        if lengths is not None:
            count = len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])
            kwargs["logits_processor"] = [end_at([lengths.next() for _ in range(count)])]
        start = time.perf_counter()
        out = generate(*args, **kwargs)
        totals["rollout"] += time.perf_counter() - start
        return out

    @functools.wraps(vision)
    def counted_vision(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        totals["vision_patches"] += hidden.shape[0]
        return vision(hidden, *args, **kwargs)

    def timed_process(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = process(self, *args, **kwargs)
        totals["processor"] += time.perf_counter() - start
        totals["images_preprocessed"] += len(out["image_grid_thw"]) if "image_grid_thw" in out else 0
        return out

    model.generate, model.model.visual.forward, kind.__call__ = timed_generate, counted_vision, timed_process
    return totals


def stopwatch(steps: list[dict[str, Any]], totals: dict[str, float]) -> Any:
    """A callback that adds one reading a step to ``steps``."""
    import transformers

    class Stopwatch(transformers.TrainerCallback):
        """The seconds of a step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Start the clock."""
            self.clock, self.before = Clock(), dict(totals)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Read it."""
            made = {name: totals[name] - self.before[name] for name in totals}
            steps.append({**self.clock.read(), **made})

    return Stopwatch()


if __name__ == "__main__":
    main()
