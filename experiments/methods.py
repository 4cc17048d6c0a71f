"""`resprune methods`: every pruning method, what it reads and how it can be told otherwise."""

import dataclasses
import inspect
import json
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

from resprune_jax.choices import METHODS
from resprune_jax.experiments.common import console, import_models

if TYPE_CHECKING:
    from resprune_jax.methods import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """List the pruning methods: where tokens leave, what is read, settings and sources."""

    name: str | None = None
    """One method, with all that is said of it; else a table of all."""
    markdown: bool = False
    """Print docs/reference/methods.md."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback when something fails."""


def described(name: str) -> dict[str, Any]:
    """What a method says of itself.

    Raises:
        CallError: an unknown name.
    """
    from resprune_jax.methods import method_class
    from resprune_jax.methods.encoder.base import ByAttention

    cls = method_class(name)
    method = any_of(cls)
    other = None
    if isinstance(method, ByAttention):
        other = runs_on(dataclasses.replace(method, attention="received"))
    return {
        "name": name,
        "stage": _plain(cls, "stage"),
        "needs": sorted(_needs(cls)),
        "text": cls.text if "text" in _needs(cls) else None,
        "clip_text": cls.clip_text or None,
        "merges": method.merges,
        "positions": positions_of(method),
        "runs_on": runs_on(method),
        "runs_on_with_attention_received": other,
        "nested": cls.nested,
        "energy": cls.measures_energy,
        "source": cls.source,
        "settings": settings_of(cls),
        "summary": (inspect.getdoc(cls) or "").split("\n")[0],
        "about": inspect.getdoc(cls) or "",
    }


_QWEN = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}

BACKBONES: dict[str, dict[str, Any]] = {
    "LLaVA-1.5": {"model_type": "llava"},
    "LLaVA-NeXT": {"model_type": "llava_next"},
    "Qwen2-VL": {"model_type": "qwen2_vl", **_QWEN},
    "Qwen2.5-VL": {"model_type": "qwen2_5_vl", **_QWEN},
    "LLaVA-OneVision": {"model_type": "llava_onevision"},
    "llava-interleave": {
        "model_type": "llava",
        "vision_config": {"model_type": "siglip_vision_model"},
        "vision_feature_select_strategy": "full",
    },
}
"""A `config.json` of each kind of model, as far as it decides which methods run."""


def any_of(cls: "type[Method]") -> "Method":
    """A method with its defaults, and any number where its authors have published none."""
    return cls(**{name: 1.0 for name, value in settings_of(cls).items() if value == "required"})


def runs_on(method: "Method") -> list[str]:
    """Those of `BACKBONES` that do not refuse a method, ResPrune with each family's settings."""
    from resprune_jax.errors import CallError
    from resprune_jax.methods import ResPrune, get_method
    from resprune_jax.models.families.registry import family_class, read_model_config
    from resprune_jax.models.running.fitting import check_fits

    found = []
    for name, hf in BACKBONES.items():
        config = read_model_config(hf)
        family = family_class(config).without_processor(config)
        own = get_method(method, family.defaults) if isinstance(method, ResPrune) else method
        try:
            check_fits(family, own, clip=family.takes_clip)
        except CallError:
            continue
        found.append(name)
    return found


def positions_of(method: "Method") -> str:
    """Position ids behind a method: "original", "reindex", or "model" for the model's own rule."""
    from resprune_jax.methods import DecoderMethod

    if isinstance(method, DecoderMethod):
        return method.positions
    return "reindex" if method.merges and method.sequence == "listed" else "model"


def settings_of(cls: "type[Method]") -> dict[str, Any]:
    """The settings of a method by name: their defaults, "required" where there is none."""
    found: dict[str, Any] = {}
    for option in dataclasses.fields(cls):
        required = option.default is dataclasses.MISSING
        found[option.name] = "required" if required else option.default
    return found


def _plain(cls: "type[Method]", name: str) -> Any:
    """A declaration of a class; that of `any_of` it where it depends on settings."""
    from resprune_jax.methods import Method

    value = inspect.getattr_static(cls, name)
    if value is inspect.getattr_static(Method, name):
        return getattr(Method(), name)
    return value if not isinstance(value, property) else getattr(any_of(cls), name)


def _needs(cls: "type[Method]") -> frozenset[str]:
    return frozenset(_plain(cls, "needs"))


def run(options: MethodsOptions) -> int:
    """Print one method or all of them."""
    import_models()
    if options.name is not None:
        one = described(options.name)
        if options.json:
            print(json.dumps(one))
            return 0
        print(f"{one['name']} ({one['source']})\n\n{one['about']}\n\nSettings: {_settings(one)}")
        print(f"Runs on: {_backbones(one)}")
        return 0
    every = [described(name) for name in METHODS]
    if options.json:
        print(json.dumps(every))
    elif options.markdown:
        print(markdown(every), end="")
    else:
        from rich.table import Table

        table = Table(box=None)
        heads = ("method", "stage", "reads", "merges", "positions", "runs on", "settings", "source")
        for head in heads:
            table.add_column(head, overflow="fold")
        for one in every:
            table.add_row(
                one["name"], one["stage"], _reads(one), one["merges"], one["positions"],
                _backbones(one), _settings(one), one["source"],
            )  # fmt: skip
        console().print(table)
        print("Of a file of yours: --method FILE.py:NAME (docs/how_to/your_own.md).")
    return 0


