"""Corpus: pages, chunks and the index snapshot the assistant answers from."""
