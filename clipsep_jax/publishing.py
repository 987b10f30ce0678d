"""Publishing a model: a card that says what a stranger needs to know, and the files on the Hugging Face Hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from clipsep_jax.config import Config, differences
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.tables import SUMMARY_NAME, Line, lines_of
from clipsep_jax.files import read_json
from clipsep_jax.hub import push_folder
from clipsep_jax.metrics import CHIEF, METRICS
from clipsep_jax.model_dir import ENCODER_FOLDER, ModelDir
from clipsep_jax.queries.kinds import kind_of

CARD_NAME = "README.md"
_MOST_LABELS = 50  # that a card lists
_OF_A_PLACE = ("data.records", "query.table", "query.encoder")  # options that say where files lay


def push(
    model: ModelDir, name: str, licence: str, *, records: Path | None, scores: Sequence[Path], private: bool
) -> str:
    """Publishes a model directory with a card; gives the address of the commit.

    Args:
        name: `owner/name` on the Hub.
        licence: of the weights, by its id on the Hub, such as "apache-2.0".
        records: that it was trained on, for the card.
        scores: folders that `clipsep evaluate --out` wrote, for the card.

    Raises:
        InputError: a folder cannot be read, or the Hub does not take it.
    """
    card = write_card(model, name, licence, RecordSet(records) if records else None, scores)
    with TemporaryDirectory() as temporary:
        staged = Path(temporary)
        for path in model.folder.iterdir():
            if path.suffix in (".json", ".safetensors"):
                shutil.copyfile(path, staged / path.name)
        if (model.folder / ENCODER_FOLDER).is_dir():
            shutil.copytree(model.folder / ENCODER_FOLDER, staged / ENCODER_FOLDER)
        (staged / CARD_NAME).write_text(card, "utf-8")
        return push_folder(staged, name, private=private)


def write_card(model: ModelDir, name: str, licence: str, records: RecordSet | None, scores: Sequence[Path]) -> str:
    """The card of a model, as Markdown behind the Hub's own metadata."""
    summaries = {folder.name: _read_summary(folder) for folder in scores}
    data = ModelCardData(
        model_name=name,
        license=licence,
        library_name="clipsep-jax",
        pipeline_tag="audio-to-audio",
        tags=["sound-separation", "text-queried", "clipsep", "jax", kind_of(model.config).name],
        eval_results=[result for title, summary in summaries.items() for result in _results(title, summary)] or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n\n{_what(model.config)}",
        f"## Use\n\n{_use(model, name)}",
        f"## Trained on\n\n{_trained_on(records)}",
        *(["## Scores\n\n" + "\n\n".join(_table(*item) for item in summaries.items())] if summaries else []),
        f"## Options\n\n{_options(model.config)}",
        f"## Limits\n\n{_LIMITS}",
        f"## Licence\n\nThe weights: {licence}. The code: Apache-2.0.",
    ]
    return "\n\n".join(parts) + "\n"


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY_NAME
    if not path.is_file():
        raise InputError(f"{path} is missing; give a folder that `clipsep evaluate --out` wrote.")
    summary = read_json(path, "is not what `clipsep evaluate --out` writes; give such a folder.", dict)
    if not lines_of(summary, CHIEF):
        raise InputError(f"{path} holds no {METRICS[CHIEF].title}; score the model with --metrics {CHIEF} too.")
    return summary


def _of_the_model(summary: dict[str, Any]) -> list[Line]:
    kinds = ("text", "image", "text_and_image", "label", "sentence", "audio", "best_mask")
    return [line for line in lines_of(summary, CHIEF) if line.estimate in kinds]


def _results(title: str, summary: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="audio-to-audio",
            dataset_type=summary.get("protocol", {}).get("name", "drawn"),
            dataset_name=title,
            metric_type=CHIEF,
            metric_name=f"{METRICS[CHIEF].title} ({METRICS[CHIEF].unit}), queried by {line.estimate}",
            metric_value=round(line.mean, 2),
        )
        for line in _of_the_model(summary)
    ]


def _what(config: Config) -> str:
    system = "CLIPSep-NIT" if config.objective.name == "noise_invariant" else "CLIPSep"
    asked = {
        "audio": "an example sound",
        "label": "one of its labels",
        "sentence": "one of its labels",
        "none": "nothing: it pulls all sounds apart",
    }.get(kind_of(config).name, "a text or a picture")
    seconds = config.spectrogram.num_samples / config.spectrogram.sample_rate_hz
    what = f"A {system} ([paper](https://arxiv.org/abs/2212.07065)) of clipsep-jax, asked by {asked}."
    return f"{what} It works at {config.spectrogram.sample_rate_hz} Hz on chunks of {seconds:.1f} s."


def _use(model: ModelDir, name: str) -> str:
    query = model.labels[0] if model.labels else "accordion"
    shell = f"clipsep separate street.wav --model {name} --download --query {query!r} --out separated"
    python = f'import clipsep_jax\n\nseparator = clipsep_jax.load("{name}", download=True)'
    return f"```sh\npip install clipsep-jax\n{shell}\n```\n\n```python\n{python}\n```"


def _trained_on(records: RecordSet | None) -> str:
    if records is None:
        return "Not said."
    manifest = records.manifest
    counts = {split: sum(shard.num_records for shard in shards) for split, shards in manifest.splits.items()}
    listed = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    known = sorted(manifest.labels)
    labels = ", ".join(known[:_MOST_LABELS]) + (
        f", and {len(known) - _MOST_LABELS} more" if len(known) > _MOST_LABELS else ""
    )
    inputs = f"{manifest.counts['accepted']:,} of {manifest.counts['inputs']:,} inputs could be used"
    return f"Clips: {listed}; {inputs}.\n\nLabels: {labels or 'none'}."


def _table(title: str, summary: dict[str, Any]) -> str:
    metric, protocol = METRICS[CHIEF], summary.get("protocol", {}).get("name", "drawn")
    rows = [
        f"| {line.estimate} | {line.mean:.2f} ± {1.96 * line.error:.2f} | {line.median:.2f} | {line.gain:+.2f} |"
        for line in lines_of(summary, CHIEF)
    ]
    head = f"| estimate | mean {metric.title} ({metric.unit}) ± half of its 95% interval | median | over the mixture |"
    num = lines_of(summary, CHIEF)[0].num
    return "\n".join([f"{title}: {num} mixtures ({protocol}).", "", head, "|---|---|---|---|", *rows])


def _options(config: Config) -> str:
    changed = differences(Config().to_dict(), config.to_dict())
    lines = [f"{name} = {value!r}" for name, (_, value) in changed.items() if name not in _OF_A_PLACE]
    return "Where they differ from the defaults:\n\n```\n" + "\n".join(lines) + "\n```"


_LIMITS = """- Two sounds of one kind come out together.
- Nothing above half of the sample rate is heard; there, stems follow the band below.
- A query for a sound that is not there, or was not trained, still gives something.
- A stem is an estimate: it is no evidence of what was said or heard."""
