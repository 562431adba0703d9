"""A feature repository for `benchmarks.lookup_serve`."""
