"""The reference side of `resprune verify`: what transformers (torch) makes of picture and question.

Everything is kept as small NumPy arrays, so that the torch model is gone before ours is loaded.
"""

import gc
import inspect
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resprune_jax.errors import RunError
from resprune_jax.experiments.verify.answers import ends_of, generated, pruned
from resprune_jax.experiments.verify.reference import (
    KEPT,
    TEXTS,
    Reference,
    sample_places,
    spread,
)
from resprune_jax.methods import ResPrune
from resprune_jax.models.families.registry import family_of_type

if TYPE_CHECKING:
    import torch
    from PIL import Image


def make_reference(
    folder: Path,
    picture: "Image.Image",
    question: str,
    *,
    dtype: str,
    device: str,
    template: str | None = None,
) -> Reference:
    """Run transformers; nothing of the torch model is left behind.

    Args:
        folder: the checkpoint.
        picture: an upright RGB image.
        question: a plain question.
        dtype: "float32" or "bfloat16".
        device: torch's name of it.
        template: a chat template in place of the checkpoint's.

    Raises:
        RunError: transformers cannot load or run the checkpoint.
    """
    import torch

    begin = time.perf_counter()
    try:
        with torch.inference_mode():
            found = _run(folder, picture, question, getattr(torch, dtype), device, template)
    except RunError:
        raise
    except Exception as error:  # transformers raises many kinds
        words = " ".join(str(error).split())
        raise RunError(
            f"transformers cannot run {folder.name} (so there is nothing to compare with): "
            f"{type(error).__name__}: {words[:400]}"
        ) from error
    finally:
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return Reference(**found, seconds=time.perf_counter() - begin)


def _run(
    folder: Path,
    picture: "Image.Image",
    question: str,
    dtype: "torch.dtype",
    device: str,
    template: str | None,
) -> dict[str, Any]:
    """Every field of `Reference` but the time."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    processor, notes = load_processor(folder)
    text, templated = prompt_text(processor, question, template)
    bos = processor.tokenizer.bos_token
    inputs = processor(
        images=[picture],
        text=[text],
        add_special_tokens=bos is None or not text.startswith(bos),
        return_tensors="pt",
    )
    model, problems = _load(folder, dtype, device)
    family = family_of_type(model.config.model_type)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    passed = _full(model, inputs)
    ids = inputs["input_ids"][0].cpu().numpy()
    placeholder = int(model.config.image_token_id)
    visual = ids == placeholder
    embeddings = passed["prompt"][visual]
    newline = getattr(model.model, "image_newline", None)
    lines = np.zeros(len(embeddings), bool)
    if newline is not None:
        lines = (embeddings == _numpy(newline)).all(axis=-1)
    read = processor.tokenizer
    # Whatever is neither placeholder nor special: the words around the picture.
    special = list(read.all_special_ids)
    words = np.unique(ids[~np.isin(ids, [placeholder, *special])])
    meant = _numpy(model.get_input_embeddings()(_like(words, inputs["input_ids"])))
    alpha = float(ResPrune(**family.resprune).alpha)
    relevance, picks = _choose(embeddings, meant, lines, alpha)
    stays = ~visual
    stays[np.flatnonzero(visual)[picks]] = True
    positions = passed["positions"]
    original = family.positions == "original"
    pruned_rows, pruned_logits, continued = pruned(
        model, passed, stays, inputs["input_ids"], original=original
    )
    size = inputs.get("image_grid_thw")
    pixels = _numpy(inputs["pixel_values"])
    return {
        "processor": f"{type(processor).__name__}, {type(processor.image_processor).__name__}",
        "notes": notes,
        "samples": tuple(
            tuple(read(sample, add_special_tokens=False)["input_ids"]) for sample in TEXTS
        ),
        "eos": ends_of(model),
        "bos": read.bos_token_id,
        "templated": templated,
        "text": text,
        "ids": ids,
        "placeholder": placeholder,
        "pixels": pixels[0] if pixels.ndim == 5 else pixels,
        "grid": None if size is None else tuple(int(n) for n in size[0]),
        "weights": _fingerprints(model),
        "problems": problems,
        "features": passed["features"],
        "saliency": passed["saliency"],
        "projected": passed["projected"],
        "embeddings": embeddings,
        "newline": lines,
        "positions": np.arange(len(ids)) if positions is None else positions[:, 0].T.cpu().numpy(),
        "rows": passed["rows"],
        "logits": passed["logits"],
        "full": generated(model, inputs),
        "words": words,
        "alpha": alpha,
        "relevance": relevance,
        "picks": picks,
        "pruned_rows": pruned_rows,
        "pruned_logits": pruned_logits,
        "pruned": continued,
    }


def load_processor(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """transformers' processor of a checkpoint, its images prepared by the PIL backend.

    Returns:
        The processor, and what had to be done to it.
    """
    import transformers
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    images = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    whole = getattr(transformers, PROCESSOR_MAPPING_NAMES[config["model_type"]])
    if "video_processor" in whole.get_attributes():
        # A video part needs torchvision; no video is shown here.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return _image_only(whole, images, tokenizer, folder), ()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.image_processor = images
    notes = []
    defaults = {
        "patch_size": config["vision_config"].get("patch_size", 14),
        "vision_feature_select_strategy": "default",
    }
    for name, value in defaults.items():
        if getattr(processor, name, None) is None:
            setattr(processor, name, value)
            # Where one is left out, so is the number of tokens that are not patches: the class's.
            processor.num_additional_image_tokens = 1
            notes.append(f"processor_config.json has no {name}: {value} was taken")
    return processor, tuple(notes)


def _image_only(whole: type[Any], images: Any, tokenizer: Any, folder: Path) -> Any:
    """A family's processor without its video part, with the settings of its own file."""

    class ImageOnly(whole):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in whole.get_attributes() if name != "video_processor"]

    ImageOnly.__name__ = f"{whole.__name__} without video"
    path = folder / "processor_config.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = set(inspect.signature(whole.__init__).parameters) - set(whole.get_attributes())
    settings = {name: own[name] for name in known & set(own)}
    settings["chat_template"] = _template(folder, tokenizer)
    return ImageOnly(images, tokenizer, **settings)


