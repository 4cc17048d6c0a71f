"""The model card of a pocket model: what it is, what it can, and what it cannot tell.

`resprune pocket eval --card README.md` writes it from what was measured.
"""

from collections.abc import Mapping
from typing import Any

from resprune_jax.experiments.pocket.evaluation.tables import (
    CAVEAT,
    accuracy_table,
    family_table,
    goal_table,
    markdown_table,
    source,
)
from resprune_jax.experiments.pocket.model.recipe import recipe
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES
from resprune_jax.experiments.pocket.training.plans import SHIPPED, stages_of

_HEAD = """---
license: apache-2.0
language: en
pipeline_tag: image-text-to-text
library_name: transformers
tags: [llava, visual-token-pruning, synthetic]
---
"""

_ABOUT = {
    "existence": "is there such an object (half yes; random, popular and adversarial negatives)",
    "counting": "how many objects of a shape or colour, 0 to 4",
    "attributes": "colour, shape or size of an object",
    "relations": "where objects are to each other and in the image, and what is where",
    "reading": "printed words and numbers of two and three digits",
}


def card(figures: Mapping[str, Any]) -> str:
    """The card of a measured model, in Markdown.

    Args:
        figures: what `summary.summary` made of the frozen test set.
    """
    sizes = recipe(figures["preset"])
    scenes = sizes.scenes
    full = figures["settings"][0]["accuracy"]
    rows = [(name, _ABOUT[name], str(full[name]["asked"])) for name in FAMILIES if name in full]
    parts = [
        (
            f"vision tower (CLIP), {scenes.side} x {scenes.side} pixels",
            str(sizes.vision_layers),
            str(sizes.vision_width),
        ),
        (f"language model (Llama), {sizes.heads} heads", str(sizes.layers), str(sizes.width)),
    ]
    stages = [
        (
            stage.name,
            f"{stage.schedule.steps:,}",
            str(stage.batches.images),
            f"{stage.schedule.peak:g}",
            stage.about,
        )
        for stage in stages_of(figures["preset"])
    ]
    tokens = figures["visual_tokens"]
    auc = figures["relevance_auc"].get("overall")
    relevance = (
        ""
        if auc is None
        else f"Mean AUC of the text relevance for the patches of what a question names:"
        f" {auc['value']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), chance is 0.5.\n"
    )
    return f"""{_HEAD}
# Pocket LLaVA, preset {figures["preset"]}

A LLaVA-1.5 in miniature: the same architecture, file format and chat template as the published
models, trained from nothing on drawn scenes. It answers short questions about such scenes, with
all of its {tokens} visual tokens or with a part of them. It exists so that the quality of token
pruning can be measured on a laptop. {CAVEAT}

```python
from resprune_jax.models import load_model

lvlm = load_model("path/to/this/folder")
print(lvlm.generate("scene.png", "What color is the star?", keep=32).texts)
```

`transformers` loads it as an ordinary `LlavaForConditionalGeneration`.

## Sizes

{markdown_table(("part", "layers", "width"), parts)}
The language model is more than twice as wide as the largest budget, so that selection is not
limited by rank. Weights are stored in float16 and computed with in float32.

## Data

Scenes are drawn from a seed: objects of nine shapes and nine colours, large and small, printed
words and numbers, clutter, textured grounds. Training, validation and test scenes share no seed;
the test set is frozen by its hash (contents `{figures["contents"][:16]}`).

{markdown_table(("family", "questions", "in this test"), rows)}
## Training

In stages, with AdamW, warm-up, cosine decay and gradient clipping, from random weights;
`resprune pocket train --preset {figures["preset"]}` runs them again.

{markdown_table(("stage", "steps", "images a step", "learning rate", "what it does"), stages)}
{SHIPPED.get(figures["preset"], "")}

## Accuracy

{source(figures)}

{markdown_table(*goal_table(figures))}
{markdown_table(*accuracy_table(figures))}
By family, per cent:

{markdown_table(*family_table(figures))}
"Object's patches" are those of what the question is about, which the generator knows, and no
others; where there is nothing to see (an absent object that resembles none, a count of 0) as many
random ones as the budget allows.
{relevance}
## Limits

- It knows drawn scenes and nothing else: photographs, other words and other questions give
  nonsense.
- A small drawn image is less redundant than a photograph, and its objects are a few patches each.
  How much a method loses at a ratio, and which method wins by how much, need not carry over to
  large models; that a change breaks selection, positions, caches or text conditioning shows here.
- Nouns of {figures["noun_backend"]} conditioned the choice; another tagger may choose other tokens.
- Weights `{figures["weights"][:16]}` (SHA-256), measured with
  resprune-jax {figures["versions"]["resprune-jax"]} on jax {figures["versions"]["jax"]}.
"""
