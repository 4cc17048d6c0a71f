"""A small LLaVA-OneVision in torch and here, and prompts as torch takes them."""

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch

from resprune_jax.models import LVLM, Video, load_model
from resprune_jax.models.prompts.expansion import expand
from tests.checkpoints.onevision import reference_model, reference_processor, tiny_onevision
from tests.checkpoints.siglip import IMAGE_TOKEN_ID, PAD_ID, VIDEO_TOKEN_ID
from tests.parity.whole_path import Reference
from tests.prompt_data import lexicon


@lru_cache(maxsize=1)
def folder() -> Path:
    return tiny_onevision(Path(mkdtemp()))


@lru_cache(maxsize=1)
def torch_model() -> Any:
    return reference_model(folder())


@lru_cache(maxsize=1)
def processor() -> Any:
    return reference_processor()


@lru_cache(maxsize=1)
def lvlm() -> LVLM:
    model = load_model(folder(), dtype="float32")
    model._extractor = lexicon()
    return model


def torch_inputs(row: list[Any], question: str) -> dict[str, torch.Tensor]:
    """Pictures by transformers' own processor; videos, which it cannot read here, from this
    library's frames (tests/models/families/test_onevision_tiles.py)."""
    media = tuple("video" if isinstance(own, Video) else "image" for own in row)
    text = lvlm().encoder.encode(question, media).text
    pictures = [own for own in row if not isinstance(own, Video)]
    films = [own for own in row if isinstance(own, Video)]
    inputs: dict[str, Any] = {}
    # Another special token in the place of a video's, which the processor would count.
    text = text.replace("<video>", "<|endoftext|>")
    if pictures:
        inputs = dict(processor()(images=[pictures], text=[text], return_tensors="pt"))
    else:
        inputs = dict(processor().tokenizer([text], return_tensors="pt"))
        inputs.pop("token_type_ids", None)
    inputs["input_ids"][inputs["input_ids"] == PAD_ID] = VIDEO_TOKEN_ID
    if films:
        reader = lvlm().family.processor  # type: ignore[attr-defined]
        read = [reader.video(own.frames, fps=own.fps)[0] for own in films]
        counts = [len(own) * 4 + 1 for own in read]  # 3 x 3 patches pooled to 2 x 2
        ids, _ = expand(inputs["input_ids"][0].numpy(), [VIDEO_TOKEN_ID], counts)
        inputs["input_ids"] = torch.from_numpy(ids).long()[None]
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["pixel_values_videos"] = torch.from_numpy(np.stack(read))
    return inputs


@torch.no_grad()
def reference(row: list[Any], question: str) -> Reference:
    """One prompt alone and without padding."""
    model, inputs = torch_model(), torch_inputs(row, question)
    ids = inputs["input_ids"][0]
    x = model.get_input_embeddings()(ids)
    image = np.full(len(ids), -1)
    if "pixel_values" in inputs:
        names = ("pixel_values", "image_sizes", "batch_num_images")
        made = model.model.get_image_features(**{name: inputs[name] for name in names})
        features = list(made.pooler_output)
        x[ids == IMAGE_TOKEN_ID] = torch.cat(features)
        counts = [len(own) for own in features]
        image[ids.numpy() == IMAGE_TOKEN_ID] = np.repeat(np.arange(len(counts)), counts)
    if "pixel_values_videos" in inputs:
        films = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        x[ids == VIDEO_TOKEN_ID] = films.flatten(0, 1)
        first, count = image.max() + 1, films.shape[1]
        owner = first + np.repeat(np.arange(len(films)), count)
        image[ids.numpy() == VIDEO_TOKEN_ID] = owner
    return Reference(model, inputs, x, np.arange(len(ids)), image)
