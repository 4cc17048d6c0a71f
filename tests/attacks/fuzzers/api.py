"""Odd arguments of the Python API: one of a good call is spoilt, or all are written another way.

What is spoilt must be a `CallError`, never a foreign error and never an answer. What is only
written another way (a list, a torch tensor, another byte order) must give the good call's result.
"""

import functools
import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from resprune_jax import prepare, select
from resprune_jax.choices import METHODS
from resprune_jax.errors import shown
from resprune_jax.methods import ResPrune, VisualTokens, get_method, method_class
from resprune_jax.models import LVLM, CallOptions, load_model
from resprune_jax.prompts import NounExtractor
from tests.attacks.harness import WRONG, Fault, Fuzzer, draw
from tests.attacks.inputs.arguments import (
    ARRAYS,
    NEVER_NONE,
    NO_COUNT,
    NO_FLAG,
    NO_MASK,
    NO_NAME,
    NO_NUMBER,
    ODD,
    ROWS,
    SELECT,
    D,
    K,
    N,
    Odd,
    copied,
    scalars,
    torch_made,
    written_otherwise,
)
from tests.checkpoints.random import CONFIG, write_checkpoint

NAME = "api"
QUESTION = "What is behind the old man?"


def problem(rng: np.random.Generator) -> dict[str, Any]:
    """A good call of `select` with every argument given, as plain NumPy.

    Of few shapes, since each is compiled: one problem, and rows of which either limits or alphas
    differ.
    """
    rows = () if rng.random() < 0.5 else (ROWS,)
    limits, alphas = (rows, ()) if rng.random() < 0.5 else ((), rows)
    valid = np.ones((*rows, N), bool)
    valid[..., 15:] = rng.random() < 0.5
    return {
        "tokens": rng.standard_normal((*rows, N, D)).astype(np.float32),
        "keep": K,
        "limit": rng.integers(1, K + 1, limits),
        "relevance": rng.random((*rows, N)).astype(np.float32),
        "alpha": np.asarray(rng.random(alphas), np.float32),
        "first": rng.integers(0, 15, rows),
        "valid": valid,
        "tolerance": np.float32(1e-3),
        "engine": "feature" if not rows and rng.random() < 0.4 else "gram",
        "max_bytes": 2**31,
    }


def must_refuse(what: str, call: Callable[[], object]) -> None:
    """Pass what is raised on to the harness; an answer is a fault."""
    call()
    raise Fault(WRONG, f"{what} was accepted")


def _alike(what: str, one: Any, other: Any) -> None:
    for name in ("indices", "count", "energy"):
        first, second = (np.asarray(getattr(x, name)) for x in (one, other))
        if not np.allclose(first, second, rtol=1e-4, equal_nan=True):
            raise Fault(WRONG, f"{what}: {name} differs: {first.tolist()} {second.tolist()}")


def attack_select(rng: np.random.Generator) -> None:
    call = problem(rng)
    if rng.random() < 0.3:
        good = select(**call)
        if np.isnan(np.asarray(good.energy)).any():
            raise Fault(WRONG, "a good call failed")
        dressed = {name: written_otherwise(rng, value) for name, value in call.items()}
        _alike(f"{ {n: type(v).__name__ for n, v in dressed.items()} }", good, select(**dressed))
        return
    if rng.random() < 0.1:  # values on a device are not read: the row fails, and says so
        name, bad = [("limit", jnp.int32(0)), ("alpha", jnp.float32(-1)), ("limit", jnp.int32(-7)),
                     ("alpha", jnp.float32(np.inf)), ("first", jnp.int32(N)),
                     ("tolerance", jnp.float32(np.nan))][rng.integers(6)]  # fmt: skip
        made = select(**{**call, name: bad})
        if not np.isnan(np.asarray(made.energy)).all() or np.asarray(made.count).any():
            raise Fault(WRONG, f"{name} {bad} on a device: nothing says that the row failed")
        return
    name = list(SELECT)[rng.integers(len(SELECT))]
    value = SELECT[name][rng.integers(len(SELECT[name]))]()
    spoilt = {**call, name: value}
    # One prepared image takes any number of alphas or tolerances.
    many = name in ("alpha", "tolerance") and call["tokens"].ndim == 2
    if rng.random() < 0.25 and name not in ("tokens", "valid") and not many:
        spoilt["tokens"] = prepare(call["tokens"], spoilt.pop("valid"))
    must_refuse(f"select, {name} {shown(value)}", lambda: select(**spoilt))


