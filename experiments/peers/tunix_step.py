"""Whole steps of Tunix' GRPOLearner on text: random rewards, no reference, float32, AdamW.

Tunix has no pictures in reinforcement learning and no Qwen2.5-VL, so it runs the language model's sizes
alone, with weights of its own. A step is the time from one batch of rewards to the next.
"""

import json
import time
from typing import Any

from experiments.peers.measure import Clock, emit, limit_threads, prompt_rows, require, step_arguments


def main() -> None:
    """Print the seconds of each step and of its parts."""
    parser = step_arguments(__doc__)
    parser.add_argument("--micro-prompts", type=int, default=1, help="whose gradient is taken at once")
    options = parser.parse_args()
    require("tunix", "jax", "flax", "optax", "grain", "transformers")
    limit_threads(options.threads)
    import jax
    import numpy as np
    import optax
    import transformers
    from flax import nnx
    from jax.sharding import Mesh
    from tunix.generate import tokenizer_adapter
    from tunix.rl import rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    template = json.loads((options.model / "chat_template.json").read_text())["chat_template"]
    rows = prompt_rows(options.prompts, with_images=False)
    texts: list[Any] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["problem"]}],
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
        )
        for row in rows
    ]
    longest = max(len(tokenizer.encode(text)) for text in texts)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    with mesh:
        actor, vocabulary = model(json.loads((options.model / "config.json").read_text()), nnx.Rngs(0))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=actor,
        reference=None,
        tokenizer=tokenizer_adapter.TokenizerAdapter(tokenizer),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-6),
                eval_every_n_steps=10_000,
                max_steps=options.runs + 2,
                mini_batch_size=options.prompts_per_step,
                train_micro_batch_size=options.micro_prompts,
                rollout_micro_batch_size=options.prompts_per_step,
                compute_logps_micro_batch_size=options.micro_prompts,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=options.new,
                max_prompt_length=longest,
                kv_cache_size=longest + options.new + 8,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
                eos_tokens=[vocabulary - 1],  # beyond the tokenizer: as good as never drawn
            ),
        ),
    )
    steps, reward = watch(cluster)
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(num_generations=options.group, num_iterations=1, beta=0.0),
        reward_fns=reward,
    )
    with mesh:
        learner.train(dataset(texts, options.prompts_per_step))
    responses = options.prompts_per_step * options.group
    # The first interval holds compilations; the learner reads ahead, so the last is short of an update.
    emit(
        ("google-tunix", "jax", "flax", "transformers"),
        steps=steps[2:],
        tokens=responses * options.new,
        prompt_tokens=longest,
    )


def model(config: dict[str, Any], rngs: Any) -> tuple[Any, int]:
    """A Qwen2 of the language model's sizes, and its vocabulary."""
    import jax.numpy as jnp
    from tunix.models.qwen2 import model as qwen2

    sizes = qwen2.ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=int(config["rope_theta"]),
        norm_eps=config["rms_norm_eps"],
        use_tied_embedding=config["tie_word_embeddings"],
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    return qwen2.Qwen2(sizes, rngs=rngs), config["vocab_size"]


def dataset(texts: list[str], batch: int) -> Any:
    """Prompts for ever, as far as a run is concerned."""
    import grain

    rows = grain.MapDataset.source(texts).repeat(1000).batch(batch)
    return rows.map(
        lambda part: {"prompts": [str(text) for text in part], "answer": [str(text) for text in part]}
    )


def watch(cluster: Any) -> tuple[list[dict[str, Any]], Any]:
    """Readings, one an interval between rewards, and the reward function that takes them."""
    import numpy as np

    steps: list[dict[str, Any]] = []
    parts = {"rollout": 0.0, "update": 0.0}
    clocks: list[Clock] = []
    draw = np.random.default_rng(0)

    def time_calls(name: str, part: str) -> None:
        call = getattr(cluster, name)

        def timed_call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = call(*args, **kwargs)
            parts[part] += time.perf_counter() - start
            return out

        setattr(cluster, name, timed_call)

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        if clocks:
            steps.append({**clocks[-1].read(), **parts})
        clocks.append(Clock())
        parts.update(rollout=0.0, update=0.0)
        return draw.random(len(completions)).tolist()

    time_calls("generate", "rollout")
    time_calls("update_actor", "update")
    return steps, reward


if __name__ == "__main__":
    main()
