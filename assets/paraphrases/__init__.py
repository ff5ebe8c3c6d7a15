"""Paraphrases: clusters of seeds, rewordings of their medoids, and what the guard let through."""
