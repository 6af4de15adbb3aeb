"""Models as files for other runtimes, and these files used as models."""

from wavevit.export.exporting import export_model
from wavevit.export.loading import load_exported

__all__ = ["export_model", "load_exported"]
