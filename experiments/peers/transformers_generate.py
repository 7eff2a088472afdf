"""transformers' ``generate`` on one prompt with a picture, sampled ``--batch`` times with a key/value cache.

Three ways: the prompt ``repeat``-ed (as TRL does), ``num_return`` sequences of one prompt, and ``shared``:
the prompt run once and its cache repeated, by the public functions of the cache.
"""

from experiments.peers.measure import arguments, emit, limit_threads, prompt_rows, require, timed

MODES = ("repeat", "num_return", "shared")


def main() -> None:
    """Print the seconds of prompt plus one token, and of all tokens, for each mode."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options = parser.parse_args()
    require("torch", "transformers", "PIL")
    limit_threads(options.threads)
    import torch
    import transformers

    from experiments.peers.torch_side import inputs, load

    torch.set_num_threads(options.threads)
    model, processor = load(options.model)
    model.eval()
    row = prompt_rows(options.prompts, with_images=True)[0]
    one = inputs(processor, row, 1)
    length = one["input_ids"].shape[1]

    def sampling(tokens: int) -> dict:
        return {
            "do_sample": True,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
        }

    def shared(tokens: int) -> torch.Tensor:
        cache = transformers.DynamicCache(config=model.config.get_text_config())
        whole = {"pixel_values", "image_grid_thw"}
        before = {name: value if name in whole else value[:, :-1] for name, value in one.items()}
        model(**before, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(options.batch)
        model.model.rope_deltas = model.model.rope_deltas.expand(options.batch, 1)
        rows = {name: one[name].expand(options.batch, -1) for name in ("input_ids", "attention_mask")}
        return model.generate(**rows, past_key_values=cache, **sampling(tokens))

    def run(mode: str, tokens: int) -> None:
        with torch.no_grad():
            model.model.rope_deltas = None
            if mode == "repeat":
                out = model.generate(**repeated, **sampling(tokens))
            elif mode == "num_return":
                out = model.generate(**one, **sampling(tokens), num_return_sequences=options.batch)
            else:
                out = shared(tokens)
        if out.shape != (options.batch, length + tokens):
            raise RuntimeError(f"{mode}: {tuple(out.shape)} tokens came out")

    repeated = inputs(processor, row, options.batch)
    found = {
        mode: {
            "total": timed(lambda mode=mode: run(mode, options.new), options.runs),
            "first": timed(lambda mode=mode: run(mode, 1), options.runs),
        }
        for mode in options.modes
    }
    emit(("torch", "transformers"), modes=found, prompt_tokens=length)


if __name__ == "__main__":
    main()
