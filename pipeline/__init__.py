"""From raw rows to a gated, pushed model: each stage is a function from a directory to a directory."""