def attack_small(rng: np.random.Generator) -> None:
    """`prepare`, `Selection`, `ResPrune`, `NounExtractor` and `load_model`."""
    pick = lambda odd: odd[rng.integers(len(odd))]()  # noqa: E731
    tokens = rng.standard_normal((N, D)).astype(np.float32)
    names = {"aggregate": NO_NAME, "nonnegative": NO_NAME, "seed_rule": NO_NAME, "engine": NO_NAME}
    alphas = [*NO_NUMBER, *NEVER_NONE, lambda: 1e39, lambda: [1.0, math.inf]]
    alphas = [x for x in alphas if not _opaque(x()) and np.shape(_plain(x())) != (7,)]
    chosen, field = _a_number(rng)
    targets: dict[str, Callable[[Any], object]] = {
        "prepare": lambda v: prepare(v),
        "prepare valid": lambda v: prepare(tokens, v),
        "prepare saliency": lambda v: prepare(tokens, saliency=v),
        "prefix": lambda v: select(tokens, K, engine="gram").prefix(v),
        "mask": lambda v: select(tokens, K, engine="gram").mask(v),
        "alpha": lambda v: ResPrune(alpha=v),
        "setting": lambda v: ResPrune(**{list(names)[rng.integers(4)]: v}),
        "tagger": lambda v: NounExtractor(v),
        "extract": lambda v: extractor().extract(v),
        "method setting": lambda v: get_method(chosen, {**NEEDED.get(chosen, {}), field: v}),
        "load": lambda v: load_model(v),
        "revision": lambda v: load_model(small_folder(), revision=v),
        "token": lambda v: load_model(small_folder(), token=v),
        "dtype": lambda v: load_model(small_folder(), dtype=v),
        "mesh": lambda v: load_model(small_folder(), mesh=v),
    }
    texts = [x for x in NO_NAME if not isinstance(x(), str)]
    odd: dict[str, list[Odd]] = {
        "prepare": [*ARRAYS, *NEVER_NONE], "prepare valid": NO_MASK,
        "prepare saliency": [*ODD, lambda: np.zeros(N + 1), lambda: "x", lambda: 1.0],
        "prefix": [*NO_COUNT, *NEVER_NONE, lambda: K + 1],
        "mask": [*scalars(NO_COUNT), *NEVER_NONE],
        "alpha": alphas, "setting": NO_NAME, "method setting": _NEVER_A_SETTING,
        "tagger": NO_NAME, "extract": texts,
        "load": [*texts, lambda: "", lambda: Path("nowhere/at/all"), lambda: "a/b/c/d"],
        "revision": [x for x in NO_NAME if x() is not None],
        "token": [x for x in texts if x() is not None],
        "dtype": [*(x for x in NO_NAME if x() is not None and x() is not True),
                  *map(copied, ("float64", "int8", int, complex, np.float64, "f4x"))],
        "mesh": [x for x in NO_NAME if x() is not None],
    }  # fmt: skip
    name = list(targets)[rng.integers(len(targets))]
    value = pick(odd[name])
    must_refuse(f"{name} {shown(value)}", lambda: targets[name](value))


NEEDED = {"agilepruner": {"average": 3.0, "most": 0.5}}
_NEVER_A_SETTING: list[Odd] = [
    *(odd for odd in [*NO_NUMBER, *NEVER_NONE] if odd() is not None and shown(odd()) not in
      ("0", "-1", "1", "np.float32(-2.0)", "[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]")),
    lambda: math.nan, lambda: -math.inf, lambda: 10**400, lambda: "0.5", lambda: {"a": 1},
]  # fmt: skip


def _a_number(rng: np.random.Generator) -> tuple[str, str]:
    """A method and one of its settings that is a single number."""
    every = [
        (name, own.name)
        for name in METHODS
        for own in fields(method_class(name))
        if own.type in ("float", "int", float, int) and not own.metadata.get("per_row")
    ]
    return every[rng.integers(len(every))]


def _opaque(value: Any) -> bool:
    """What JAX may put in a leaf's place: such an alpha is refused where it is used."""
    return not isinstance(value, str | bytes | bytearray | bool | int | float | complex | dict | set
                          | list | np.ndarray | np.generic | type(None))  # fmt: skip


def _plain(value: Any) -> Any:
    try:
        return np.asarray(value)
    except Exception:
        return ()


# --- models ---------------------------------------------------------------------------------------

SMALL = {
    **CONFIG,
    "vision_config": CONFIG["vision_config"] | {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "image_size": 56,
        "num_attention_heads": 2, "projection_dim": 32,
    },
    "text_config": CONFIG["text_config"] | {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    },
}  # fmt: skip


