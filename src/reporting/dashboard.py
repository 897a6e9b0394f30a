"""The project's workspace in W&B: panels over what runs of ``train.py`` and ``evaluate.py`` log.

The names are those of :mod:`.loggers`. It takes the package wandb-workspaces; building it takes
neither a network nor a login.
"""

from collections.abc import Sequence
from typing import Any

from ..exceptions import ConfigurationError

# Options that sweeps differ in, as the parallel coordinates show them.
SWEPT = (
    *("mapper.space", "mapper.components", "mapper.rank", "mapper.lr", "mapper.hidden"),
    *("data.anchors", "seed"),
)

# Images that the media browser shows, by their files' stems; those that are missing stay empty.
CHARTS = (
    *("gap_by_task", "recovery_against_cost", "drift_against_retention"),
    *("intersection_map", "calibration", "scores"),
)


def build_dashboard(
    entity: str,
    project: str,
    methods: Sequence[str],
    tasks: Sequence[str],
) -> Any:
    """Return the workspace, a ``wandb_workspaces.workspaces.Workspace``; nothing is sent.

    ``methods`` are labels as :func:`~loraport.reporting.loggers.method_label` gives them.

    Raises:
        ConfigurationError: wandb-workspaces is not installed.
    """
    ws, wr = _libraries()
    return ws.Workspace(
        entity=entity,
        project=project,
        name="loraport",
        sections=[
            ws.Section(name="Gap recovered", panels=_gaps(wr, methods, tasks), is_open=True),
            ws.Section(name="Sweeps", panels=_sweeps(wr), is_open=True),
            ws.Section(name="Drift against retention", panels=_drifts(wr, methods), is_open=True),
            ws.Section(name="Cost", panels=_costs(wr, methods), is_open=True),
            ws.Section(name="Maps and charts", panels=_media(wr), is_open=True),
        ],
    )


def save_dashboard(entity: str, project: str, methods: Sequence[str], tasks: Sequence[str]) -> str:
    """Create the workspace in W&B, and return its address.

    Raises:
        ConfigurationError: wandb-workspaces is not installed, or W&B does not take it.
    """
    workspace = build_dashboard(entity, project, methods, tasks)
    try:
        return str(workspace.save().url)
    # Of the library, of the network or of W&B's answer: none has a common ancestor.
    except Exception as error:
        raise ConfigurationError(
            f"the dashboard cannot be saved to {entity}/{project} ({error}); log in by `wandb "
            "login`, and give dashboard=ENTITY/PROJECT as the address in W&B has it"
        ) from error


def _libraries() -> tuple[Any, Any]:
    """Import the libraries late: they are optional, and slow to import."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"dashboard= takes wandb-workspaces ({error.name} is not installed); install the extra "
            "by `pip install 'loraport[dashboards]'`"
        ) from None
    return ws, wr


def _gaps(wr: Any, methods: Sequence[str], tasks: Sequence[str]) -> list[Any]:
    means = [f"summary/{method}/gap_recovered" for method in methods]
    return [
        wr.BarPlot(title="gap recovered, mean over the usable tasks", metrics=means),
        *(
            wr.BarPlot(
                title=f"gap recovered on {task}",
                metrics=[f"gap/{method}/{task}" for method in methods],
            )
            for task in tasks
        ),
        wr.WeavePanelSummaryTable(table_name="benchmark/methods"),
        wr.WeavePanelSummaryTable(table_name="benchmark/tasks"),
    ]


def _sweeps(wr: Any) -> list[Any]:
    column = wr.ParallelCoordinatesPlotColumn
    numbers = ("summary/objective", "summary/gap_recovered")
    return [
        wr.ParallelCoordinatesPlot(
            title="options against what they gave",
            columns=[
                column(metric=wr.Config("mapper._target_"), display_name="mapper"),
                *(column(metric=wr.Config(name), display_name=name) for name in SWEPT),
                *(column(metric=wr.SummaryMetric(name), display_name=name) for name in numbers),
            ],
        ),
        wr.BarPlot(title="gap recovered by run", metrics=["summary/gap_recovered"]),
    ]


def _drifts(wr: Any, methods: Sequence[str]) -> list[Any]:
    return [
        wr.ScatterPlot(
            title=f"{method}: drift (nats a token) against retention",
            x=wr.SummaryMetric(f"summary/{method}/drift"),
            y=wr.SummaryMetric(f"summary/{method}/retention"),
        )
        for method in methods
    ]


def _costs(wr: Any, methods: Sequence[str]) -> list[Any]:
    return [
        wr.BarPlot(
            title=f"seconds: {step}", metrics=[f"cost/{method}/{step}" for method in methods]
        )
        for step in ("fit", "port")
    ]


def _media(wr: Any) -> list[Any]:
    return [
        wr.MediaBrowser(title="charts", media_keys=[f"charts/{stem}" for stem in CHARTS]),
        wr.MediaBrowser(title="report", media_keys=["pages/report"]),
    ]
