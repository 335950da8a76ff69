"""A local portal with EM-like data, for `make demo` and for tests."""
