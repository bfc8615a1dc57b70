"""What a scan leaves: parts of Parquet with the JSON beside, which of them are there, and their upkeep."""