def _reads(one: dict[str, Any]) -> str:
    of = {"text": one["text"], "clip_text": one["clip_text"]}
    named = [f"{part} ({of[part]})" if of.get(part) else part for part in one["needs"]]
    return ", ".join(named) or "tokens alone"


def _backbones(one: dict[str, Any]) -> str:
    def listed(names: list[str]) -> str:
        return ", ".join(names) if len(names) < len(BACKBONES) else "all"

    other = one["runs_on_with_attention_received"]
    if other is None:
        return listed(one["runs_on"])
    return f"{listed(one['runs_on'])}; with attention=received {listed(other)}"


def _settings(one: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in one["settings"].items()) or "none"


def markdown(every: list[dict[str, Any]]) -> str:
    """docs/reference/methods.md: a table of all methods, then what each says of itself."""
    lines = [
        "# Pruning methods",
        "",
        "Written by `resprune methods --markdown` from the methods themselves; a test compares.",
        "",
        "Each of them runs by name: `resprune answer --method scope --method-settings",
        'combine=add`, or `lvlm.generate(images, prompts, keep=64, method="scope",',
        'method_settings={"combine": "add"})`. `keep` is how many visual tokens enter the LLM;',
        "kept tokens stand in image order, unless a method that merges lists its rows in an order",
        "of its own. Inside the LLM it is the count behind a single drop,",
        "and the average over the layers for several; the setting `keep_average` is that average",
        "for any method there, and every result has both (`Generation.costs`). What a method reads",
        "and a model does not have is refused by name: without a class token (Qwen, SigLIP) there",
        "is no saliency. `fastervlm`, `vispruner`, `visionzip`, `scope` and `agilepruner` have the",
        "setting `attention=received` for that: it ranks tokens by the attention that they receive",
        "from all tokens of the same picture, frame or tile in the block that feeds the projector",
        "(the mean of the attention's column over queries and heads), not by what the class token",
        "gives them (`attention=class`, as these methods were published). `trim` and",
        "`cdpruner` read CLIP's texts: LLaVA-1.5 and LLaVA-NeXT can be given the CLIP that their",
        'vision tower is from, `load_model(model, clip="openai/clip-vit-large-patch14-336")` or',
        "`--clip`. A method of your own: [your_own.md](../how_to/your_own.md).",
        "",
        "Inside the LLM the layers in front of a drop work on all tokens, those behind it on",
        "what is left, each segment with its own KV cache; no layer runs twice. Layer numbers",
        "count from 0 and are stated for a decoder of `depth` layers: on another one they are",
        "scaled (rounded, at least 1; K = 2 stays 2), with `depth=0` they are taken as they are.",
        "`Generation.drops` says in front of which layers tokens left, and how many stayed.",
        "",
        "All but `random` are held against oracles in NumPy, written from the specifications by",
        "somebody who had not seen the methods: equal keep lists on 200 random problems each, and",
        "merged rows to 1e-5 of their largest entry (`pytest tests/methods`).",
        "",
        "Merged rows are made in front of the projector (features), behind it (embeddings) or",
        "inside the LLM (states). Position ids behind a method: those that the tokens had",
        "(original), counted through again (reindex), or by the model's own rule (model: Qwen",
        "keeps the tokens' own, all others count through; `positions` of a call says otherwise).",
        "A model refuses by name what does not run on it.",
        "",
        "| method | tokens leave | reads | merges | positions | runs on"
        " | a smaller budget is a part of a larger one | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    links = anchors([one["name"] for one in every])
    for one in every:
        nested = "yes" if one["nested"] else "no"
        lines.append(
            f"| [{one['name']}](#{links[one['name']]}) | {_WHERE[one['stage']]} | {_reads(one)}"
            f" | {one['merges'] or 'no'} | {one['positions']} | {_backbones(one)} | {nested}"
            f" | {one['source'] or 'none: a baseline'} |"
        )
    for one in every:
        if links[one["name"]] != one["name"]:  # makers of pages number repeated headings variously
            lines += ["", f'<a id="{links[one["name"]]}"></a>']
        lines += ["", f"## {one['name']}", "", *_prose(one["about"])]
        lines += ["", f"Settings: `{_settings(one)}`."]
    return "\n".join(lines) + "\n"


def anchors(titles: list[str]) -> dict[str, str]:
    """Where a page's headings are linked to: only letters, digits and hyphens, each once."""
    made: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for title in titles:
        plain = "".join(letter for letter in title.lower() if letter.isalnum() or letter in "-_")
        made[title] = f"{plain}-{seen[plain]}" if seen[plain] else plain
        seen[plain] += 1
    return made


_WHERE = {
    "pixels": "before the encoder",
    "encoder": "in the encoder",
    "tokens": "before the LLM",
    "decoder": "inside the LLM",
}


def _prose(about: str) -> list[str]:
    """A docstring as Markdown: its list of attributes becomes a list."""
    text, _, attributes = about.partition("Attributes:\n")
    lines = text.strip().splitlines()
    if attributes:
        lines.append("")
    for line in textwrap.dedent(attributes.split("\nRaises:")[0]).splitlines():
        lines.append(f"  {line.strip()}" if line.startswith(" ") else f"- {line}" if line else "")
    while lines and not lines[-1]:
        lines.pop()
    return lines
