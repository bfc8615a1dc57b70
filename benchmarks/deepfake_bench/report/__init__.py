"""Plots and README tables, made from result files and from nothing else."""
