"""Jobs -> their runs, side by side and each in a process of its own; a later start goes on from what their files say.

outputs/sweeps/<name>-<key>/       key: first 8 hex digits of the hash of the jobs
  sweep.json                       the command, and the jobs
  study.journal  search.json       of a search: Optuna's trials, and what it is for
  jobs/<number>/job.json           overrides, state, attempts, the run's folder and its objective; a driver writes it
                result.json        what the job says of itself: its run, and in the end what became of it
                console.log        what it printed
"""
