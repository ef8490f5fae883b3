"""A run's report: manifests to figures to one page that needs nothing but a browser."""
