"""``mmrl export``: a step of a run as a Hugging Face directory."""

import argparse
from collections.abc import Sequence

from mmrl.commands import options as option
from mmrl.commands.options import Command, load_step
from mmrl.terminal import tell


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    sub.add_argument("--workdir", type=option.path, required=True, help="the run's folder")
    sub.add_argument("--step", type=option.integer(0), help="which checkpoint (default: the newest)")
    sub.add_argument("--out", type=option.path, required=True, help="directory to be made")
    sub.add_argument("--push", metavar="ORG/NAME", help="also upload it to the Hugging Face hub")
    sub.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Write the directory, and upload it if that is asked for."""
    if options.out.is_file() or (options.out.is_dir() and any(options.out.iterdir())):
        raise ValueError(f"--out={options.out} exists already: name another folder, or delete it first")
    import jax.numpy as jnp

    from mmrl import hub
    from mmrl.models.checkpoint import save
    from mmrl.open import open_model, resolve_model_path
    from mmrl.run_folder import read_config

    config = read_config(options.workdir)
    model = open_model(config, resolve_model_path(config, options.workdir))
    if options.push:
        hub.check_push(options.push)
    step, params = load_step(options.workdir, options.step, model)
    save(params, model.description, options.out, base=model.directory, dtype=jnp.dtype(options.dtype))
    tell(f"step {step} of {options.workdir} in {options.out} ({options.dtype})")
    if options.push:
        method = config.algorithm["name"]
        tell(f"pushed    {hub.push(options.out, options.push, f'{method}, step {step}, by mmrl')}")


_EXAMPLES = """\
examples:
  mmrl export --workdir=runs/quickstart --out=exported
  mmrl export --workdir=runs/quickstart --step=STEP --out=exported-step --dtype=bfloat16

Writes a Hugging Face directory that transformers loads."""
EXPORT = Command(
    "export", "Write a step of a run as a Hugging Face directory.", _EXAMPLES, add_arguments, run
)
