"""Programs run from a checkout: doors into the package, and what maintainers run."""
