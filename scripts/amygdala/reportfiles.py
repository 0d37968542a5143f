"""The files of a report, known before it is made: rules name them, the script writes them."""

from pathlib import Path

PAGE = "report.html"
# Each is drawn for every release, if only to say why there is nothing to draw. The names are those in `snakemake --report`.
LABELS = {
    "report": "The whole report",
    "layers": "AUC by layer",
    "emotions": "Each emotion by layer",
    "cosines": "Cosines between vectors",
    "dendrogram": "Which emotions share a direction",
    "families": "Families of emotions",
    "heads": "Attention heads",
    "head_maps": "Heads of single emotions",
    "confounds": "Confounds",
}
FIGURES = tuple(name for name in LABELS if name != "report")
TEMPLATES = Path(__file__).resolve().parent / "templates"
PARTS = ("report.html.jinja", "report.css", "report.js")
