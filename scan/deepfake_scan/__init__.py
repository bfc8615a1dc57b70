"""Bulk scans: verdicts on folders, buckets and manifests of any size, resumable, on one machine or on a Ray cluster.

Folders, from the command line down: `cli` (the command), `engines` (who does the work: this machine or Ray), `work`
(processes that open media), `results` (parts, what is done already, upkeep), `inputs` (what is scanned), `storage`
(folders and buckets). Run it with ``deepfake scan``.
"""