@functools.cache
def small_folder() -> Path:
    """A checkpoint of 16 visual tokens, for as long as this process lives."""
    holder = tempfile.TemporaryDirectory()
    _KEPT.append(holder)
    return write_checkpoint(Path(holder.name) / "model", published=SMALL)


_KEPT: list[Any] = []


@functools.cache
def model() -> LVLM:
    return load_model(small_folder(), dtype="float32")


@functools.cache
def extractor() -> NounExtractor:
    return NounExtractor("lexicon")


def picture() -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8))


def _text(value: Any) -> bool:
    """Whether it is a prompt, or a list of them."""
    each = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
    each = each if isinstance(each, list) else [each]
    return bool(each) and all(isinstance(one, str) for one in each)


NO_PROMPTS: list[Odd] = [
    *(x for x in NO_NAME if not _text(x())), lambda: [], lambda: [[]], lambda: [None],
    lambda: [QUESTION, 5], lambda: [[QUESTION], QUESTION], lambda: {QUESTION: 1},
    lambda: [[QUESTION]] * 2,
    lambda: [[[QUESTION]]], lambda: [b"x"],
]  # fmt: skip
NO_IMAGE: list[Odd] = [
    *(x for x in NO_NAME if not isinstance(x(), str)), lambda: [], lambda: [[]], lambda: [None],
    lambda: "nowhere.png", lambda: "a\0b", lambda: np.zeros((5, 5, 2), np.uint8),
    lambda: [picture()] * 2,
    lambda: np.zeros((5, 5, 3)), lambda: np.zeros((0, 5, 3), np.uint8), lambda: [[[picture()]]],
    lambda: VisualTokens(np.zeros((1, 16, 63), np.float32), np.ones((1, 16), bool)),
    lambda: VisualTokens(np.zeros((1, 16, 64), np.float32), np.ones((1, 15), bool)),
    lambda: VisualTokens(np.zeros((1, 16, 64), np.float32), np.zeros((1, 16), bool)),
    lambda: VisualTokens("x", None), lambda: VisualTokens(np.zeros((16, 64)), np.ones(16, bool)),
]  # fmt: skip
NO_BUDGET: list[Odd] = [
    *NO_NUMBER, *map(copied, (0, 1.0, 1.5, math.inf, [4, 4], [None, 4])),
    lambda: [object()], lambda: np.zeros(1), lambda: ["4"], lambda: [[4]],
]  # fmt: skip
OPTIONS: dict[str, list[Odd]] = {
    "keep": [x for x in NO_BUDGET if x() is not None],
    "method": [*NO_NAME, copied("fastest"), lambda: ResPrune, lambda: CallOptions()],
    "alpha": [*NO_NUMBER, lambda: 1e39, lambda: [0.5, 0.5], lambda: [[0.5]], lambda: np.zeros(0)],
    "tolerance": [*NO_NUMBER, copied(0), copied(1), lambda: [0.1]],
    **{name: [x for x in NO_NAME if x() is not None]
       for name in ("aggregate", "nonnegative", "seed_rule", "positions")},
    **dict.fromkeys(("budget", "newline", "text", "ocr_line", "image_aspect"), NO_NAME),
    **dict.fromkeys(("strict_nouns", "chat_template"), NO_FLAG),
    "max_new_tokens": NO_COUNT,
    **{name: [*NO_NUMBER, copied(2.9), copied(3.0), lambda: np.float64(3e9)]
       for name in ("top_k", "no_repeat_ngram_size")},
    "min_p": [*NO_NUMBER, copied(1.5)],
    "repetition_penalty": [*NO_NUMBER, copied(0), lambda: math.inf],
    "sample": NO_FLAG,
    "rng_seed": [*NO_NUMBER, *NEVER_NONE, copied(1.5), copied(2**32)],
    "temperature": [*NO_NUMBER, lambda: math.inf, lambda: 1e39],
    "top_p": [*NO_NUMBER, copied(0), copied(1.5)],
    "announce": [x for x in NO_NAME if x() is not None and not callable(x())],
    "options": [x for x in NO_NAME if x() is not None],
    "no_such_option": NO_NAME,
    "images": NO_IMAGE,
    "prompts": NO_PROMPTS,
}  # fmt: skip
WARM: dict[str, list[Odd]] = {
    "sizes": [*NO_NAME, lambda: [(5,)], lambda: [(0, 5)], lambda: [(1.5, 3)],
              lambda: [(10**6, 10**6)], lambda: [(3, 40, 40)], lambda: [((5, 5), "x")],
              lambda: (336, 336), lambda: [[]]],
    "prompt_lengths": [*NO_NAME, lambda: (0,), lambda: (10**9,), lambda: (1.5,), lambda: "64",
                       lambda: [[64]]],
    "batch_sizes": [*NO_NAME, lambda: (0,), lambda: (10**9,), lambda: [None], lambda: b"11111"],
}  # fmt: skip


