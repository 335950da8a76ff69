"""Where bytes live: the store's layout, atomic writes, downloads. The only place store paths are built."""
