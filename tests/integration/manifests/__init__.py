"""The manifests, run: what the rendered overlay says, as local processes."""
