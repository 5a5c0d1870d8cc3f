"""How a policy is enforced on this machine: an ordered list of operations, each with its reason. Writes nothing."""
