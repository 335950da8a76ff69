"""Files of one format each, read box by box as `LazyVolume`s."""
