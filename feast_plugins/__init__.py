"""How Feast reaches Tally: the classes that `feature_store.yaml` names. Thin adapters; nothing imports this package."""

from feast_plugins.command_line import (
    errors_as_sentences,
    no_other_stores,
    repository_importable,
    without_alpha_warnings,
)

# A `feast` command loads this package before it reads the definitions.
errors_as_sentences()
no_other_stores()
repository_importable()
without_alpha_warnings()
