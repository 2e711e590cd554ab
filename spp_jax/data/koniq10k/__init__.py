"""`koniq10k`: KonIQ-10k."""
