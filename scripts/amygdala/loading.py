"""A model as capture needs it: the decoder's blocks up to the last target, without vocabulary head and other towers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import transformers

from amygdala.architecture import Decoder, check_causal, count_layers, cut, find_decoder, text_config
from amygdala.cluster import gpu_given
from amygdala.errors import UserError, shown
from amygdala.tokens import Encoder

# Buffers that old checkpoints carry along.
HARMLESS = {
    *("self_attn.rotary_emb.inv_freq", "attention.rotary_emb.inv_freq"),
    *("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"),
}
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(wanted: str, shard: int = 0) -> torch.device:
    """The device for `auto`, `cuda`, `cpu` or `mps`; UserError where it is not there. Shards take turns on the GPUs."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise UserError(f"device: {wanted} is not available here; set `device: auto` or another")
    return torch.device("cuda", shard % max(1, torch.cuda.device_count())) if wanted == "cuda" else torch.device(wanted)


def set_threads(threads: int) -> None:
    """Follow Snakemake's `threads`, in torch and in the tokenizer: several captures may share a machine."""
    threads = max(1, threads)
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def place(settings: Mapping[str, Any]) -> torch.device:
    """Where a job with these settings runs its model, its threads set; settings: device, device_map, threads, shard (default
    0). UserError where the device is not there, and where it contradicts the device map.
    """
    set_threads(settings["threads"])
    device = pick_device(settings["device"], settings.get("shard", 0))
    if settings["device"] == "auto" and device.type == "cpu" and (given := gpu_given()):
        raise UserError(
            f"device: SLURM gave this job a GPU ({shown(given)}), but torch {torch.__version__} finds none that it can use. "
            "See that it is built for the node's driver, or say `device: cpu`; with that jobs ask for no GPU"
        )
    if settings["device_map"] and settings["device"] in ("cpu", "mps"):
        spread = f"device_map: {settings['device_map']} spreads a model over GPUs"
        raise UserError(f"{spread}; with device: {settings['device']} set it to null")
    return device


def open_encoder(settings: Mapping[str, Any]) -> tuple[Encoder, Any]:
    """(what makes tokens of texts, with the model's tokenizer; the model's configuration), by the settings source, revision,
    template and max_tokens, which the model's own limit bounds.
    """
    where = settings["source"], settings["revision"]
    tokenizer, config = load_tokenizer(*where), read_config(*where)
    max_tokens = min(settings["max_tokens"], max_positions(config) or settings["max_tokens"])
    return Encoder(tokenizer, max_tokens, settings["template"]), config


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones: fetching it anew from the system for each of them took a
    CPU 10 to 15 % of a forward pass. Elsewhere nothing happens.
    """
    mmap_threshold, trim_threshold, most = -3, -1, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, most)


def keep_few_kernels() -> None:
    """oneDNN, which multiplies bf16, and torch's layer over it each keep what was compiled for a shape of a batch: 1,024 times
    half a megabyte by default. Hardly a shape comes twice; as many are kept as the layers of one batch share. Heeded before
    the first multiplication alone.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "32")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No load report: what is left out is left out on purpose, and missing weights are checked below."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def model_class(config: Any) -> type[Any]:
    """The class of transformers that holds the decoder of `config` without its vocabulary head. UserError where there is
    none.
    """
    name = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model: {shown(name)} has an encoder and a decoder; amygdala reads causal language models alone")
    try:
        found = transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        raise UserError(f"model: transformers {transformers.__version__} has no decoder for {shown(name)}") from None
    return found[0] if isinstance(found, tuple | list) else found


def truncated(whole: type[Any], n_layers: int) -> type[Any]:
    """`whole` with its first `n_layers` blocks and its text decoder alone.

    The whole model is laid out without memory and then cut, by its own unchanged configuration: a shortened one would change
    what some layers are (which share keys and values, which are hybrid, dense or sliding).
    """

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        whole.__init__(self, config, *arguments, **options)
        cut(self, find_decoder(self, count_layers(config)), n_layers)

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


