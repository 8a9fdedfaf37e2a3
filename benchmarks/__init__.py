"""Speed of pgwal beside its peers; ``python -m benchmarks`` runs all of it, see README.md."""
