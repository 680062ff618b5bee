"""What a model computes with that its weights do not show: the values of its config that act, and what has been changed
since it was built from that config.

The second is found by comparison with a model of the same class freshly built from the same config, without memory for
weights: modules of another class (adapters, quantised weights), attributes with another value, hooks. A model as its
config says has nothing of it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import xxhash
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from memory3.errors import ModelError, UnsupportedModel
from memory3.models.geometry import ModelGeometry

__all__ = [
    "HARMLESS",
    "active_settings",
    "changed_since_built",
    "check_complete",
    "check_deterministic",
    "feed",
    "layers_up_to",
    "state_mark",
]

_T = TypeVar("_T")

#: Config values that cannot change a memory. All others are hashed, unknown ones too: a bank is rather refused than misread.
HARMLESS = frozenset(
    [
        # names, and what wrote the config
        *("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
        # what a forward pass returns, and ways to compute the same
        *(
            "chunk_size_feed_forward",
            "is_encoder_decoder",
            "output_attentions",
            "output_hidden_states",
            "output_router_logits",
        ),
        *("pretraining_tp", "return_dict", "use_cache"),
        # tokens and labels
        *("bos_token_id", "eos_token_id", "id2label", "label2id", "pad_token_id", "problem_type", "sep_token_id"),
        # sizes, which show in the names and shapes of weights
        *(
            "attention_bias",
            "hidden_size",
            "intermediate_size",
            "mlp_bias",
            "num_hidden_layers",
            "tie_word_embeddings",
            "vocab_size",
        ),
        # for training alone; `check_deterministic` sees to it that nothing is dropped
        *("attention_dropout", "attn_pdrop", "embd_pdrop", "hidden_dropout", "initializer_range", "resid_pdrop"),
        "router_aux_loss_coef",
        # the angles are hashed, and static (`memory3.models.geometry.STATIC_ROPE`)
        "max_position_embeddings",
        # behind the last layer
        *("final_logit_softcapping", "logit_scale", "logits_scaling"),
    ]
)
#: Without an effect where all layers see everything.
_WINDOWS = frozenset({"layer_types", "max_window_layers", "sliding_window", "use_sliding_window"})
#: Architectures whose code in transformers reads no other value than its config class declares: others are leftovers of a
#: hub's files.
_PLAIN = ("llama", "mistral", "qwen2", "qwen3")

#: Attributes of a module that are not what it computes: torch's own, those that follow a harmless config value, and notes.
_INNER = frozenset(vars(torch.nn.Module())) | HARMLESS
_INNER |= {
    "_is_hf_initialized",
    "gradient_checkpointing",
    "max_seq_len_cached",
    "name_or_path",
    "num_embeddings",
    "original_max_seq_len",
    "padding_idx",
    "warnings_issued",
}

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)")
#: Hooks and forward passes of these look on, or move tensors.
_ONLOOKERS = ("memory3.", "transformers.", "accelerate.")


def active_settings(config: Any, already: tuple[str, ...], *, windowed: bool) -> dict[str, Any]:
    """The values of a text model's config that can change a memory, less those ``already`` hashed; empty for a plain
    Llama, Mistral or Qwen.

    Args:
        windowed: whether a layer attends within a window.
    """
    left_out = {*HARMLESS, *already, *(() if windowed else _WINDOWS)}
    declared = getattr(type(config), "__dataclass_fields__", {})
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in left_out and value is not None and (config.model_type not in _PLAIN or name in declared)
    }


def changed_since_built(model: PreTrainedModel, shape: ModelGeometry, last: int) -> dict[str, Any]:
    """What differs, below layer ``last`` and in it, from a model built from the same config: by module, what it is now.
    JSON can hold it.

    Args:
        model: the model in memory.
        shape: its geometry.
        last: number of the last memory layer.

    Raises:
        UnsupportedModel: weights are kept in a way whose bytes cannot be read.
    """
    kinds: tuple[Any, Any] = (type(model), type(model.config))
    plain = _as_built(*kinds, model.config.to_json_string(use_diff=False))
    found: dict[str, Any] = {}
    for name, module in layers_up_to(shape.base.named_modules(), last):
        kind, said = plain.get(name, ("", {}))
        now: dict[str, Any] = {}
        if kind != _kind(module):
            state: dict[str, Any] = {}
            module._save_to_state_dict(state, "", keep_vars=True)
            seen = {*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))}
            now = {"class": _kind(module), **_attributes(module, private=True)}
            now |= {key: _digested(value) for key, value in vars(module).items() if isinstance(value, torch.Tensor)}
            now |= {key: _digested(value) for key, value in state.items() if key not in seen}
        else:
            now = {key: value for key, value in _attributes(module).items() if said.get(key) != value}
            now |= dict.fromkeys(said.keys() - _attributes(module).keys())
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        changed = [*hooks, *filter(None, [vars(module).get("forward")])]
        if acts := [f"{where} {_held(hook)}" for hook in changed if not (where := _named(hook)).startswith(_ONLOOKERS)]:
            now["hooks"] = acts
        if now:
            found[name] = now
    return found


@functools.lru_cache(maxsize=4)
def _as_built(kind: Any, config_kind: Any, config: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Class and attributes of the modules of a model that is nothing but its config; empty where it cannot be built, so
    that all counts.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = kind(config_kind.from_dict(json.loads(config)))
    except Exception:  # the model's own code: whatever it raises
        return {}
    return {name: (_kind(module), _attributes(module)) for name, module in model.base_model.named_modules()}


def layers_up_to(named: Iterable[tuple[str, _T]], last: int) -> Iterator[tuple[str, _T]]:
    """Those of named modules or tensors that act on the keys and values of layer ``last``: all but later layers and the
    last norm.
    """
    for name, what in named:
        layer = _LAYER.search(name)
        if not (int(layer[1]) > last if layer else name == "norm" or name.startswith("norm.")):
            yield name, what


def _kind(module: torch.nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _named(hook: Any) -> str:
    """Module and name of a hook or a replaced forward pass."""
    owner = getattr(hook, "__self__", None)
    what = hook.func if isinstance(hook, functools.partial) else type(owner) if owner is not None else hook
    return f"{getattr(what, '__module__', '')}.{getattr(what, '__qualname__', type(what).__qualname__)}"


def _held(hook: Any) -> str:
    """What a function computes with: its code, and the values it was made with. Of other objects their attributes."""
    if isinstance(hook, functools.partial):
        return f"{_held(hook.func)} {_valued((hook.args, sorted(hook.keywords.items())))}"
    hook = getattr(hook, "__func__", hook)
    code = getattr(hook, "__code__", None)
    if code is None:
        return _valued(getattr(hook, "__dict__", {}))
    cells = [cell.cell_contents for cell in hook.__closure__ or ()]
    text = repr((code.co_code, code.co_names)) + repr([c for c in code.co_consts if _is_simple(c)])
    return f"{_digested(text)} {_valued((cells, hook.__defaults__))}"


def _valued(value: Any) -> str:
    """One text for equal values; of tensors a digest, of what is unknown its kind."""
    if isinstance(value, torch.Tensor):
        return _digested(value)
    if isinstance(value, Mapping):
        return str([(str(key), _valued(each)) for key, each in value.items()])
    if isinstance(value, list | tuple):
        return str([_valued(each) for each in value])
    return _said(value) if _is_simple(value) else f"{type(value).__module__}.{type(value).__qualname__}"


def _attributes(module: torch.nn.Module, *, private: bool = False) -> dict[str, str]:
    """What a module holds beside tensors and modules: numbers, texts and collections of them."""
    return {
        name: _said(value)
        for name, value in vars(module).items()
        if name not in _INNER and (private or not name.startswith("_")) and _is_simple(value)
    }


def _is_simple(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_simple(key) and _is_simple(each) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _said(value: Any) -> str:
    """One text for equal values, whatever their order of insertion."""
    if isinstance(value, Mapping):
        return str(sorted((_said(key), _said(each)) for key, each in value.items()))
    return str(sorted(map(_said, value))) if isinstance(value, set | frozenset) else repr(value)


def _digested(value: Any) -> str:
    """32 hex digits of a tensor's bytes, or of whatever else a module keeps as its state."""
    digest = xxhash.xxh3_128()
    feed(digest, value)
    return digest.hexdigest()


