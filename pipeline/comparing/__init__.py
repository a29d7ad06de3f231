"""Many runs of one profile: methods times seeds, and what they are worth."""
