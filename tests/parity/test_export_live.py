"""What mmrl saves, transformers loads: models of every family, with the logits of the stored references."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mmrl.models import checkpoint
from mmrl.models.family import FAMILIES, param_specs, read_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FIXTURES = Path(os.environ.get("MMRL_FIXTURES_DIR") or Path(__file__).parent.parent / "data" / "fixtures")
INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")


def _cases():
    """Of each model one reference, with an image if the model reads some."""
    for config in sorted(FIXTURES.glob("*/config.json")):
        if json.loads(config.read_text())["model_type"] in FAMILIES:
            known = json.loads((config.parent / "ref" / "index.json").read_text())
            name = next(name for name in ("two_images", "one_square", "batch_left_pad") if name in known)
            yield pytest.param(config.parent, name, id=f"{config.parent.name}-{name}")


@pytest.mark.parametrize(("directory", "name"), _cases())
def test_logits_of_what_was_saved(directory, name, tmp_path):
    specs = param_specs(read_config(directory))
    checkpoint.save(checkpoint.load(directory, specs), specs, tmp_path / "saved", directory)
    read = (
        transformers.AutoModelForImageTextToText if "vision" in specs else transformers.AutoModelForCausalLM
    )
    theirs, info = read.from_pretrained(
        tmp_path / "saved", dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert theirs.dtype == torch.float32
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    reference = np.load(directory / "ref" / f"{name}.npz")
    given = {key: torch.tensor(reference[key]) for key in INPUTS if key in reference}
    with torch.no_grad():
        logits = theirs.eval()(**given, use_cache=False).logits[:, -8:].numpy()
    expected = reference["logits_last8"] if "logits_last8" in reference else reference["logits"][:, -8:]
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
