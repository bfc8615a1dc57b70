"""Reports for people (`deepfake analyze --report`): one self-contained HTML page per input, plots as PNG, an index.

Needs the extra ``report`` (jinja2, matplotlib). Modules: `pictures` looks at the source again, `plots` draws,
`page` writes the files.
"""

from deepfake_client.report.page import Heatmaps, ReportContext, has_page, page_path, write_index, write_page

__all__ = ["Heatmaps", "ReportContext", "has_page", "page_path", "write_index", "write_page"]
