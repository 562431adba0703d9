"""How Feast reaches Tally: the classes that `feature_store.yaml` names. Thin adapters; nothing imports this package."""
