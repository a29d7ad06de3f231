"""What has to run and why (plan), running it (runner), the state and the result of a run."""