def feed(digest: Any, value: Any) -> None:
    """Hash a tensor of any kind: a plain one by its bytes, a quantised one or a wrapper by what it is made of.

    Args:
        digest: with an ``update`` for bytes, as hashlib's.
        value: a tensor, numbers, text, or a list of such.

    Raises:
        UnsupportedModel: its bytes cannot be read.
    """
    if isinstance(value, list | tuple):
        for each in value:
            feed(digest, each)
    elif not isinstance(value, torch.Tensor):
        digest.update(_said(value).encode())
    elif is_traceable_wrapper_subclass(value):  # torchao and its like
        names, context = value.__tensor_flatten__()
        digest.update(f"{type(value).__qualname__} {names} {context}\n".encode())
        for name in names:
            feed(digest, getattr(value, name))
    elif value.is_quantized:
        per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        scales = (
            (value.q_per_channel_scales(), value.q_per_channel_zero_points(), value.q_per_channel_axis())
            if per_channel
            else (value.q_scale(), value.q_zero_point())
        )
        feed(digest, (value.int_repr(), *scales))
    else:
        try:
            flat = value.detach().to("cpu").contiguous().view(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise UnsupportedModel(
                f"a weight is kept as {type(value).__name__} on {value.device}, whose bytes cannot be read, so a "
                "bank could not tell this model "
                "from another: load the model whole and without this quantisation"
            ) from error


def check_complete(model: PreTrainedModel) -> None:
    """Raise UnsupportedModel for a model that is wrapped, compiled, or not in memory as a whole."""
    name = type(model).__name__
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # half a second to import; without it nothing can be compiled
    wrapper = () if compiler is None else compiler.OptimizedModule
    for where, module in model.named_modules():
        compiled = isinstance(module, wrapper) or module._compiled_call_impl is not None
        if compiled or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            raise UnsupportedModel(
                f"{name} is compiled ({where or 'all of it'}), and a compiled forward pass takes no memories: give "
                "the model as it was before "
                "torch.compile"
            )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(
            f"{name} is not a model of transformers: give the one inside it (of peft: model.get_base_model())"
        )
    away = [where for where, tensor in model.named_parameters() if tensor.is_meta]
    if away:
        raise UnsupportedModel(
            f"{name}: {len(away)} weights are not in memory ({away[0]}): they are offloaded to disk or CPU, or were "
            "never loaded. Load the "
            "model without device_map and offload_folder"
        )


def check_deterministic(model: PreTrainedModel) -> None:
    """Raise ModelError where a forward pass draws random numbers, so that no memory could be had twice."""
    for name, module in model.named_modules():
        if module.training:
            rate = module.p if isinstance(module, torch.nn.modules.dropout._DropoutNd) else 0.0
            rates = [v for key, v in vars(module).items() if "dropout" in key or "jitter" in key]
            if rate or any(isinstance(v, float) and v for v in rates):
                raise ModelError(
                    f"{type(model).__name__} is in training mode with dropout ({name}), so that no memory is the "
                    "same twice: call model.eval() first"
                )


def state_mark(model: torch.nn.Module, tokenizer: Any) -> int:
    """A number that changes when weights are written or exchanged, adapters switched, modules compiled, hooked, set
    otherwise or to training, or the tokenizer changed.

    Weights that were written past torch (numpy, ``.data``) are noticed by a few numbers of each. Takes some milliseconds;
    means nothing in another process.

    Args:
        model: the model in memory.
        tokenizer: its tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    found: list[Any] = [getattr(tokenizer, "chat_template", None), id(backend), backend.get_vocab_size(with_added_tokens=True)]
    found += map(repr, (backend.normalizer, backend.pre_tokenizer, backend.post_processor))
    for module in model.modules():
        found += (id(module), module.training, id(vars(module).get("forward")), module._compiled_call_impl is None)
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        found += (id(hook) for hook in hooks if not _named(hook).startswith(_ONLOOKERS))
        found += _attributes(module, private=True).items()
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found += (id(tensor), 0 if tensor.is_inference() else tensor._version, _sampled(tensor))
    return hash(tuple(map(str, found)))


def _sampled(tensor: torch.Tensor) -> str:
    """A few numbers of a tensor in RAM, and where it lies."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu" or not tensor.numel():
        return ""
    with torch.no_grad():
        flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()[:1]
        return f"{tensor.data_ptr()} {flat[:: max(1, flat.numel() // 16)].tolist()}"
