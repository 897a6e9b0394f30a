"""The project's workspace in W&B: panels over what runs of ``train.py`` and ``evaluate.py`` log.

The names are those of :mod:`.loggers`. It takes the package wandb-workspaces; building it takes
neither a network nor a login.
"""

from collections.abc import Sequence
from importlib import import_module
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


def build_dashboard(entity: str, project: str, methods: Sequence[str], tasks: Sequence[str]) -> Any:
    """Return the workspace, a ``wandb_workspaces.workspaces.Workspace``; nothing is sent.

    ``methods`` are labels as :func:`~loraport.reporting.loggers.method_label` gives them.
    """
    try:  # optional, and slow to import
        wr: Any = import_module("wandb_workspaces.reports.v2")
        ws: Any = import_module("wandb_workspaces.workspaces")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"dashboard= takes wandb-workspaces ({error.name} is not installed); install the extra "
            "by `pip install 'loraport[dashboards]'`"
        ) from None

    def bars(title: str, *metrics: str) -> Any:
        return wr.BarPlot(title=title, metrics=list(metrics))

    column = wr.ParallelCoordinatesPlotColumn
    swept = [
        column(metric=wr.Config("mapper._target_"), display_name="mapper"),
        *(column(metric=wr.Config(name), display_name=name) for name in SWEPT),
        *(
            column(metric=wr.SummaryMetric(name), display_name=name)
            for name in ("summary/objective", "summary/gap_recovered")
        ),
    ]
    panels = {
        "Gap recovered": [
            bars(
                "gap recovered, mean over the usable tasks",
                *(f"summary/{method}/gap_recovered" for method in methods),
            ),
            *(
                bars(f"gap recovered on {task}", *(f"gap/{method}/{task}" for method in methods))
                for task in tasks
            ),
            wr.WeavePanelSummaryTable(table_name="benchmark/methods"),
            wr.WeavePanelSummaryTable(table_name="benchmark/tasks"),
        ],
        "Sweeps": [
            wr.ParallelCoordinatesPlot(title="options against what they gave", columns=swept),
            bars("gap recovered by run", "summary/gap_recovered"),
        ],
        "Drift against retention": [
            wr.ScatterPlot(
                title=f"{method}: drift (nats a token) against retention",
                x=wr.SummaryMetric(f"summary/{method}/drift"),
                y=wr.SummaryMetric(f"summary/{method}/retention"),
            )
            for method in methods
        ],
        "Cost": [
            bars(f"seconds: {step}", *(f"cost/{method}/{step}" for method in methods))
            for step in ("fit", "port")
        ],
        "Maps and charts": [
            wr.MediaBrowser(title="charts", media_keys=[f"charts/{stem}" for stem in CHARTS]),
            wr.MediaBrowser(title="report", media_keys=["pages/report"]),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name="loraport",
        sections=[
            ws.Section(name=name, panels=shown, is_open=True) for name, shown in panels.items()
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
