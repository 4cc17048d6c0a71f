"""A checkpoint of 576 visual tokens that was written here, in Hugging Face's hands."""

from pathlib import Path

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

from resprune_jax.models import load_model
from tests.checkpoints.random import write_checkpoint

QUESTION = "What is the woman in the photograph wearing on her head?"


def test_transformers_loads_it_and_agrees(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    model, loading = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    photograph = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(photograph) as image:
        pixels = processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == f"USER: <image>\n{QUESTION} ASSISTANT:"
    ids = tokenizer(text.replace("<image>", "<image>" * 576), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        reference = model.eval()(input_ids=ids, pixel_values=pixels).logits[0].numpy()

    logits, valid = load_model(folder).logits(photograph, QUESTION)
    ours = np.asarray(logits[0])[np.asarray(valid[0])]
    assert ours.shape == reference.shape and len(ours) > 576
    worst, bound = np.abs(ours - reference).max(), 1e-5 * max(1.0, float(reference.std()))
    print(f"{ours.shape} logits, worst {worst:.1e}, bound {bound:.1e}")
    assert worst <= bound
