"""The names that options choose from; nothing here imports JAX, so a command's help is quick."""

from typing import Literal

Aggregate = Literal["max", "mean", "pooled"]
"""Table VI: the largest or the mean cosine over the noun tokens, or the cosine with their mean."""

NonNegative = Literal["clip", "shift", "minmax"]
"""How a cosine, which may be negative, becomes a weight (our reading; the paper leaves it open)."""

SeedRule = Literal["cls_attention", "max_norm", "text", "mean_similarity", "center"]
"""Table VII: highest CLS attention, largest norm, highest text relevance, highest cosine with the
mean visual token, nearest to the centre of the image."""

Attention = Literal["class", "received"]
"""What methods that rank tokens by the vision tower's attention go by: what the class token gives
them, or what all tokens of the same picture do."""

TextSource = Literal["nouns", "prompt"]
"""What conditions the choice: the question's nouns, or every word (Setting-1 of Table IV)."""

ClipText = Literal["", "prompt", "question"]
"""What CLIP's text tower reads for a method: nothing; the whole prompt, a space in place of images,
cut at 77 tokens; or the question without its line on short answers, in parts of 77 tokens."""

OcrLine = Literal["strip", "keep"]
"""What happens to TextVQA's line of reference OCR tokens; the paper does not say."""

Precision = Literal["float32", "tensorfloat32", "bfloat16"]
"""What products of float32 parameters are computed in: the operands as they are, or rounded."""

TokenDType = Literal["float32", "bfloat16"]
"""Number formats of the visual tokens that selections are measured and compiled with."""

SMALLEST_TOLERANCE = 1e-5
"""Energies are exact to this fraction of their initial total; a finer stop would stop on noise."""

METHODS = {
    "random": "baselines.random:Random",
    "uniform": "baselines.uniform:Uniform",
    "downsample": "baselines.downsample:Downsample",
    "pooling": "baselines.pooling:Pooling",
    "fastervlm": "encoder.fastervlm:FasterVLM",
    "vispruner": "encoder.vispruner:VisPruner",
    "visionzip": "encoder.visionzip:VisionZip",
    "trim": "encoder.trim:Trim",
    "hired": "encoder.hired:Hired",
    "tome": "encoder.tome:Tome",
    "prumerge": "encoder.prumerge:PruMerge",
    "prumerge+": "encoder.prumerge:PruMergePlus",
    "scope": "encoder.scope:Scope",
    "agilepruner": "encoder.agilepruner:AgilePruner",
    "divprune": "tokens.divprune:DivPrune",
    "cdpruner": "tokens.cdpruner:Cdpruner",
    "cdpruner-llm": "tokens.cdpruner:CdprunerLlm",
    "resprune": "tokens.resprune:ResPrune",
    "relevance": "tokens.relevance:Relevance",
    "spare": "tokens.spare:Spare",
    "lrcp": "tokens.lrcp:Lrcp",
    "svdprune": "tokens.svdprune:SvdPrune",
    "apet": "tokens.apet:Apet",
    "fastv": "decoder.fastv:FastV",
    "dart": "decoder.dart:Dart",
    "adaptprune": "decoder.adaptprune:AdaptPrune",
    "pdrop": "decoder.pdrop:PyramidDrop",
    "sparsevlm": "decoder.sparsevlm:SparseVlm",
    "sparsevlm-plus": "decoder.sparsevlm_plus:SparseVlmPlus",
}
"""The pruning methods by name, and where each one's class is below `resprune_jax.methods`."""
