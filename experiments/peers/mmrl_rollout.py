"""mmrl's rollout of one prompt with a picture, sampled ``--batch`` times, and the floor of a decode step."""

from experiments.peers.measure import arguments, emit, limit_threads, prompt_rows, timed


def main() -> None:
    """Print the seconds of prompt plus one token, of all tokens, and of the floor."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    limit_threads(options.threads)
    import jax

    from experiments.peers.floor import floor
    from mmrl.models import checkpoint
    from mmrl.models.family import param_specs, read_config
    from mmrl.models.processor import load_processor
    from mmrl.models.prompts import chat_messages, collate, encode
    from mmrl.rollout.scheduler import Stats

    config = read_config(options.model)
    weights = checkpoint.load(options.model, param_specs(config))
    processor = load_processor(options.model)
    row = prompt_rows(options.prompts, with_images=True)[0]

    def prompts():
        """Encoded anew for each call, as the peer's inputs are not: it is counted against mmrl."""
        encoded = encode(processor, chat_messages(row["problem"]), row["images"])
        return collate([encoded], processor, len(encoded.tokens), len(encoded.patches))

    length = prompts().tokens.shape[1]
    generate = sampler(weights, config, processor, options.batch)
    total = timed(lambda: generate(prompts(), options.new), options.runs)
    first = timed(lambda: generate(prompts(), 1), options.runs)
    stats = Stats()
    for _ in range(options.runs):
        generate(prompts(), options.new, stats)
    emit(
        ("jax", "jaxlib", "numpy"),
        parts={name: seconds / options.runs for name, seconds in stats.seconds.items()},
        chunks=stats.chunks / options.runs,
        modes={"mmrl": {"total": total, "first": first}},
        prompt_tokens=length,
        floor=floor(config, options.batch, length, options.new),
        platform=jax.devices()[0].device_kind,
    )


def sampler(weights, config, processor, batch: int):
    """A function of prompts and a number of tokens that samples ``batch`` responses of just that many.

    All that this benchmark knows of the rollout engine stands here.
    """
    import jax

    from mmrl.rollout.engine import decoding_weights, vocabulary_bias
    from mmrl.rollout.generate import generate
    from mmrl.rollout.sampling import Sampling

    acting = decoding_weights(weights, config)
    bias = vocabulary_bias(config.vocabulary, len(processor.tokenizer), processor.placeholders)
    keys = jax.random.split(jax.random.key(0), 1)

    def sample(prompts, tokens: int, stats=None):
        sampling = Sampling(max_tokens=tokens)  # without stop ids: each has all its tokens
        return generate(acting, config, prompts, keys, group=batch, sampling=sampling, bias=bias, stats=stats)

    return sample


if __name__ == "__main__":
    main()
