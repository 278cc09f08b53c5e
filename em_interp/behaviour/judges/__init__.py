"""A language model behind an OpenAI-compatible endpoint as judge.

`openai_judge` is the judge; `prompts` what it is asked, `request` in which words, `reading` how a reply becomes a
score, `probe` which way of scoring a server allows, `endpoint` the careful client, `request_cache` what was answered
already, `dry_run` what it will cost, `agreement` how far it agrees with itself.
"""
