"""What a run may be asked for: the schema of conf/, and the way from Hydra's config to plain, checked dataclasses.

Hydra merges the YAML files and the command line into the schema, so a wrong key or type fails before any work.
Nothing else in llm/ imports Hydra or OmegaConf, and nothing here imports anything heavy.
"""
