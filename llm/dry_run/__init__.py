"""dry_run=true: configs -> what each job would take, make and reuse; nothing is trained, and nothing is written."""
