"""A server that speaks TF Serving's REST and gRPC protocols; run it with `python -m serving.server`."""
