"""Neutral or unseen texts to a stored file that capture takes them from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amygdala.errors import UserError
from amygdala.files import write_json
from amygdala.job import job
from amygdala.keys import key
from amygdala.textsets import Text, UnseenSet, neutral_texts, stored

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def read_texts(params: Mapping[str, Any]) -> tuple[list[Text], dict[str, int]]:
    """(the texts that a job is to store: the neutral ones of a file, or those of all unseen sets; {unseen set: how many are
    shorter than `least`})
    """
    if params.get("neutral") is not None:
        return neutral_texts(Path(params["neutral"]), params["least"]), {}
    found = {one["name"]: UnseenSet(**one).texts(params["least"]) for one in params["sets"]}
    return [text for texts, _ in found.values() for text in texts], {name: short for name, (_, short) in found.items()}


if "snakemake" in globals():
    with job(snakemake) as say:
        params = snakemake.params
        given = dict(params.items())
        texts, too_short = read_texts(given)
        if "digests" in given and key([text.digest for text in texts]) != given["digests"]:
            raise UserError(f"{', '.join(snakemake.input)} changed while snakemake was running. Run snakemake again")
        write_json(snakemake.output[0], stored(texts, too_short))
        for name, count in too_short.items():
            if count:
                say(f"warning: {name}: {count} texts are shorter than min_content_chars ({params.least}) and left out")
        say(f"{len(texts)} texts")
