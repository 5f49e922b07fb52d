"""Running a shard: the journal first, the model only for what it lacks."""
