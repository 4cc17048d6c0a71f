"""The pocket model that ships gives the same answers in torch's hands."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from resprune_jax.experiments.pocket.evaluation.measure import (
    NEW_TOKENS,
    is_right,
    measure,
    settings,
)
from resprune_jax.experiments.pocket.scenes.frozen import frozen_set
from resprune_jax.experiments.pocket.scenes.scene import render
from resprune_jax.models import load_model
from resprune_jax.models.checkpoint.shipped import shipped
from tests.checkpoints.llava import reference_model


@pytest.mark.deep
def test_torch_gives_the_same_answers() -> None:
    """50 test questions with all tokens, through transformers' own processor and template."""
    folder = shipped()
    items = frozen_set("cpu", 10)
    ours = measure(load_model(folder, dtype="float32"), items, settings(("full",)))
    reference = reference_model(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    told = iter(ours.texts["full"])
    equal, right, answers = 0, 0, set()
    for scene, questions in items:
        image = Image.fromarray(render(scene))
        for question in questions:
            content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
            text = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = processor(images=[image], text=[text], return_tensors="pt")
            with torch.no_grad():
                ids = reference.generate(
                    **inputs, do_sample=False, max_new_tokens=NEW_TOKENS,
                    pad_token_id=processor.tokenizer.pad_token_id,
                )  # fmt: skip
            new = ids[0, inputs["input_ids"].shape[1] :]
            answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
            assert answer == next(told), question.prompt
            equal += 1
            right += is_right(answer, question.answer)
            answers.add(answer)
    print(f"{equal} answers equal in torch, {len(answers)} different ones, {right} right")
    assert equal == 50 and len(answers) > 10