def answer(**more: Any) -> Any:
    call = {"images": picture(), "prompts": QUESTION, "keep": 4, "alpha": 0.5, "max_new_tokens": 2}
    return model().generate(**{**call, **more})


def attack_model(rng: np.random.Generator) -> None:
    lvlm = model()
    if rng.random() < 0.2:
        _good_answers(rng)
        return
    if rng.random() < 0.15:
        name = list(WARM)[rng.integers(len(WARM))]
        value = WARM[name][rng.integers(len(WARM[name]))]()
        must_refuse(
            f"warm_up {name} {shown(value)}",
            lambda: lvlm.warm_up(**{"sizes": [(56, 56)], name: value}),
        )
    names = [name for name, odd in OPTIONS.items() if odd]
    name = names[rng.integers(len(names))]
    value = OPTIONS[name][rng.integers(len(OPTIONS[name]))]()
    call = {"images": picture(), "prompts": QUESTION, "keep": 4, name: value}
    where = ("generate", "select", "logits")[rng.integers(3)]
    if name == "announce":
        where = "generate"
    if name == "images" and rng.random() < 0.3:
        must_refuse(f"encode {shown(value)}", lambda: lvlm.encode(value))
    must_refuse(
        f"{where}, {name} {shown(value)}",
        lambda: getattr(lvlm, where)(**call),
    )


@functools.cache
def _usual() -> Any:
    return answer()


def _good_answers(rng: np.random.Generator) -> None:
    """The same call in other words gives the same tokens."""
    image, pixels = picture(), np.asarray(picture())
    forms: dict[str, list[Callable[[], Any]]] = {
        "images": [lambda: image, lambda: [image], lambda: [[image]], lambda: pixels,
                   lambda: (image,), torch_made(lambda torch: torch.from_numpy(pixels.copy())),
                   lambda: model().encode(image), lambda: jnp.asarray(pixels)],
        "prompts": [lambda: QUESTION, lambda: [QUESTION], lambda: (QUESTION,), lambda: [[QUESTION]],
                    lambda: np.array([QUESTION]), lambda: [(QUESTION,)]],
        "keep": [lambda: 4, lambda: [4], lambda: (4,), lambda: np.int16(4), lambda: np.array([4]),
                 lambda: np.array(4), lambda: jnp.array([4]), lambda: 0.25,
                 lambda: np.float32(0.25), torch_made(lambda torch: torch.tensor([4]))],
        "alpha": [lambda: 0.5, lambda: [0.5], lambda: np.float16(0.5), lambda: np.array([0.5]),
                  lambda: jnp.array(0.5), torch_made(lambda torch: torch.tensor([0.5]))],
        "max_new_tokens": [lambda: 2, lambda: np.int64(2), lambda: np.array(2)],
    }  # fmt: skip
    call = {name: own[rng.integers(len(own))]() for name, own in forms.items()}
    usual = {"images": image, "prompts": QUESTION, "keep": 4, "alpha": 0.5, "max_new_tokens": 2}
    call = {name: usual[name] if type(value) is object else value for name, value in call.items()}
    made, said = answer(**call), _usual()
    if made.texts != said.texts or made.kept != said.kept or made.errors != [None]:
        raise Fault(
            WRONG, f"{call!r:.500}: {made.texts} {made.kept} {made.errors}, not {said.texts}"
        )


def run(seed: int) -> None:
    rng = draw(NAME, seed)
    attack = (attack_select, attack_small, attack_model)[seed % 3]
    with warnings.catch_warnings():  # one that comes from inside says nothing to who called
        warnings.filterwarnings("error", module=r"resprune_jax\.")
        attack(rng)


def prepare_all() -> None:
    # Nothing here runs long: what is compiled need not be fast.
    jax.config.update("jax_disable_most_optimizations", True)
    _usual()
    select(**problem(np.random.default_rng(0)))
    extractor()


FUZZERS = [Fuzzer(NAME, run, cases=3_000, quick=90, prepare=prepare_all)]
