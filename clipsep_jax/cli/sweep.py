"""`clipsep sweep-gamma`."""

import argparse
from collections.abc import Sequence

from clipsep_jax.cli import train
from clipsep_jax.cli.options import add_mixture_options
from clipsep_jax.terminal import say

DESCRIPTION = (
    "  clipsep sweep-gamma --config=clipsep_nit:toy --workdir=runs/gamma\n"
    "  clipsep sweep-gamma --config=clipsep_nit:vggsound --workdir=runs/rates "
    "--vary optimizer.learning_rate=0.0003,0.001,0.003"
)


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `clipsep sweep-gamma`."""
    train.describe(parser)
    parser.add_argument(
        "--gammas", metavar="G,G,...", help="values of objective.gamma (default: 0,0.1,0.25,0.5,0.75,1.0)"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=V,V,...",
        help="an option of the objective or optimizer and its values, such as config.objective.regularizer=sum,ratio, "
        "instead of gamma or, with --gammas, in addition; repeatable: all combinations are trained",
    )
    add_mixture_options(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains a model for each value; `overrides` are the options of the config that all share."""
    from clipsep_jax.config_files import read_config
    from clipsep_jax.training.sweep import GAMMAS, read_variation, sweep

    config = read_config(options.config, overrides)
    gammas = options.gammas if options.gammas or options.vary else GAMMAS
    varied = [f"objective.gamma={gammas}"] * (gammas is not None) + options.vary
    variations = [read_variation(text, config) for text in varied]
    train.get_ready(config, options)
    page = sweep(
        config,
        options.workdir,
        variations,
        split=options.split,
        num_mixtures=options.num_mixtures,
        **train.how_to_start(options),
        trace=train.step_trace(options),
    )
    say(f"The report is in {page}; each member's folder beside it is a training workdir.")
