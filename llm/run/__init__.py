"""Runs: a plan and the work that it takes -> a folder under outputs/ that is found again, resumed, or reused.

outputs/<stage>/<name>-<key>/    key: first 8 hex digits of the hash of what determines the run
  run.json                       status, parents, commit, versions, command, times, results
  config.yaml                    the composed config
  log.txt  metrics.jsonl         and what the stage makes
"""
