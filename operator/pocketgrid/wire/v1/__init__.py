"""Version 1 of the contract. Generated; see agent.proto for the meaning of every field."""
