"""Everything that a run found: what `result.json` holds and the report is made from. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from engine.errors import TrainingDataError
from engine.tuning.data.rows import Task
from engine.tuning.training.events import HistoryPoint

FORMAT = 1
Context = Literal["none", "gold", "retrieved"]
# By name; larger is better but for `loss` (nats) and `ece`.
# classify: accuracy, macro_f1, loss (of the right label among the labels, at temperature 1).
# qa: f1, exact_match, not_in_documents (share of such answers), loss (per token of the target).
# chat: f1, rouge_l, loss (per token of the target).
Metrics = dict[str, float]
# The metric that chooses the adapter, by task.
MAIN_METRIC: dict[Task, str] = {"classify": "accuracy", "qa": "f1", "chat": "f1"}
# The slices of an evaluation: every row, the rows of --exceptions, and the other ones.
SliceName = Literal["all", "exceptions", "others"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said of one row. `quality` is in [0, 1]: the row's share of the main metric.

    `loss` is in nats: of the right label among the labels (classify), or per token of the target. `confidence` is the
    probability of `text` among the labels at temperature 1, `calibrated` the same at the fitted temperature; both are
    None for other tasks than `classify`.
    """

    text: str
    quality: float
    loss: float | None = None
    confidence: float | None = None
    calibrated: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row and what was said of it, by the base model before and with the adapter after.

    `line` is that of `source`; `targets` are all right answers (one label; empty where none is in the documents).
    Rows that were not asked, because a sample was enough, have no Prediction or no `before`.
    """

    line: int
    input: str
    targets: tuple[str, ...]
    after: Answer
    before: Answer | None = None
    is_exception: bool = False


@dataclass(frozen=True, slots=True)
class SliceMetrics:
    """The metrics of some rows of an evaluation: `after` with the adapter, `before` by the base model.

    `before` is of those of the rows whose predictions have a `before`: a sample, where asking takes long.
    """

    name: SliceName
    num_rows: int
    after: Metrics
    before: Metrics | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The adapter judged on rows that it was not trained on.

    `name` is "validation" (rows held out, which chose the adapter) or "evaluation" (the file of --eval). `slices` begin
    with "all"; `predictions` are of `num_predicted` rows out of `num_rows`, in their order.
    """

    name: Literal["validation", "evaluation"]
    source: str
    num_rows: int
    slices: tuple[SliceMetrics, ...]
    predictions: tuple[Prediction, ...]

    @property
    def whole(self) -> SliceMetrics:
        """The slice of every row."""
        return self.slices[0]

    @property
    def num_predicted(self) -> int:
        """Rows with a prediction."""
        return len(self.predictions)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The temperature that log-probabilities of labels are divided by, fitted on the validation rows.

    Losses are nats, the expected calibration errors over 10 bins of equal counts; each before and after, on those rows.
    """

    temperature: float
    num_rows: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A training on `num_train` of the rows, judged on the same validation rows as all others.

    `num_per_label` is their mean over the labels; None without labels.
    """

    num_train: int
    metrics: Metrics
    minutes: float
    num_per_label: float | None = None


@dataclass(frozen=True, slots=True)
class Baseline:
    """A model that is trained in seconds on the same rows, and its answers to the rows of each evaluation by name."""

    name: str
    seconds: float
    metrics: dict[str, Metrics]
    answers: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """How the training went. `settings` are those of TrainingSettings; minutes are of all sessions of a resumed run.

    `best` is the point whose adapter was kept. `stopped` says whether all steps were taken, or patience or the time
    allowed ended the run. `tokens_per_s` counts the examples' tokens while training; `peak_gpu_bytes` is 0 on a CPU.
    `train_metrics` are the adapter's on a sample of the rows that it was trained on.
    """

    settings: dict[str, Any]
    history: tuple[HistoryPoint, ...]
    best: HistoryPoint
    num_steps: int
    stopped: Literal["finished", "patience", "time"]
    minutes: float
    tokens_per_s: float
    peak_memory_bytes: int
    peak_gpu_bytes: int
    device: str = "cpu"
    train_metrics: Metrics | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of `switchyard tune`.

    `metric` names the main one. `guard` is GuardReport.to_json(). `train_lines` are the lines of the data that were
    trained on; `num_exceptions` counts rows of --exceptions among them, each of which was repeated
    `exceptions_factor` times. Digests are hex; `adapter_digest` is that of the adapter's weights. `created` is an ISO
    time in UTC. `label_texts` are the words that the model writes for `labels`. `minutes_in_all` are those of the last
    session, everything included.
    """

    name: str
    task: Task
    metric: str
    created: str
    base_model: str
    base_digest: str
    adapter_digest: str
    data_source: str
    data_digest: str
    instruction: str
    guard: dict[str, Any]
    run: TrainingRun
    evaluations: tuple[Evaluation, ...]
    num_train: int
    num_validation: int
    num_train_tokens: int
    is_forced: bool = False
    is_split_by_row: bool = False
    context: Context = "none"
    labels: tuple[str, ...] = ()
    label_texts: tuple[str, ...] = ()
    train_lines: tuple[int, ...] = ()
    exceptions_source: str | None = None
    num_exceptions: int = 0
    exceptions_factor: int = 1
    calibration: Calibration | None = None
    curve: tuple[CurvePoint, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    minutes_in_all: float = 0.0
    format: int = FORMAT

    def evaluation(self, name: str) -> Evaluation | None:
        """The evaluation of that name; None where there is none."""
        return next((each for each in self.evaluations if each.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which `outcome_from_json` makes the same outcome."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return content


def outcome_from_json(content: dict[str, Any], source: str = "result.json") -> Outcome:
    """What `Outcome.to_json` gave. Raises: TrainingDataError naming `source` when it is of another shape."""
    try:
        outcome: Outcome = TypeAdapter(Outcome).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise TrainingDataError(f"{source}: {place}: {first['msg']}. Train again to write it anew.") from None
    if outcome.format != FORMAT:
        raise TrainingDataError(f"{source}: has format {outcome.format}, this version reads {FORMAT}. Train again.")
    return outcome
