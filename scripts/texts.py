"""Neutral or unseen texts to a stored file that capture takes them from."""

from pathlib import Path
from typing import TYPE_CHECKING

from amygdala.errors import UserError
from amygdala.files import write_json
from amygdala.job import job
from amygdala.keys import key
from amygdala.textsets import Text, UnseenSet, neutral_texts, stored

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


def read_texts(params: dict[str, object], neutral: str | None) -> list[Text]:
    """The texts that a job is to store: the neutral ones of a file, or those of all unseen sets."""
    if neutral is not None:
        return neutral_texts(Path(neutral))
    return [text for one in params["sets"] for text in UnseenSet(**one).texts()]  # type: ignore[attr-defined]


if "snakemake" in globals():
    with job(snakemake) as say:
        params = snakemake.params
        given = dict(params.items())
        texts = read_texts(given, given.get("neutral"))
        if "digests" in given and key([text.digest for text in texts]) != given["digests"]:
            raise UserError(f"{', '.join(snakemake.input)} changed while snakemake was running. Run snakemake again")
        write_json(snakemake.output[0], stored(texts))
        say(f"{len(texts)} texts")
