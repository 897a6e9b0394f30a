"""Evidence for people and machines: results.json, table, chart, adapter card, loggers."""

from .cards import adapter_card
from .figures import write_chart
from .loggers import FitProgress, WandbRunLogger, finish_loggers, log_results
from .tables import print_results, results_table, verdict

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
