"""Jobs -> their runs, side by side and each in a process of its own, and a ledger that a later start goes on from.

outputs/sweeps/<name>-<key>/       key: first 8 hex digits of the hash of the jobs
  sweep.json                       the command, and the jobs
  jobs/<number>/job.json           overrides, state, attempts, the run's folder and its objective
                console.log        what the job said
"""
