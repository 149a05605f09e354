"""MoRe: named entity and relation extraction with multi-modal retrieval."""
