"""What a run leaves behind: the release bundle."""
