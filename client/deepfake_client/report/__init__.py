"""Reports for people: one self-contained HTML page per input, plots as PNG, an index.

Needs the extra ``report`` (jinja2, matplotlib). Modules: `pictures` looks at the source again, `plots` draws,
`facts` says in words what a verdict holds, `page` writes the files, and `pdf` the same on paper (extra ``pdf``).
"""

from deepfake_client.report.facts import FileFacts, ReportContext, file_facts
from deepfake_client.report.page import Heatmaps, has_page, page_of, page_path, write_index, write_page
from deepfake_client.report.pictures import Pictures, pictures_of_source, take_pictures

__all__ = [
    "FileFacts",
    "Heatmaps",
    "Pictures",
    "ReportContext",
    "file_facts",
    "has_page",
    "page_of",
    "page_path",
    "pictures_of_source",
    "take_pictures",
    "write_index",
    "write_page",
]
