"""Evidence for people and machines: results.json, table, chart, adapter card, loggers."""

from .assembly import summarise, task_result
from .card import adapter_card
from .charts import write_chart
from .fit_progress import FitProgress
from .loggers import WandbRunLogger, finish_loggers, log_results
from .provenance import git_revision, library_versions
from .results import (
    CONDITIONS,
    SCHEMA,
    Margin,
    PairRecord,
    Provenance,
    Results,
    Summary,
    TaskResult,
    read_results,
    write_results,
)
from .tables import print_results, results_table
from .verdict import verdict

__all__ = [
    "CONDITIONS",
    "SCHEMA",
    "FitProgress",
    "Margin",
    "PairRecord",
    "Provenance",
    "Results",
    "Summary",
    "TaskResult",
    "WandbRunLogger",
    "adapter_card",
    "finish_loggers",
    "git_revision",
    "library_versions",
    "log_results",
    "print_results",
    "read_results",
    "results_table",
    "summarise",
    "task_result",
    "verdict",
    "write_chart",
    "write_results",
]
