"""What each layer's own weights can write into the residual stream, a file a layer: no text is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.batch import missing
from amygdala.job import Say, job
from amygdala.modelinfo import check_model
from amygdala.modelweights import write_weights

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def make_weights(settings: Mapping[str, Any], outputs: dict[int, Path], say: Say) -> list[int]:
    """Write the weights of those layers whose file is missing; returns these layers.

    settings: source, revision, dtype, device, device_map, threads, as a capture takes them; outputs: {layer: path}. The model
    is loaded only if a file is missing, and only up to the last such layer.
    """
    todo = missing(outputs)
    if not todo:
        return todo
    import torch

    from amygdala import loading
    from amygdala.architecture import find_projections, text_config
    from amygdala.blockweights import block_weights

    device = loading.place(settings)
    say(f"loading layers 0 to {todo[-1]} in {settings['dtype']} for the weights of layers {todo}")
    decoder = loading.load_decoder(
        settings["source"], settings["revision"], todo[-1] + 1, settings["dtype"], device, settings["device_map"]
    )
    with torch.inference_mode():
        projections = find_projections(decoder, text_config(decoder.module.config))
    for layer in todo:
        o_proj, neurons, facts = block_weights(decoder, layer, projections[layer])
        write_weights(outputs[layer], o_proj, neurons, facts)
        heads = f"no heads ({facts['reason']})" if o_proj is None else f"{facts['n_heads']} heads of {facts['head_dim']}"
        found = facts["neurons_reason"] if neurons is None else f"{len(neurons)} neurons"
        say(f"layer {layer}: {heads}; {found}")
    return todo


if "snakemake" in globals():
    with job(snakemake, needs_input=False) as say:
        params = snakemake.params
        check_model(params.model, params.settings["source"], Path(snakemake.output[0]).parents[2])
        settings = {**params.settings, "threads": snakemake.threads}
        make_weights(settings, dict(zip(params.layers, map(Path, snakemake.output), strict=True)), say)
