"""Reports made from the files of a run folder."""