def _refuse_strays(source: str, model: torch.nn.Module, decoder: Decoder, unexpected: Iterable[str]) -> None:
    """UserError where the folder has weights inside the blocks that the model does not know: scales of a quantization, parts of
    another architecture, adapters. Without them the blocks would compute something else, silently.
    """
    path = next(name for name, module in model.named_modules() if module is decoder.layers)
    prefix = re.escape(getattr(model, "base_model_prefix", "") or "model")
    inside = re.compile(rf"(?:{prefix}\.)?{re.escape(path)}\.(\d+)\.(.*)")
    found = [(name, inside.fullmatch(name)) for name in sorted(unexpected)]
    strays = [name for name, match in found if match and int(match[1]) < len(decoder.layers) and match[2] not in HARMLESS]
    if strays:
        raise UserError(
            f"model: {source} has {len(strays)} weights that {type(model).__name__} does not know, {shown(strays[0])} first; "
            "it is of another architecture than its config.json says, quantized in an unknown way, or an adapter not merged"
        )


def read_config(source: str, revision: str | None) -> Any:
    """The model's configuration. UserError where it cannot be loaded, or does not tell which of its parts reads text."""
    with _quiet():
        try:
            where = {"revision": revision, "local_files_only": True, "trust_remote_code": False}
            config = transformers.AutoConfig.from_pretrained(source, **where)
            text_config(config)
        except Exception as error:  # whatever the library makes of a wrong file
            raise UserError(f"model: {source} cannot be loaded: {_first_line(error)}") from None
    return config


def load_decoder(
    source: str,
    revision: str | None,
    n_layers: int,
    dtype: str,
    device: torch.device,
    device_map: str | None = None,
    config: Any = None,
) -> Decoder:
    """The first `n_layers` blocks of a model and its embeddings, in eval mode on `device`, or spread as `device_map` says.

    config: what read_config gave, where it was read before. Weights come from safetensors alone, and only those that are
    needed are read. UserError where the folder lacks one of them (transformers would fill it with random numbers), and where
    the model is no causal decoder.
    """
    where = {
        "pretrained_model_name_or_path": source,
        "revision": revision,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    config = read_config(source, revision) if config is None else config
    with _quiet():
        try:
            whole = model_class(config)
            model, info = truncated(whole, n_layers).from_pretrained(
                **where,
                config=config,
                dtype=TORCH_DTYPES[dtype],
                device_map=device_map or {"": device},
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except UserError:
            raise
        except Exception as error:  # whatever the library makes of a wrong file
            raise UserError(f"model: {source} cannot be loaded: {_first_line(error)}") from None
    model.eval()
    decoder = find_decoder(model, n_layers)
    with torch.inference_mode():
        check_causal(decoder)
    _refuse_strays(source, model, decoder, info["unexpected_keys"])
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        problem = f"lacks {len(missing)} weights, {shown(missing[0])} first" if missing else "has weights of other shapes"
        raise UserError(f"model: {source} {problem}; it does not fit its config.json")
    return decoder


def max_positions(config: Any) -> int | None:
    """The longest sequence that a model's configuration allows, None where it names no limit."""
    limit = getattr(text_config(config), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def rope_border(config: Any) -> int | None:
    """The length in tokens above which `longrope` turns positions otherwise (Ding et al., 2402.13753), None for other models.

    transformers looks at the longest text of a batch, so that a batch must lie on one side of it.
    """
    config = text_config(config)
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" not in str(given):
        return None
    border = getattr(config, "original_max_position_embeddings", None) or given.get("original_max_position_embeddings")
    return border if isinstance(border, int) else None


def load_tokenizer(source: str, revision: str | None) -> Any:
    """The model's own tokenizer. UserError where there is none, or it cannot be loaded."""
    with _quiet():
        try:
            where = {"revision": revision, "local_files_only": True, "trust_remote_code": False}
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
            ids = set(tokenizer("A plain sentence.")["input_ids"]) - set(tokenizer.all_special_ids)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise UserError(f"model: {source} has no usable tokenizer: {_first_line(error)}") from None
    if not ids:  # transformers makes an empty one where the vocabulary's file is not there
        raise UserError(f"model: {source} has no usable tokenizer: no tokens in a plain sentence; is tokenizer.json there?")
    return tokenizer