def _template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template where transformers' own classes would find it."""
    old = folder / "chat_template.json"
    new = folder / "chat_template.jinja"
    if old.is_file():
        return str(json.loads(old.read_text(encoding="utf-8"))["chat_template"])
    return new.read_text(encoding="utf-8") if new.is_file() else tokenizer.chat_template


def prompt_text(processor: Any, question: str, template: str | None = None) -> tuple[str, bool]:
    """A question about one picture in the chat template, and whether there was one."""
    template = template or processor.chat_template or processor.tokenizer.chat_template
    if template is None:
        return f"USER: <image>\n{question} ASSISTANT:", False
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    return str(text), True


def _load(folder: Path, dtype: "torch.dtype", device: str) -> tuple[Any, tuple[str, ...]]:
    """The torch model with eager attention, and what is wrong with its keys."""
    from transformers import AutoModelForImageTextToText

    auto: Any = AutoModelForImageTextToText
    model, info = auto.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True,
        local_files_only=True,
    )  # fmt: skip
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(kind) or ())):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}{more}")
    return model.to(device).eval(), tuple(problems)


def _full(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """One pass over the full prompt, its inner results caught by hooks."""
    inner = model.model
    caught: dict[str, Any] = {}

    def at_projector(_: Any, given: tuple[Any, ...], made: Any) -> None:
        caught["features"], caught["projected"] = given[0], made

    def at_text(_: Any, __: Any, given: dict[str, Any]) -> None:
        caught["prompt"], caught["positions"] = given["inputs_embeds"], given.get("position_ids")

    def at_class_token(_: Any, __: Any, made: Any) -> None:
        caught["saliency"] = made[1][:, :, 0, 1:].float().mean(dim=1)  # [T, N]

    tower = getattr(inner, "vision_tower", None)
    projector = inner.visual.merger if tower is None else inner.multi_modal_projector
    hooks = [
        projector.register_forward_hook(at_projector),
        inner.language_model.register_forward_pre_hook(at_text, with_kwargs=True),
    ]
    if tower is not None and _has_class_token(tower):
        blocks = [m for name, m in tower.named_modules() if name.endswith("encoder.layers")]
        layer = model.config.vision_feature_layer  # hidden_states[i] is behind block i - 1
        layer = layer[0] if isinstance(layer, list) else layer
        block = blocks[0][layer if layer < 0 else layer - 1]
        hooks.append(block.self_attn.register_forward_hook(at_class_token))
    try:
        hidden = inner(**inputs, use_cache=False).last_hidden_state[0]
    finally:
        for hook in hooks:
            hook.remove()
    rows = spread(len(hidden))
    positions = caught["positions"]
    if positions is not None and len(positions) == 4:  # the first axis is for packed masks
        positions = positions[1:]
    made = {name: _numpy(caught[name]) for name in ("features", "projected")}
    prompt = _numpy(caught["prompt"][0])
    if tower is None:
        cells = prompt[(inputs["input_ids"][0] == model.config.image_token_id).cpu().numpy()]
        made = _in_raster_order(made, cells)
    return {
        **made,
        "prompt": prompt,
        "tensor": caught["prompt"],
        "positions": positions,
        "saliency": _numpy(caught["saliency"]) if "saliency" in caught else None,
        "rows": rows,
        "logits": _numpy(model.lm_head(hidden[rows])),
    }


def _has_class_token(tower: Any) -> bool:
    return any(name.endswith("class_embedding") for name, _ in tower.named_parameters())


def _in_raster_order(made: dict[str, np.ndarray], cells: np.ndarray) -> dict[str, np.ndarray]:
    """The merger's rows, which come in the order of windows, in that of the visual tokens.

    Each row of its output is one of the visual tokens, bit for bit, so rows are paired by value.
    """
    order, wanted = (
        np.lexsort(np.ascontiguousarray(rows).view(np.uint32).T)
        for rows in (made["projected"], cells)
    )
    if not np.array_equal(made["projected"][order], cells[wanted]):
        raise RunError("the visual tokens in torch are not the merger's rows in another order")
    back = np.empty(len(cells), np.int64)
    back[wanted] = order
    features = made["features"].reshape(len(cells), -1)[back]
    return {
        "features": features.reshape(made["features"].shape),
        "projected": made["projected"][back],
    }


def _choose(
    embeddings: np.ndarray, words: np.ndarray, lines: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Relevance and the float64 oracle's picks, the first of the largest norm."""
    from resprune_jax.exact import greedy

    def unit(x: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
        return np.asarray(x / np.where(norm > 0, norm, 1))

    relevance = np.maximum((unit(embeddings) @ unit(words).T).max(axis=-1), 0).astype(np.float32)
    count = max(1, min(KEPT, len(embeddings) // 3))
    first = int(np.argmax(np.where(lines, -1, np.linalg.norm(embeddings, axis=-1))))
    chosen = greedy(embeddings, count, relevance=relevance, alpha=alpha, first=first)
    return relevance, chosen.indices


def _fingerprints(model: Any) -> dict[str, np.ndarray]:
    """Some values of every parameter, by canonical name."""
    keys = family_of_type(model.config.model_type).config_class.form.keys
    found = {}
    for name, tensor in model.state_dict().items():
        key = keys.canonical_key(name)
        flat = tensor.reshape(-1)
        found[key] = _numpy(flat[_like(sample_places(key, flat.shape[0]), flat)])
    return found


def _like(index: np.ndarray, tensor: Any) -> Any:
    """Indices where a tensor is."""
    import torch

    return torch.from_numpy(np.asarray(index, np.int64)).to(tensor.device)


def _numpy(tensor: Any) -> np.ndarray:
    """A tensor as float32 (exact for bfloat16) on the host."""
    return np.array(tensor.detach().float().cpu().numpy())
