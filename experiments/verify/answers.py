"""How torch goes on from a prompt, for `resprune verify`: the checkpoint's own settings in place.

The full prompt is transformers' own `generate`. It does not know pruned prompts, so their tokens
are taken one at a time, from scores that its own processors saw.
"""

from typing import Any

import numpy as np

from resprune_jax.experiments.common import cache_argument
from resprune_jax.experiments.verify.reference import NEW_TOKENS, Continued, spread


def generated(model: Any, inputs: dict[str, Any]) -> Continued:
    """Greedy tokens by `generate`, as the checkpoint's `generation_config.json` shapes them."""
    ends = list(ends_of(model))
    made = model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=ends,
        pad_token_id=ends[0], output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = made.sequences[0, inputs["input_ids"].shape[1] :].cpu().numpy()
    return Continued(tokens, np.stack([_numpy(step[0]) for step in made.scores]))


def pruned(
    model: Any, passed: dict[str, Any], stays: np.ndarray, ids: Any, *, original: bool
) -> tuple[np.ndarray, np.ndarray, Continued]:
    """Logits and greedy tokens of the prompt without the visual tokens that leave.

    Args:
        model: in torch.
        passed: the full prompt's embeddings ("tensor") and positions.
        stays: (S,) bool, what stays of it.
        ids: (1, S) the full prompt, which the settings are about.
        original: positions are those of the full prompt; else they count anew.

    Returns:
        (positions whose logits were kept, those logits, the tokens).
    """
    import torch

    text, table = model.model.language_model, model.get_input_embeddings()
    keep = torch.from_numpy(np.flatnonzero(stays)).to(ids.device)
    positions = passed["positions"] if original else None
    following = None if positions is None else positions.max() + 1
    if positions is not None:
        positions = positions[:, :, keep]
    out = text(inputs_embeds=passed["tensor"][:, keep], position_ids=positions, use_cache=True)
    rows = spread(len(keep))
    logits = _numpy(model.lm_head(out.last_hidden_state[0, rows]))
    ends = ends_of(model)
    judge = processors_of(model.generation_config, ids.shape[1], ends)
    steps: list[np.ndarray] = []
    tokens: list[int] = []
    while len(tokens) < NEW_TOKENS and (not tokens or tokens[-1] not in ends):
        if tokens:
            at = None if following is None else (following + len(tokens) - 1).expand(3, 1, 1)
            out = text(
                inputs_embeds=table(torch.tensor([[tokens[-1]]], device=ids.device)),
                position_ids=at, use_cache=True, **{cache_argument(text): out.past_key_values},
            )  # fmt: skip
        scores = judge(ids, model.lm_head(out.last_hidden_state[:, -1]).float())
        tokens.append(int(scores[0].argmax()))
        steps.append(_numpy(scores[0]))
        ids = torch.cat([ids, ids.new_tensor([[tokens[-1]]])], dim=1)
    return rows, logits, Continued(np.asarray(tokens), np.stack(steps))


def processors_of(settings: Any, length: int, ends: tuple[int, ...]) -> Any:
    """transformers' processors for greedy answers to a prompt, in the order of its `generate`.

    Args:
        settings: a `GenerationConfig`.
        length: tokens of the unpruned prompt.
        ends: ids that end an answer.

    Returns:
        What takes (ids (1, S), scores (1, V)) and gives scores.
    """
    import transformers as hf

    penalty, ngram = settings.repetition_penalty, settings.no_repeat_ngram_size
    made: Any = hf.LogitsProcessorList()
    if penalty is not None and penalty != 1:
        made.append(hf.RepetitionPenaltyLogitsProcessor(float(penalty)))
    if ngram:
        made.append(hf.NoRepeatNGramLogitsProcessor(ngram))
    if settings.bad_words_ids:
        made.append(hf.NoBadWordsLogitsProcessor(settings.bad_words_ids, list(ends)))
    if settings.min_new_tokens is not None:
        made.append(
            hf.MinNewTokensLengthLogitsProcessor(length, settings.min_new_tokens, list(ends))
        )
    elif settings.min_length:
        made.append(hf.MinLengthLogitsProcessor(settings.min_length, list(ends)))
    if settings.suppress_tokens:
        made.append(hf.SuppressTokensLogitsProcessor(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        made.append(hf.SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, length))
    return made


def ends_of(model: Any) -> tuple[int, ...]:
    """The ids that end an answer, as transformers reads them."""
    own = model.generation_config.eos_token_id
    own = model.config.get_text_config().eos_token_id if own is None else own
    return tuple(own) if isinstance(own, list) else (int(own),)


def _numpy(tensor: Any) -> np.ndarray:
    """A tensor as float32 (exact for bfloat16) on the host."""
    return np.array(tensor.detach().float().cpu().numpy())
