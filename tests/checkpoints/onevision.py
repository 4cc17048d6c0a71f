"""Small LLaVA-OneVision checkpoints in Hugging Face's format, made by the installed transformers.

Needs torch. Everything is deterministic: two calls write the same tensors.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from tests.checkpoints.llava import randomise
from tests.checkpoints.siglip import (
    CHAT_TEMPLATE,
    GRID,
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    VIDEO_TOKEN_ID,
    text_config,
    tiny_tokenizer,
    vision_config,
)

PINPOINTS = [
    [rows * IMAGE_SIZE, columns * IMAGE_SIZE] for rows in (1, 2, 3) for columns in (1, 2, 3)
]
ASPECT = "anyres_max_4"
"""Planes of 2 x 3 tiles and more are resized, those of 2 x 2 are not."""


class ImageOnlyProcessor(LlavaOnevisionProcessor):
    """The processor without its video part, which would need torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        self.num_image_tokens = GRID**2
        self.vision_feature_select_strategy = "full"
        self.vision_aspect_ratio = ASPECT
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id, self.video_token_id = IMAGE_TOKEN_ID, VIDEO_TOKEN_ID
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tiny_onevision(directory: Path) -> Path:
    """Write a checkpoint folder: weights, configuration, tokenizer, processors, chat template."""
    config = LlavaOnevisionConfig(
        vision_config=vision_config(),
        text_config=text_config(layers=2, tied=False),
        image_token_index=IMAGE_TOKEN_ID,
        video_token_index=VIDEO_TOKEN_ID,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ASPECT,
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    randomise(model)
    with torch.no_grad():
        model.model.image_newline.mul_(0.02)  # as large as the other tokens
    directory = Path(directory)
    model.save_pretrained(directory)
    image_processor().save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": GRID**2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": ASPECT,
    }
    (directory / "processor_config.json").write_text(json.dumps(settings))
    return directory


def image_processor() -> LlavaOnevisionImageProcessorPil:
    """transformers' image processor for the small tiles."""
    return LlavaOnevisionImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=PINPOINTS
    )


def reference_processor() -> ImageOnlyProcessor:
    """transformers' processor for text and pictures."""
    return ImageOnlyProcessor(image_processor(), tiny_tokenizer(), chat_template=CHAT_TEMPLATE)


def reference_model(directory: Path) -> LlavaOnevisionForConditionalGeneration:
    """The torch model of a checkpoint folder: float32, eager attention, in evaluation mode."""
    return LlavaOnevisionForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
