"""`deepfake convert-meta-model`: a pickled scikit-learn meta-model as plain numbers, for an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepfake_export.ensemble.pickled_meta_model import convert_meta_model as convert


def convert_meta_model(
    pickles: Annotated[
        list[Path],
        typer.Argument(metavar="PICKLE...", help="The regression; with a second file, the scaler before it."),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="YAML or JSON file to write.")],
) -> None:
    """Convert a pickled scikit-learn meta-model to plain numbers, which an ensemble can name.

    [bold]Loading a pickle runs whatever code it holds.[/] Convert only files whose
    source you trust as you trust a program. The numbers are checked against
    scikit-learn's own probabilities.
    """
    meta_model = convert(pickles, output)
    typer.echo(f"Wrote {output}: {len(meta_model.coef)} members, fake is the second class")
