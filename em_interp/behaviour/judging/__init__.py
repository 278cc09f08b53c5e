"""Judges: the scores of answers, by a language model or by the rules of the built-in language."""
