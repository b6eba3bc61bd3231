"""Classification and regression from CSV and Parquet files."""

from hanse.tasks.tabular.task import Tabular, TabularOptions

__all__ = ["Tabular", "TabularOptions"]
