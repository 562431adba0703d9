"""The conformance suite's feature repository; tests copy it as the package `conformance_repo`."""
