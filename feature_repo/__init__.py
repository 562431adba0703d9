"""The example's feature repository: what the features are. Edit this."""
