"""`clipsep evaluate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.cli.options import add_mixture_options, add_model_option
from clipsep_jax.terminal import say

DESCRIPTION = ""


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_model_option(parser)
    parser.add_argument("--records", type=Path, required=True, metavar="RECORDS", help="folder of records")
    add_mixture_options(parser, least=1)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of mixtures (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scores.json and mixtures.jsonl there")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Scores a model and prints the table."""
    from clipsep_jax.data.record_set import RecordSet
    from clipsep_jax.evaluation.scores import Evaluation
    from clipsep_jax.evaluation.tables import table, write_scores
    from clipsep_jax.separation.separator import Separator

    separator = Separator.load(options.model, download=options.download)
    evaluation = Evaluation(separator, RecordSet(options.records), options.split, options.num_mixtures, options.seed)
    summary, rows = evaluation.run()
    say(table(summary))
    if options.out:
        say(f"Scores are in {write_scores(options.out, summary, rows)}.")
