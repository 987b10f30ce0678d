"""`clipsep evaluate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipsep_jax.cli.options import add_model_option, positive, seed
from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

if TYPE_CHECKING:
    from clipsep_jax.data.record_set import RecordSet
    from clipsep_jax.evaluation.estimates import Ways
    from clipsep_jax.evaluation.protocols import Protocol
    from clipsep_jax.separation.separator import Separator

DESCRIPTION = (
    "Scores a model on held-out mixtures, beside the mixture itself and ideal masks. Mixtures are drawn from a split, "
    "or are the frozen pairs of an official protocol, or those of a CSV file. Other systems are scored on the same "
    "mixtures: write them with --export-mixtures, and give the folders of the estimates with --estimates."
)


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_model_option(parser, required=False)
    parser.add_argument("--records", type=Path, metavar="RECORDS", help="folder of records of all sources")
    parser.add_argument("--targets", type=Path, metavar="RECORDS", help="of the targets, where they are others")
    parser.add_argument("--interferers", type=Path, metavar="RECORDS", help="of what is mixed with them")
    parser.add_argument(
        "--protocol",
        default="drawn",
        metavar="NAME",
        help="music+ or vggsound-clean+ (official pairs), pairs:FILE (a CSV file with the columns target,interferer), "
        "or drawn (default)",
    )
    drawn = parser.add_argument_group("drawn mixtures")
    drawn.add_argument("--split", metavar="NAME", help="which split of the records to draw from (default: test)")
    drawn.add_argument("--num-mixtures", type=positive, metavar="N", help="how many (default: 256)")
    drawn.add_argument("--num-sources", type=positive, metavar="N", help="in each (default: as in training)")
    drawn.add_argument("--seed", type=seed, metavar="N", help="of the draw (default: 0)")
    ways = parser.add_argument_group("ways of estimation")
    ways.add_argument("--prompt", metavar="TEMPLATE", help="how a label becomes a text, such as 'a photo of {}'")
    ways.add_argument("--prompts", type=Path, metavar="FILE", help="templates, a line each: scored alone and averaged")
    ways.add_argument("--masks", choices=("soft", "binary"), help="binary: at 0.5 (default: soft)")
    ways.add_argument(
        "--noise",
        choices=("off", "first", "oracle"),
        help="noise masks added to a query's: first (as the official --pit), or the best one, by an oracle",
    )
    ways.add_argument("--metrics", metavar="NAMES", help="sdr, si_sdr, sdr_v3, sir, sar, by commas (default: all)")
    ways.add_argument(
        "--estimates", type=Path, nargs="+", default=[], metavar="DIR", help="folders of other systems' estimates"
    )
    parser.add_argument("--export-mixtures", type=Path, metavar="DIR", help="write the mixtures there, and do no more")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scores and figures there")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Scores a model and prints the table."""
    from clipsep_jax.config import Config
    from clipsep_jax.evaluation.figures import write_figures
    from clipsep_jax.evaluation.mixtures import MixtureReader
    from clipsep_jax.evaluation.others import OtherSystem, export_mixtures
    from clipsep_jax.evaluation.scores import Evaluation
    from clipsep_jax.evaluation.tables import table, write_scores
    from clipsep_jax.separation.separator import Separator

    if not (options.model or options.estimates or options.export_mixtures):
        raise InputError("There is nothing to score; give --model, or --estimates of other systems.")
    _refuse_what_is_not_used(options)
    separator = Separator.load(options.model, download=options.download) if options.model else None
    protocol = _protocol(options, separator)
    if options.export_mixtures:
        config = separator.config if separator else Config()
        index = export_mixtures(options.export_mixtures, protocol, MixtureReader(config, protocol, None))
        say(f"{len(protocol.mixtures)} mixtures are in {options.export_mixtures}, listed in {index}.")
        return
    others = [OtherSystem(folder) for folder in options.estimates]
    summary, rows = Evaluation(separator, protocol, _ways(options), others).run()
    say(table(summary))
    if options.out:
        path = write_scores(options.out, summary, rows)
        write_figures(options.out, summary, rows)
        say(f"Scores and figures are beside {path}.")


def _refuse_what_is_not_used(options: argparse.Namespace) -> None:
    from clipsep_jax.evaluation.protocols import DRAWN

    for is_so, names, when in (
        (options.protocol != DRAWN, ("split", "num_mixtures", "num_sources", "seed"), f"--protocol {options.protocol}"),
        (not options.model, ("prompt", "prompts", "masks", "noise"), "no --model"),
        (options.export_mixtures, ("prompt", "prompts", "masks", "noise", "metrics", "estimates", "out"), "an export"),
    ):
        used = [name for name in names if getattr(options, name) not in (None, [])]
        if is_so and used:
            raise InputError(f"--{used[0].replace('_', '-')} does nothing with {when}; leave it out.")


def _protocol(options: argparse.Namespace, separator: "Separator | None") -> "Protocol":
    from clipsep_jax.evaluation.mixtures import needs_pictures
    from clipsep_jax.evaluation.protocols import DRAWN, drawn_protocol, listed_protocol, num_sources_of

    targets, interferers = _record_sets(options)
    frames = separator is not None and needs_pictures(separator, [targets, interferers])
    if options.protocol != DRAWN:
        return listed_protocol(options.protocol, targets, interferers, frames=frames)
    if targets is not interferers:
        raise InputError("Mixtures are drawn from --records; --targets and --interferers go with --protocol.")
    num_sources = options.num_sources or (num_sources_of(separator.config) if separator else 2)
    if num_sources < 2:
        raise InputError("A mixture has at least 2 sources; give another --num-sources.")
    return drawn_protocol(
        targets,
        options.split or "test",
        options.num_mixtures or 256,
        num_sources,
        seed=options.seed or 0,
        frames=frames,
    )


def _record_sets(options: argparse.Namespace) -> "tuple[RecordSet, RecordSet]":
    from clipsep_jax.data.record_set import RecordSet

    if options.records and not (options.targets or options.interferers):
        records = RecordSet(options.records)
        return records, records
    if options.records or not (options.targets and options.interferers):
        raise InputError("Give --records, or both --targets and --interferers.")
    return RecordSet(options.targets), RecordSet(options.interferers)


def _ways(options: argparse.Namespace) -> "Ways":
    from clipsep_jax.evaluation.estimates import Ways
    from clipsep_jax.metrics import METRICS
    from clipsep_jax.queries.prompts import read_templates

    names = tuple(options.metrics.split(",")) if options.metrics else tuple(METRICS)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise InputError(f"There is no metric {unknown[0]!r}; give some of {', '.join(METRICS)}.")
    if options.prompt and options.prompts:
        raise InputError("Give either --prompt or --prompts.")
    prompts = read_templates(options.prompts) if options.prompts else (options.prompt,) if options.prompt else ()
    chosen = {name: value for name in ("masks", "noise") if (value := getattr(options, name))}
    return Ways(tuple(dict.fromkeys(names)), prompts, bool(options.prompts), **chosen)
